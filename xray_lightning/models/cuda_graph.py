"""A training step as one CUDA graph: at small batches the launches of its kernels cost the most."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xray_lightning.data.loader import Batch

log = logging.getLogger(__name__)

WARMUP_STEPS = 3  # before a capture: lazy allocations, cuDNN's search (PyTorch's "CUDA graphs")

# Maps a batch to the tensor that backward() starts from and to the loss that is reported; under
# fp16 the first is the second times the loss scale.
Step = Callable[[Batch], tuple[Tensor, Tensor]]


@dataclass
class _Captured:
    """One batch size's graph, with the memory that it reads and writes."""

    replay: Callable[[], None]
    inputs: Batch
    scale: Tensor  # ()
    loss: Tensor  # ()
    gradients: list[Tensor | None]


class StepGraph:
    """Forward and backward of a module, captured at each batch size's first step and replayed.

    The optimizer's step stays outside, so that schedules, clipping, loss scaling and checkpoints
    are what they are without a graph. A replay overwrites the gradients: it is
    `zero_grad(); forward; backward`. The tail batch of an epoch has a graph of its own.

    Args:
        module: its parameters get the gradients; its buffers (running statistics) are restored
            after the warm-up steps of a capture.
        step: the function to capture. It must not read a value from the device.
        state: further tensors that the step writes to.
    """

    def __init__(self, module: nn.Module, step: Step, *, state: Sequence[Tensor] = ()) -> None:
        self._step = step
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._buffers = [*module.buffers(), *state]
        self._captured: dict[tuple[int, ...], _Captured] = {}
        self._pool: Any = None  # one for all sizes: they never run at the same time

    def __call__(self, batch: Batch) -> Tensor:
        """The loss (), and the gradients in the parameters' `grad`."""
        size = tuple(batch.images.shape)
        if size not in self._captured:
            self._captured[size] = self._capture(batch)
        captured = self._captured[size]
        for fixed, given in zip(captured.inputs[:-1], batch[:-1], strict=True):
            fixed.copy_(given, non_blocking=True)
        captured.scale.fill_(batch.scale)
        captured.replay()
        for parameter, gradient in zip(self._parameters, captured.gradients, strict=True):
            parameter.grad = gradient
        return captured.loss.clone()  # the next replay writes over it

    def _capture(self, batch: Batch) -> _Captured:
        scale = torch.full((), batch.scale, device=batch.images.device)
        inputs = Batch(*(part.clone() for part in batch[:-1]), scale)  # type: ignore[call-arg, arg-type]
        buffers = [buffer.clone() for buffer in self._buffers]
        replay, loss = self._record(inputs)
        with torch.no_grad():
            for buffer, before in zip(self._buffers, buffers, strict=True):
                buffer.copy_(before)
        log.debug("captured the step of %d images as a CUDA graph", len(batch.images))
        gradients = [parameter.grad for parameter in self._parameters]
        return _Captured(replay, inputs, scale, loss, gradients)

    def _record(self, inputs: Batch) -> tuple[Callable[[], None], Tensor]:
        """Capture a step on these inputs: the graph's replay function, and the loss it writes."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_STEPS):
                self._run(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread may be copying the next batch: its calls must not fail the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            loss = self._run(inputs)
        self._pool = self._pool or graph.pool()
        return graph.replay, loss

    def _run(self, inputs: Batch) -> Tensor:
        for parameter in self._parameters:  # so that backward allocates new gradients
            parameter.grad = None
        start, loss = self._step(inputs)
        with torch.autocast(start.device.type, enabled=False):
            start.backward()  # type: ignore[no-untyped-call]
        return loss.detach()
