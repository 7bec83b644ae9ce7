"""Which device, precision and threads a run gets."""

import os
from collections.abc import Iterator

import pytest
import torch

from xray_lightning import hardware as devices
from xray_lightning.errors import EXIT_USER_ERROR, UserError
from xray_lightning.hardware import (
    NoCudaError,
    choose_accelerator,
    choose_precision,
    cuda_devices,
    device_name,
    set_cpu_threads,
)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    "asked, count, used",
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cuda", 1, "cuda"), ("cpu", 2, "cpu")],
)
def test_the_accelerator_is_the_one_asked_for_or_the_best_there_is(
    asked: str, count: int, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    assert cuda_devices() == count
    assert choose_accelerator(asked) == used


def test_cuda_that_is_not_there_is_an_error_and_never_a_cpu_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(monkeypatch, 0)
    with pytest.raises(NoCudaError, match=r"accelerator=cuda, but torch .* finds no CUDA") as told:
        choose_accelerator("cuda")
    assert told.value.exit_code == EXIT_USER_ERROR
    assert told.value.missing == "CUDA"


def test_an_unknown_accelerator_or_precision_is_refused_with_the_choices() -> None:
    with pytest.raises(
        UserError, match="accelerator=tpu is unknown; choose one of auto, cpu, cuda"
    ):
        choose_accelerator("tpu")
    with pytest.raises(UserError, match="precision=int8 is unknown; choose one of 32-true, 16-"):
        choose_precision("int8", accelerator="cpu")


@pytest.mark.parametrize(
    "asked, accelerator, used",
    [
        ("32-true", "cpu", "32-true"),
        ("16-mixed", "cpu", "bf16-mixed"),
        ("bf16-mixed", "cpu", "bf16-mixed"),
        ("16-mixed", "cuda", "16-mixed"),
    ],
)
def test_fp16_runs_as_bf16_on_a_cpu_alone(asked: str, accelerator: str, used: str) -> None:
    assert choose_precision(asked, accelerator=accelerator) == used


def test_the_cpu_has_a_name_and_a_number_of_cores() -> None:
    assert device_name("cpu").endswith(f", {os.cpu_count()} cores")


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "affinity, cores, ranks, expected",
    [
        (8, 8, 1, 8),
        (8, 8, 2, 4),
        (2, 8, 4, 2),  # bound to two cores by its launcher
        (4, 8, 1, 4),  # the whole job is confined to four
        (2, 2, 3, 1),  # more ranks than cores
    ],
)
def test_a_rank_takes_its_share_of_the_cores(
    affinity: int, cores: int, ranks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: set(range(affinity)))
    assert set_cpu_threads(local_ranks=ranks) == expected
