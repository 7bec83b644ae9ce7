"""Hardware: which device, precision and threads a run gets, and the switches of speed."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from xray_lightning import hardware
from xray_lightning.errors import EXIT_USER_ERROR, UserError
from xray_lightning.hardware import (
    NoCudaError,
    Speed,
    choose_accelerator,
    choose_precision,
    cuda_devices,
    device_name,
    set_cpu_threads,
)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def cores(monkeypatch: pytest.MonkeyPatch, *, of_machine: int, of_process: int) -> None:
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: of_machine)
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: set(range(of_process)))


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


def test_fault_12_cuda_that_is_not_there_is_an_error_and_never_a_cpu_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(monkeypatch, 0)
    with pytest.raises(NoCudaError, match=r"accelerator=cuda, but torch .* finds no CUDA") as told:
        choose_accelerator("cuda")
    assert told.value.exit_code == EXIT_USER_ERROR
    assert told.value.missing == "CUDA"


def test_an_unknown_accelerator_or_precision_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match="=tpu is unknown; choose one of auto, cpu, cuda"):
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


@pytest.mark.parametrize(
    "affinity, machine, ranks, expected",
    [
        (8, 8, 1, 8),
        (8, 8, 2, 4),
        (2, 8, 4, 2),  # bound to two cores by its launcher
        (4, 8, 1, 4),  # the whole job is confined to four
        (2, 2, 3, 1),  # more ranks than cores
    ],
)
def test_a_rank_takes_its_share_of_the_cores(
    affinity: int, machine: int, ranks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(monkeypatch, of_machine=machine, of_process=affinity)
    before = torch.get_num_threads()
    try:
        assert set_cpu_threads(local_ranks=ranks) == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "given, line",
    [
        ({"cuda_graph": "yes"}, "speed.cuda_graph=yes must be true or false"),
        ({"tf32": 1}, "speed.tf32=1 must be true or false"),
        ({"threads": 0}, "speed.threads=0 must be a whole number of at least 1"),
        ({"threads": 1.5}, "speed.threads=1.5 must be a whole number of at least 1"),
    ],
)
def test_a_switch_of_another_kind_is_refused_by_its_key(
    given: dict[str, object], line: str
) -> None:
    with pytest.raises(UserError) as caught:
        Speed(**given)  # type: ignore[arg-type]
    assert str(caught.value) == line


# All of them change the whole process: they are tried in one of its own.
SWITCHED = """
import json, os, sys, threading
import torch
from xray_lightning.hardware import Speed

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

found = {}
if sys.platform.startswith("linux"):
    torch.ones(2**20)
    for on in (False, True):
        Speed(keep_freed_memory=on).prepare(accelerator="cpu", local_ranks=1)
        before = resident()
        big = torch.ones(2**26)  # 256 MiB
        del big
        found[f"kept {on}"] = resident() - before > 200 * 2**20

told = Speed(threads=3).prepare(accelerator="cpu", local_ranks=1)
found["threads"] = [told, torch.get_num_threads()]

for on in (True, False):
    Speed(tf32=on, cudnn_benchmark=on).prepare(accelerator="cuda", local_ranks=1)
    cudnn = torch.backends.cudnn
    precision = torch.get_float32_matmul_precision()
    found[f"cuda {on}"] = [precision, cudnn.allow_tf32, cudnn.benchmark]

if sys.platform.startswith("linux"):
    os.sched_setaffinity(0, range(os.cpu_count()))
    done = threading.Event()
    threading.Thread(target=done.wait).start()
    cores = Speed().bind(local_rank=1, local_ranks=2)
    threads = [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]
    done.set()
    found["bound"] = [len(threads) > 1, all(one == set(cores) for one in threads)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def switched() -> dict[str, Any]:
    command = [sys.executable, "-c", SWITCHED]
    answers: dict[str, Any] = json.loads(subprocess.check_output(command, timeout=120))
    return answers


def test_a_rank_takes_the_threads_that_it_is_told(switched: dict[str, Any]) -> None:
    assert switched["threads"] == [3, 3]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_kept_for_the_next_step_where_the_switch_is_on(
    switched: dict[str, Any],
) -> None:
    assert (switched["kept False"], switched["kept True"]) == (False, True)


def test_tf32_and_cudnns_search_are_set_as_switched(switched: dict[str, Any]) -> None:
    assert switched["cuda True"] == ["high", True, True]
    assert switched["cuda False"] == ["highest", False, False]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core cannot be shared out")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_binding_holds_for_threads_that_run_already(switched: dict[str, Any]) -> None:
    assert switched["bound"] == [True, True]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no process")
@pytest.mark.parametrize(
    "switch, ranks, expected",
    [
        (True, 2, [[0, 1], [2, 3]]),
        (True, 3, [[0], [1], [2]]),
        (True, 1, [[0, 1, 2, 3]]),
        (True, 5, [[0, 1, 2, 3]] * 5),  # more ranks than cores: let the system share them out
        (False, 2, [[0, 1, 2, 3]] * 2),
    ],
)
def test_each_rank_keeps_to_cores_of_its_own(
    switch: bool, ranks: int, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: set[tuple[int, ...]] = set()
    cores(monkeypatch, of_machine=4, of_process=4)
    monkeypatch.setattr(hardware.os, "sched_setaffinity", lambda _, cores: bound.add(tuple(cores)))
    for rank, mine in enumerate(expected):
        bound.clear()
        assert Speed(bind_cores=switch).bind(local_rank=rank, local_ranks=ranks) == mine
        assert bound == ({tuple(mine)} if len(mine) < 4 else set())
