"""The one LightningModule: normalise, backbone, loss, and predictions gathered by image."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from xray_lightning.data.loader import Batch
from xray_lightning.data.mixing import Mixing
from xray_lightning.data.transforms import Normalize
from xray_lightning.errors import RunFailedError, UserError, one_line
from xray_lightning.findings import FINDINGS
from xray_lightning.models.checkpoint import (
    CHECKPOINT_SCHEMA,
    check_checkpoint,
    read_checkpoint,
    restore,
)
from xray_lightning.models.cuda_graph import StepGraph
from xray_lightning.models.fine_tuning import FineTuning, check_rates, without_gradient
from xray_lightning.models.gathered_outputs import (
    Outputs,
    Predictions,
    augmented_logits,
    finding_auroc,
    in_table_order,
    macro,
)
from xray_lightning.models.image_growth import ImageGrowth
from xray_lightning.models.losses import BinaryCrossEntropy, FindingsLoss
from xray_lightning.models.schedules import RateScaling, ScaledRate

log = logging.getLogger(__name__)

RECIPE_KEYS = ("model", "normalize", "image_size", "split_sha256")  # what builds a model again

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


LOSS_SO_FAR = "xray_train_loss_so_far"  # in a checkpoint: sum and count of an epoch under way


class Classifier(LightningModule):
    """Multi-label chest X-ray classifier.

    Args:
        backbone: images (B, 1, S, S) to logits (B, findings).
        loss: logits and targets (B, findings) to losses (B,); None for binary cross-entropy.
        normalize: uint8 images to the backbone's input; None normalises each image by itself.
        findings: names of the logits, in their order.
        optimizer: makes the optimizer from the parameters.
        scheduler: Lightning's scheduler configuration, whose `scheduler` is a function of the
            optimizer, and of `total_steps` where `needs_total_steps` is true; None for a
            constant rate.
        rate_scaling: makes the rate grow with the global batch; None leaves it.
        augment: uint8 images and their draws' numbers to float images, in training alone.
        mixing: mixes each training image with another of its batch, and their losses likewise.
        growth: side of the training images by epoch; None for full size.
        recipe: plain values from which the same model can be built again; saved in checkpoints.
        channels_last: memory layout of convolutions; the faster one on CPUs and on tensor cores.
        fine_tuning: rates and weight decay by layer; None for the same everywhere.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        loss: FindingsLoss | None = None,
        normalize: Normalize | None = None,
        optimizer: OptimizerFactory = torch.optim.Adam,
        findings: Sequence[str] = FINDINGS,
        scheduler: Mapping[str, Any] | None = None,
        rate_scaling: RateScaling | None = None,
        augment: nn.Module | None = None,
        mixing: Mixing | None = None,
        growth: ImageGrowth | None = None,
        recipe: Mapping[str, Any] | None = None,
        channels_last: bool = True,
        fine_tuning: FineTuning | None = None,
    ) -> None:
        super().__init__()
        self.fine_tuning = fine_tuning or FineTuning()
        self.backbone = backbone
        self.loss = BinaryCrossEntropy() if loss is None else loss
        self.normalize = Normalize() if normalize is None else normalize
        self.findings = tuple(findings)
        self.loss.size_to(len(self.findings))
        self.augment = augment
        self.mixing = mixing
        self._growth = growth
        self.recipe = {"normalize": self.normalize.mode, **(recipe or {})}
        self.outputs: Outputs | None = None  # of the last evaluation
        self.tta: str | None = None  # test-time augmentation outside a fit: `flip`
        self.weights_seen: tuple[str, ...] = ()  # data that its initial weights saw
        self._trained_on: str | None = None  # the name of the data set
        # State dict of the averaged weights, if there are any: weights-only checkpoints hold it.
        self.averaged_state: Callable[[], dict[str, Tensor]] | None = None
        self._frozen_of: tuple[int | None, dict[str, nn.Parameter]] = (None, {})  # of an epoch
        self._make_optimizer = optimizer
        self._scheduler = scheduler
        self._rate_scaling = rate_scaling
        self._rate: ScaledRate | None = None  # of the fit
        self.cuda_graph = False  # replay the step as one CUDA graph
        self._graph: StepGraph | None = None
        # Sum and count of this epoch's losses. No buffer: DDP would broadcast rank 0's to all.
        self._train_sums = torch.zeros(2, dtype=torch.float64)
        self._gathered: list[tuple[Tensor, ...]] = []
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone.to(memory_format=self._layout)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, findings) of uint8 images (B, 1, S, S)."""
        logits: Tensor = self.backbone(self.inputs(images))
        return logits

    def inputs(self, images: Tensor) -> Tensor:
        """The backbone's input for uint8 images (B, 1, S, S)."""
        pixels: Tensor = self.normalize(images)
        return pixels.contiguous(memory_format=self._layout)

    # -- training --------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None:
            self.recipe["split_sha256"] = data.usable.split.sha256
            self.recipe.setdefault("image_size", data.image_size)
            self._trained_on = data.name
        if stage == "fit" and data is not None:
            self.loss.fit_to(positives=data.positives("train"), images=len(data.table("train")))
            if self.normalize.mode == "dataset":
                mean, std = data.pixel_statistics()
                self.normalize.fit_to(mean=mean, std=std)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self._growth is not None:
            epochs = self.trainer.max_epochs or 1
            images = self._growth.sized(batch.images, epoch=self.current_epoch, of=epochs)
            batch = batch._replace(images=images)
        return self._loss(batch) if self._graph is None else self._graph(batch)

    def _loss(self, batch: Batch) -> Tensor:
        """This rank's loss (), averaged over ranks the global batch's; adds to `_train_sums`."""
        images = batch.images
        if self.augment is not None:
            images = self.augment(images, batch.draws)
        own = None
        if self.mixing is not None:
            images, own = self.mixing(images, batch.draws)
        logits = self._logits(images)
        losses: Tensor = self.loss(logits, batch.targets)  # (B,)
        if own is not None:
            losses = torch.lerp(self.loss(logits, batch.targets.roll(1, 0)), losses, own)
        counted = batch.rows >= 0
        with torch.no_grad():
            known = counted & losses.isfinite()  # the callback FiniteLoss reports others
            self._train_sums[0] += losses.where(known, 0).sum()
            self._train_sums[1] += known.sum()
        return (losses * counted).sum() * batch.scale

    def _logits(self, images: Tensor) -> Tensor:
        """Logits (B, findings) that give frozen parameters a zero gradient."""
        frozen = self._frozen()
        try:
            logits: Tensor = without_gradient(self, frozen, images) if frozen else self(images)
        except ValueError as error:  # torch's, of batch norm over a single value
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"the last batch of an epoch is a single image, which at data.image_size="
                f"{images.shape[-1]} has no batch statistics; choose another data.batch_size"
            ) from error
        return logits

    def _frozen(self) -> dict[str, nn.Parameter]:
        epoch, parameters = self._frozen_of
        if epoch != self.current_epoch:  # looked for once an epoch, not twice a step
            parameters = self.fine_tuning.frozen(self.backbone, epoch=self.current_epoch)
            self._frozen_of = (self.current_epoch, parameters)
        return parameters

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter in self._frozen().values():
            parameter.grad = None  # no weight decay and no momentum either

    def on_fit_start(self) -> None:
        self._train_sums = self._train_sums.to(self.device)
        self._frozen_of = (None, {})  # of an earlier fit
        self._frozen()  # raises now if the backbone cannot be frozen
        if self._growth is not None:
            self._growth.check(self, full=self.trainer.datamodule.image_size)  # type: ignore[attr-defined]
        if self.cuda_graph:
            self._graph = self._new_graph()

    def on_train_start(self) -> None:
        self.fine_tuning.fix_norms(self.backbone)  # Lightning leaves modes alone from here on

    def _new_graph(self) -> StepGraph:
        return StepGraph(self, self._scaled_loss, state=[self._train_sums])

    def on_fit_end(self) -> None:
        self._graph = None  # and its memory

    def _scaled_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = self._loss(batch)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # under fp16
        return (loss if scaler is None else scaler.scale(loss)), loss

    # A graph's replay has zeroed the gradients and run backward already.

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._graph is None:
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._graph is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def mean_train_loss(self) -> Tensor:
        """Mean loss () of the images that all ranks have trained on in this epoch; a collective."""
        sums = self._all_train_sums()
        return (sums[0] / sums[1]).float()

    def _all_train_sums(self) -> Tensor:
        """The losses of this epoch so far on all ranks, and how many (2,); a collective."""
        sums = self._train_sums.clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        return sums

    def on_train_epoch_start(self) -> None:
        self._train_sums.zero_()
        if self._graph is not None and self.current_epoch == self.fine_tuning.freeze_epochs:
            self._graph = self._new_graph()

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", self.mean_train_loss(), sync_dist=True)  # the same on every rank
        self._train_sums.zero_()  # before the checkpoints of the epoch's end

    def configure_optimizers(self) -> OptimizerLRScheduler:
        with _blaming("optimizer"):
            optimizer = self._make_optimizer(self.fine_tuning.parameters(self))
            self.fine_tuning.scale(optimizer)
        configured = self._with_scheduler(optimizer)
        if self._rate_scaling is not None:  # after the schedule has read its rates
            accumulated = self.trainer.accumulate_grad_batches
            factor = self._rate_scaling.factors(
                batch=self.trainer.datamodule.batch_size * accumulated,  # type: ignore[attr-defined]
                steps_an_epoch=-(-self.steps_an_epoch() // accumulated),
            )
            self._rate = ScaledRate(optimizer, factor)
        return configured

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self._rate is not None:
            self._rate.apply(self.trainer.global_step + 1)  # this step is not counted yet

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        unscaled = (
            nullcontext()
            if self._rate is None
            else self._rate.unscaled(step=self.trainer.global_step)
        )
        with unscaled:
            super().lr_scheduler_step(scheduler, metric)

    def _with_scheduler(self, optimizer: torch.optim.Optimizer) -> OptimizerLRScheduler:
        if self._scheduler is None:
            return optimizer
        config = dict(self._scheduler)
        factory = config.pop("scheduler")
        steps = {"total_steps": self._total_steps()} if config.pop("needs_total_steps", 0) else {}
        with _blaming("scheduler"):
            scheduler = factory(optimizer, **steps)
        check_rates(optimizer, scheduler)
        if isinstance(scheduler, ReduceLROnPlateau) and config.get("interval") == "epoch":
            # An interval of one epoch in steps: also after its last step and its validation.
            # With "epoch", Lightning 2.6 leaves out the first epoch's end after a resume.
            config |= {"interval": "step", "frequency": self.steps_an_epoch()}
        lr_scheduler: Any = {"scheduler": scheduler, **config}
        return {"optimizer": optimizer, "lr_scheduler": lr_scheduler}

    def steps_an_epoch(self) -> int:
        """Training batches per epoch, within `Trainer.limit_train_batches`."""
        steps = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        limit = self.trainer.limit_train_batches
        return min(steps, limit) if isinstance(limit, int) else int(steps * limit)

    def _total_steps(self) -> int:
        """Optimizer steps of the whole run.

        Not by Trainer.estimated_stepping_batches: it sets up the data loaders before a checkpoint
        is loaded, and their state would then never be restored (Lightning 2.6).
        """
        steps = -(-self.steps_an_epoch() // self.trainer.accumulate_grad_batches)
        return steps * (self.trainer.max_epochs or 1)

    # -- evaluation ------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        fitting = self.tta is not None and self.trainer.state.fn == "fit"
        logits = augmented_logits(self, batch.images, None if fitting else self.tta)
        losses = self.loss(logits, batch.targets)
        self._gathered.append((batch.rows, logits.sigmoid(), batch.targets, losses))

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int) -> Predictions:
        counted = batch.rows >= 0
        rows = batch.rows[counted]
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        names = () if data is None else data.table("test")["image"].iloc[rows.cpu().numpy()]
        logits = augmented_logits(self, batch.images, self.tta)
        return Predictions(tuple(names), rows, logits.sigmoid()[counted])

    def _collect(self) -> Outputs:
        """All ranks' predictions, the same on each: every image once, in the table's order."""
        parts = in_table_order(self._gathered, ranks=self.trainer.world_size)
        self._gathered.clear()
        outputs = Outputs(*(part.cpu() for part in parts))
        invalid = int((~outputs.probabilities.isfinite()).any(dim=1).sum())
        if invalid:
            raise RunFailedError(
                f"the model gives no number for {invalid} of {len(outputs.rows)} images "
                "(NaN or infinite probabilities): lower optimizer.lr, or use precision=32-true"
            )
        return outputs

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, side: str) -> None:
        self.outputs = outputs = self._collect()
        auroc = finding_auroc(outputs.probabilities, outputs.targets)
        scores = {f"{side}/loss": outputs.losses.mean(), f"{side}/auroc_macro": macro(auroc)}
        self.log_dict(scores, prog_bar=True, sync_dist=True)
        by_finding = zip(self.findings, auroc, strict=True)
        self.log_dict(
            {f"{side}/auroc/{name}": value for name, value in by_finding if not value.isnan()},
            sync_dist=True,
        )

    # -- checkpoints -----------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint self-describing: plain values only, so that it loads safely."""
        if self.averaged_state is not None and "current_model_state" not in checkpoint:
            checkpoint["state_dict"] = self.averaged_state()
        checkpoint["xray"] = {
            "schema_version": CHECKPOINT_SCHEMA,
            "findings": list(self.findings),
            "thresholds": dict.fromkeys(self.findings, 0.5),
            "trained_on": self._trained_on,
            "weights_seen": list(self.weights_seen),
            **self.recipe,
        }
        sums = self._all_train_sums().tolist()
        if sums[1]:  # in mid-epoch
            checkpoint[LOSS_SO_FAR] = sums

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_checkpoint(checkpoint, findings=self.findings)
        was, now = checkpoint["xray"].get("split_sha256"), self.recipe.get("split_sha256")
        if was and now and was != now:
            told = f"the checkpoint's split {str(was)[:7]} is not that of the data, {now[:7]}"
            stage = self.trainer.state.fn
            if stage == "fit":
                raise UserError(
                    f"{told}: it may have trained on images that are tested now; start a new run"
                )
            if stage == "test" and self.global_rank == 0:
                log.warning("%s: it may have been trained on some of the test images", told)
        for state in checkpoint.get("lr_schedulers", ()):
            for key in ("total_steps", "_schedule_phases"):  # OneCycleLR; max_epochs may be new
                state.pop(key, None)
        self._train_sums.zero_()
        if self.global_rank == 0:  # the sum over all ranks; their number may differ
            self._train_sums += torch.tensor(checkpoint.get(LOSS_SO_FAR, [0.0, 0.0]))

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # takes a path and a device alone
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str | None = None,
        *,
        weights_only: bool | None = True,
        **parts: Any,
    ) -> Self:
        """Classifier of a checkpoint alone: its model, its weights and its findings.

        Args:
            map_location: device to put it on; None leaves it on the CPU.
            weights_only: nothing but True, as nothing in a checkpoint is ever executed.
            parts: further arguments of the class, such as the `loss` and the `optimizer` that it
                is to be trained with; a checkpoint does not hold them.

        Raises:
            UserError: a file that is missing, damaged, or no checkpoint of this project.
        """
        if weights_only is False:
            raise UserError("weights_only must be true: nothing in a checkpoint is ever executed")
        path = Path(checkpoint_path)
        content = read_checkpoint(path)
        model = restore(content, source=path).requires_grad_(True).train()  # as Lightning leaves it
        described = content["xray"]
        loaded = cls(
            backbone=model.backbone,
            normalize=model.normalize,
            findings=described["findings"],
            recipe={key: described[key] for key in RECIPE_KEYS if key in described},
            **parts,
        )
        prefix = "loss."  # a loss of the same class gets its saved state
        state = content["state_dict"].items()
        loss = {key.removeprefix(prefix): value for key, value in state if key.startswith(prefix)}
        with _blaming("loss"):
            loaded.loss.load_state_dict(loss, strict=False)
        return loaded.to(map_location or "cpu")


@contextmanager
def _blaming(key: str) -> Iterator[None]:
    """Turn an error of torch into a UserError that names the configuration group."""
    try:
        yield
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{key}: {one_line(error)}") from error
