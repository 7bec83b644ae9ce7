"""Large global batches: the scaled rate of every step, accumulation, and compressed gradients."""

import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from conftest import REPOSITORY, tiny_classifier
from fitting import data, trainer
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from xray_lightning.errors import UserError
from xray_lightning.models.schedules import RateScaling
from xray_lightning.training.callbacks import Throughput
from xray_lightning.training.strategies import Torchrun, World

RATE = 0.01
SCHEDULERS = sorted(path.stem for path in (REPOSITORY / "conf" / "scheduler").glob("*.yaml"))


class Rates(Callback):
    """The rate of each optimizer step."""

    def __init__(self) -> None:
        self.used: list[float] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.used.append(float(optimizer.param_groups[0]["lr"]))


def scheduler(name: str) -> Any:
    """An option of the group, with its periods short enough for four epochs."""
    raw: Any = OmegaConf.load(REPOSITORY / "conf" / "scheduler" / f"{name}.yaml")
    short = {
        "step": {"step_size": 1},
        "plateau": {"patience": 0, "threshold": 1.0},
        "one_cycle": {"max_lr": RATE},
    }
    if name in short:
        raw.scheduler = OmegaConf.merge(raw.scheduler, short[name])
    return instantiate(raw, _convert_="all") or None


def fitted(
    phantoms: Path, folder: Path, *callbacks: Callback, ckpt: Path | None = None, **options: Any
) -> tuple[list[float], LightningModule]:
    """Rates of a fit, and its model.

    Args:
        options: `name` of the scheduler, `scaling`, and further ones of the trainer.
    """
    batch = options.pop("batch", 16)
    model = tiny_classifier(
        optimizer=partial(torch.optim.SGD, lr=RATE),
        scheduler=scheduler(options.pop("name", "none")),
        rate_scaling=options.pop("scaling", None),
    )
    rates = Rates()
    images = data(phantoms, folder)
    images.batch_size = batch
    fit = trainer(folder, rates, *callbacks, **options)
    fit.fit(model, datamodule=images, ckpt_path=ckpt, weights_only=True)
    return rates.used, model


SCALING = RateScaling(exponent=1.0, reference_batch=4, warmup_epochs=1.5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_rate_of_every_step_is_the_schedules_times_the_formulas_factor(
    name: str, phantoms: Path, tmp_path: Path
) -> None:
    plain, _ = fitted(phantoms, tmp_path, name=name, epochs=4)
    scaled, _ = fitted(phantoms, tmp_path, name=name, epochs=4, scaling=SCALING)
    steps = len(plain) // 4
    warmup = round(1.5 * steps)
    factors = [1 + 3 * step / warmup if step < warmup else 4 for step in range(len(plain))]
    assert scaled == pytest.approx([r * f for r, f in zip(plain, factors, strict=True)], rel=1e-9)
    assert (len({*plain}) > 1) == (name != "none")


@pytest.mark.parametrize(
    ("exponent", "batch", "steps"),
    [(1.0, 64, [1, 1.5, 2, 2]), (0.5, 128, [1, 1.5, 2, 2]), (1.0, 16, [0.5, 0.5, 0.5, 0.5])],
)
def test_the_factor_rises_from_one_and_a_small_batch_has_no_warm_up(
    exponent: float, batch: int, steps: list[float]
) -> None:
    scaling = RateScaling(exponent=exponent, reference_batch=32, warmup_epochs=0.5)
    factor = scaling.factors(batch=batch, steps_an_epoch=4)
    assert [factor(step) for step in range(4)] == pytest.approx(steps)


@pytest.mark.parametrize("name", ["step", "plateau", "cosine"])
def test_a_resumed_fit_goes_on_with_the_scaled_rates(
    name: str, phantoms: Path, tmp_path: Path
) -> None:
    class Early(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    whole, _ = fitted(phantoms, tmp_path, name=name, epochs=4, scaling=SCALING)
    first, _ = fitted(phantoms, tmp_path, Early(), name=name, epochs=4, scaling=SCALING)
    again, _ = fitted(
        phantoms, tmp_path, name=name, epochs=4, scaling=SCALING, ckpt=tmp_path / "last.ckpt"
    )
    assert first == whole[: len(whole) // 2]
    assert again == whole[len(whole) // 2 :]


def test_accumulated_batches_are_one_large_batch_in_weights_rates_and_images(
    phantoms: Path, tmp_path: Path
) -> None:
    # The same images: an epoch's last batch, of another size, is left out.
    counts = [Throughput(batch_size=batch) for batch in (16, 8)]
    options: dict[str, Any] = {"name": "cosine", "scaling": SCALING, "epochs": 2}
    large, one = fitted(phantoms, tmp_path, counts[0], limit_train_batches=2, **options)
    small, other = fitted(
        *(phantoms, tmp_path, counts[1]),
        batch=8,
        accumulate_grad_batches=2,
        limit_train_batches=4,
        **options,
    )
    assert small == large
    assert len(large) == 4
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    rows = [[row["images"] for row in count.history] for count in counts]
    assert rows[0] == rows[1] == [32, 32]


@pytest.mark.parametrize(
    "wrong", [{"reference_batch": 0}, {"exponent": -1}, {"warmup_epochs": "two"}], ids=str
)
def test_a_scaling_out_of_range_is_refused_by_its_key(wrong: dict[str, Any]) -> None:
    (key,) = wrong
    with pytest.raises(UserError, match=rf"lr_scaling\.{key}="):
        RateScaling(**({"exponent": 1.0, "reference_batch": 32} | wrong))


def test_an_unknown_compression_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match=r"strategy\.compression=int8 must be bf16, fp16"):
        Torchrun(compression="int8").launch_command(World("none"), devices=0)


SENT = torch.tensor([[1.0, 1.001, -3.14159, 1e-3], [0.5, 1.003, 2.71828, 3e-3]])  # by rank


class OneStep(LightningModule):
    """Its gradient on each rank is that rank's row of SENT."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))
        self.received = torch.zeros(4)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return (self.weight * SENT[self.global_rank]).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.weight.grad is not None
        self.received = self.weight.grad.clone()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


KINDS = {None: torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def reduced(rank: int, port: int, folder: Path) -> None:
    """Fit one step as one of two ranks, for each kind, and keep the gradient that is used."""
    torch.set_num_threads(1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": 0}
    os.environ |= {key: str(value) for key, value in (ranks | place).items()}
    os.environ["TORCHELASTIC_RUN_ID"] = "test"
    for kind in KINDS:
        model = OneStep()
        fit = Trainer(
            **Torchrun(processes=2, compression=kind).trainer_options(),
            accelerator="cpu",
            max_steps=1,
            logger=False,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        fit.fit(model, DataLoader([0.0]))
        torch.save(model.received, folder / f"{kind}_{rank}.pt")


@pytest.mark.slow
def test_a_compressed_gradient_is_rounded_before_it_is_added_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mp.spawn(reduced, args=(port, tmp_path), nprocs=2)
    exact = SENT.mean(dim=0)
    for name, kind in KINDS.items():
        got = [torch.load(tmp_path / f"{name}_{rank}.pt") for rank in range(2)]
        assert torch.equal(*got)
        sent = SENT.to(kind) / 2
        assert torch.equal(got[0], (sent[0] + sent[1]).float())
        assert torch.allclose(got[0], exact, rtol=0, atol=1e-7 if name is None else 1e-2)
        assert torch.equal(got[0], exact) == (name is None)
