"""One training step in a bare loop, without Lightning: the paper's, and that of ours."""

import torch
from torch import Tensor, nn

from xray_lightning.benchmark.workload import LEARNING_RATE, Workload
from xray_lightning.data.transforms import Normalize
from xray_lightning.models.backbones import build_backbone
from xray_lightning.training.speed import Speed

EAGER_STEPS = 3  # before a CUDA graph is captured: cuDNN's search, the optimizer's state


class Step:
    """Forward, loss, backward and optimizer on one batch.

    Args:
        precision: `32-true`, or `bf16-mixed` for autocast.
        own: the step of ours: one-channel backbone, channels-last, fused Adam, `Speed`'s
            process-wide switches, on CUDA replayed as a graph. Else the paper's: torchvision's
            three-channel model, NCHW, plain Adam, torch's defaults.
    """

    def __init__(self, workload: Workload, *, precision: str, own: bool) -> None:
        cuda = workload.accelerator == "cuda"
        self.device = torch.device(workload.accelerator)
        speed = Speed(threads=workload.threads)
        if own:
            speed.prepare(accelerator=workload.accelerator, local_ranks=1)
        elif workload.threads is not None:
            torch.set_num_threads(workload.threads)
        self._own = own
        self._precision = precision
        self._graphed = own and cuda
        layout = torch.channels_last if own else torch.contiguous_format
        self._model = build_backbone(
            arch=workload.arch, in_channels=1 if own else 3, weights_path=workload.weights
        )
        self._model.to(memory_format=layout).to(self.device)
        self._optimizer = torch.optim.Adam(
            self._model.parameters(),
            lr=LEARNING_RATE,
            fused=own or None,  # None is torch's default
            capturable=self._graphed,
        )
        self._criterion = nn.BCEWithLogitsLoss()
        self._normalize = Normalize().to(self.device)
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._static: tuple[Tensor, Tensor, Tensor] | None = None  # images, targets, loss

    def place(
        self, images: Tensor, targets: Tensor, *, standardised: bool
    ) -> tuple[Tensor, Tensor]:
        """The batch on the device as the model takes it.

        Args:
            images: (B, C, S, S), float32 that is standardised already, or of 0 to 1.
            targets: (B, 14).
        """
        images = images.to(self.device, non_blocking=True)
        targets = targets.to(self.device, torch.float32, non_blocking=True)
        if not standardised:
            images = self._normalize(images * 255)
        if self._own:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, targets

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Train on a placed batch; returns its loss, a scalar on the device."""
        self._calls += 1
        if not self._graphed:
            return self._eager(images, targets)
        if self._calls <= EAGER_STEPS:
            return self._aside(images, targets)
        if self._graph is None or self._static is None:
            return self._capture(images, targets)
        for kept, new in zip(self._static[:2], (images, targets), strict=True):
            if new is not kept:
                kept.copy_(new, non_blocking=True)
        self._graph.replay()
        return self._static[2]

    def _eager(self, images: Tensor, targets: Tensor) -> Tensor:
        mixed = self._precision == "bf16-mixed"
        # A graph must not depend on casts that an earlier step has cached.
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=mixed, cache_enabled=not self._graphed
        ):
            logits = self._model(images)
        loss: Tensor = self._criterion(logits.float(), targets)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss.detach()

    def _aside(self, images: Tensor, targets: Tensor) -> Tensor:
        """A step on a side stream, as PyTorch wants the steps before a capture."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self._eager(images, targets)
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def _capture(self, images: Tensor, targets: Tensor) -> Tensor:
        self._graph = torch.cuda.CUDAGraph()
        self._optimizer.zero_grad(set_to_none=True)
        # A loader's thread may be pinning the next batch: no business of the capture.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            loss = self._eager(images, targets)
        self._static = (images, targets, loss)
        self._graph.replay()  # capturing has only recorded the step
        return loss

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
