"""Synchronised batch norm: two Gloo ranks equal one process with the joined batch."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import Once
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xray_lightning.models.sync_batchnorm import PortableSyncBatchNorm, SyncBatchNorm2d

CASES: list[tuple[tuple[int, int], dict[str, Any]]] = [  # images on each of two ranks
    ((4, 4), {}),
    ((5, 3), {}),
    ((7, 1), {}),
    ((5, 3), {"momentum": None}),
    ((5, 3), {"affine": False}),
]


def network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, **options),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3, **options),
    ).double()


def step(model: nn.Module, images: Tensor, scale: float) -> dict[str, Tensor]:
    """Two steps of forward and backward; the loss is the sum over images times `scale`."""
    for _ in range(2):
        model.zero_grad()
        images = images.detach().requires_grad_()
        output = model(images)
        (output * torch.linspace(-1, 2, output[0].numel()).view(output[0].shape)).square().sum(
            dim=(1, 2, 3)
        ).sum().mul(scale).backward()
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert images.grad is not None
    return {
        "output": output.detach(),
        "input grad": images.grad,
        **{f"grad {name}": p.grad for name, p in inner.named_parameters() if p.grad is not None},
        **{f"buffer {name}": b.clone() for name, b in inner.named_buffers()},
    }


def batch() -> Tensor:
    draw = torch.Generator().manual_seed(1)
    # Far from zero: the place where a sum of squares in float32 loses the variance.
    return torch.randn(8, 1, 9, 9, generator=draw, dtype=torch.float64) + 50


def share(rank: int, rows: tuple[int, int], options: dict[str, Any]) -> dict[str, Tensor]:
    model = DistributedDataParallel(PortableSyncBatchNorm().apply(network(**options)))
    # DDP averages gradients over the ranks: times 2, that is their sum.
    return step(model, batch().split(rows)[rank], scale=2.0)


def low_precision(rank: int) -> tuple[torch.dtype, float, bool]:
    norm = SyncBatchNorm2d(4)
    draw = torch.Generator().manual_seed(rank)
    images = torch.randn(3, 4, 8, 8, generator=draw).to(memory_format=torch.channels_last)
    full, low = norm(images), norm(images.bfloat16())
    kept_layout = low.is_contiguous(memory_format=torch.channels_last)
    return low.dtype, float((full - low).abs().max()), kept_layout


def far_from_zero(rank: int) -> Tensor:
    draw = torch.Generator().manual_seed(rank)
    return SyncBatchNorm2d(1)(torch.randn(4, 1, 16, 16, generator=draw) + 300).detach()


def evaluate(rank: int) -> Tensor:
    output: Tensor = PortableSyncBatchNorm().apply(network()).eval()(batch()[: rank + 1])
    return output.detach()


def on_rank(rank: int, folder: Path) -> None:
    """One start of two processes does the work of all tests, as a start takes seconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    try:
        answers: dict[str, Any] = {
            f"{rows} {options}": share(rank, rows, options) for rows, options in CASES
        }
        for task in (low_precision, far_from_zero, evaluate):
            answers[task.__name__] = task(rank)
        torch.save(answers, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def ranks(once: Once) -> list[dict[str, Any]]:
    """What each of two Gloo ranks answered, by task."""
    folder = once("ranks", lambda folder: mp.spawn(on_rank, args=(folder,), nprocs=2))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("rows, options", CASES, ids=str)
def test_two_ranks_equal_one_process_with_the_joined_batch(
    rows: tuple[int, int], options: dict[str, Any], ranks: list[dict[str, Any]]
) -> None:
    one = step(network(**options), batch(), scale=1.0)
    two = [rank[f"{rows} {options}"] for rank in ranks]
    torch.testing.assert_close(torch.cat([rank["output"] for rank in two]), one["output"])
    # The input's gradient is not averaged by DDP, so it still bears the scale of 2.
    torch.testing.assert_close(torch.cat([r["input grad"] for r in two]) / 2, one["input grad"])
    for rank in two:
        assert rank.keys() == one.keys()
        for name in one:
            if name.startswith(("grad", "buffer")):
                torch.testing.assert_close(rank[name], one[name], rtol=1e-7, atol=1e-7)


def test_bfloat16_input_keeps_its_type_layout_and_value(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        dtype, error, kept_layout = rank["low_precision"]
        assert dtype == torch.bfloat16
        assert error < 0.03
        assert kept_layout


def test_a_channel_far_from_zero_keeps_its_variance(ranks: list[dict[str, Any]]) -> None:
    joined = torch.cat([rank["far_from_zero"] for rank in ranks])
    assert float(joined.mean()) == pytest.approx(0, abs=1e-3)
    assert float(joined.std()) == pytest.approx(1, abs=1e-3)


def test_evaluation_needs_no_other_rank(ranks: list[dict[str, Any]]) -> None:
    expected = network().eval()(batch())
    for number, rank in enumerate(ranks):
        torch.testing.assert_close(rank["evaluate"], expected[: number + 1])


def test_without_other_ranks_it_is_plain_batch_norm() -> None:
    plain = network()
    synced = PortableSyncBatchNorm().apply(copy.deepcopy(plain))
    one, other = step(plain, batch(), 1.0), step(synced, batch(), 1.0)
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_conversion_keeps_names_tensors_and_mode_and_can_be_undone() -> None:
    model = nn.ModuleDict({"net": network().eval(), "norm": nn.BatchNorm2d(2)})
    before = dict(model.state_dict(keep_vars=True))
    sync = PortableSyncBatchNorm()

    converted = sync.apply(model)
    norms = [m for m in converted.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [type(norm) for norm in norms] == [SyncBatchNorm2d] * 3
    assert [norm.training for norm in norms] == [False, False, True]
    after = converted.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is tensor for name, tensor in before.items())

    reverted = sync.revert(converted)
    norms = [m for m in reverted.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [type(norm) for norm in norms] == [nn.BatchNorm2d] * 3
    assert list(reverted.state_dict()) == list(before)


def test_a_lone_batch_norm_is_replaced() -> None:
    assert type(PortableSyncBatchNorm().apply(nn.BatchNorm2d(3))) is SyncBatchNorm2d
