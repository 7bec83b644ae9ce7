"""The switches of speed, in a process of their own: they change all of it."""

import os
import subprocess
import sys

import pytest

from xray_lightning import hardware as speed
from xray_lightning.errors import UserError
from xray_lightning.hardware import Speed


def run(code: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return process.stdout.strip()


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


def test_a_rank_takes_the_threads_that_it_is_told() -> None:
    code = """
import torch
from xray_lightning.hardware import Speed
told = Speed(threads=3).prepare(accelerator="cpu", local_ranks=1)
print(told, torch.get_num_threads())
"""
    assert run(code) == "3 3"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_kept_for_the_next_step_where_the_switch_is_on() -> None:
    code = """
import sys, torch
from xray_lightning.hardware import Speed
Speed(keep_freed_memory={on}).prepare(accelerator="cpu", local_ranks=1)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

torch.ones(2**20)
before = resident()
big = torch.ones(2**26)  # 256 MiB
del big
print(resident() - before > 200 * 2**20)
"""
    assert run(code.format(on=True)) == "True"
    assert run(code.format(on=False)) == "False"


def test_tf32_and_cudnns_search_are_set_as_switched() -> None:
    code = """
import torch
from xray_lightning.hardware import Speed
for on in (True, False):
    Speed(tf32=on, cudnn_benchmark=on).prepare(accelerator="cuda", local_ranks=1)
    cudnn = torch.backends.cudnn
    print(torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark)
"""
    assert run(code).splitlines() == ["high True True", "highest False False"]


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
    monkeypatch.setattr(speed.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(speed.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(speed.os, "sched_setaffinity", lambda _, cores: bound.add(tuple(cores)))
    for rank, cores in enumerate(expected):
        bound.clear()
        told = Speed(bind_cores=switch).bind(local_rank=rank, local_ranks=ranks)
        assert told == cores
        assert bound == ({tuple(cores)} if len(cores) < 4 else set())


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core cannot be shared out")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_binding_holds_for_threads_that_run_already() -> None:
    code = """
import os, threading
from xray_lightning.hardware import Speed
os.sched_setaffinity(0, range(os.cpu_count()))
done = threading.Event()
threading.Thread(target=done.wait).start()
cores = Speed().bind(local_rank=1, local_ranks=2)
threads = [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]
done.set()
print(len(threads) > 1, all(found == set(cores) for found in threads))
"""
    assert run(code) == "True True"
