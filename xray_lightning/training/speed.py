"""The switches that change how fast a run is, and nothing of what it computes beyond rounding."""

import ctypes
import os
import sys
from contextlib import suppress
from dataclasses import dataclass

import torch

from xray_lightning.errors import UserError, check_whole
from xray_lightning.training.devices import set_cpu_threads

# mallopt(3), malloc.h of glibc.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


@dataclass(frozen=True)
class Speed:
    """Each speed-up on its own switch.

    Args:
        channels_last: memory layout of convolutions: the faster one on CPUs and tensor cores.
        keep_freed_memory: on a CPU, let glibc keep what a step frees for the next step. It else
            hands every large tensor back to the system, and the next step pays for zeroed pages.
        threads: CPU threads of each rank; None shares the cores among the ranks of a machine.
        bind_cores: keep each of several ranks of a machine on cores of its own, where its
            launcher has not bound it.
        tf32: on CUDA, TF32 for float32 convolutions and matrix products.
        cudnn_benchmark: on CUDA, try cuDNN's algorithms in the first step and keep the fastest.
        cuda_graph: on one CUDA device, replay the step as one CUDA graph.
        compile: torch.compile the backbone; it costs tens of seconds at the start.
    """

    channels_last: bool = True
    keep_freed_memory: bool = True
    threads: int | None = None
    bind_cores: bool = True
    tf32: bool = True
    cudnn_benchmark: bool = True
    cuda_graph: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if key == "threads":
                if value is not None:
                    check_whole("speed.threads", value, least=1)
            elif not isinstance(value, bool):
                raise UserError(f"speed.{key}={value} must be true or false")

    def prepare(self, *, accelerator: str, local_ranks: int) -> int:
        """Set the process-wide switches; returns the number of CPU threads."""
        if accelerator == "cuda":
            torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = self.tf32
            torch.backends.cudnn.benchmark = self.cudnn_benchmark
            return torch.get_num_threads()
        if self.keep_freed_memory:
            keep_freed_memory()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
            return self.threads
        return set_cpu_threads(local_ranks=local_ranks)

    def bind(self, *, local_rank: int, local_ranks: int) -> list[int]:
        """Keep this rank on its own cores, if so switched; returns the cores that it may use.

        Not before the cache is built: that takes all cores of the machine.
        """
        if not hasattr(os, "sched_getaffinity"):
            return []
        cores = sorted(os.sched_getaffinity(0))
        unbound = len(cores) == os.cpu_count()
        each = len(cores) // local_ranks
        if self.bind_cores and unbound and local_ranks > 1 and each:
            cores = cores[local_rank * each : (local_rank + 1) * each]
            for thread in os.listdir("/proc/self/task"):  # those that torch has started, too
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread), cores)
        return cores


def keep_freed_memory() -> bool:
    """Make glibc's malloc reuse freed memory however large; False where there is no glibc.

    Each tensor of more than 32 MiB is else a mapping of its own, which the kernel fills with
    zeroed pages at its first touch, in every step again.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
