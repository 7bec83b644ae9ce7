"""Accelerator, precision, CPU threads and speed switches, as the configuration asks for them."""

import ctypes
import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from xray_lightning.errors import UserError, check_whole

ACCELERATORS = ("auto", "cpu", "cuda")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


class NoCudaError(UserError):
    """CUDA was requested but is not available; a sweep skips such a run and goes on."""

    missing = "CUDA"


def cuda_devices() -> int:
    """CUDA devices that torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def choose_accelerator(asked: str) -> str:
    """`cpu` or `cuda`.

    Raises:
        UserError: an unknown name. NoCudaError: CUDA asked for where there is none.
    """
    if asked not in ACCELERATORS:
        raise UserError(f"accelerator={asked} is unknown; choose one of {', '.join(ACCELERATORS)}")
    available = cuda_devices() > 0
    if asked == "cuda" and not available:
        raise NoCudaError(
            f"accelerator=cuda, but torch {torch.__version__} finds no CUDA device; "
            "use accelerator=cpu, or accelerator=auto to take whatever is there"
        )
    if asked == "auto":
        return "cuda" if available else "cpu"
    return asked


def choose_precision(asked: str, *, accelerator: str) -> str:
    """The precision to run at: fp16 needs CUDA's loss scaling, so a CPU runs bf16 instead.

    Raises:
        UserError: an unknown precision.
    """
    if asked not in PRECISIONS:
        raise UserError(f"precision={asked} is unknown; choose one of {', '.join(PRECISIONS)}")
    return "bf16-mixed" if asked == "16-mixed" and accelerator == "cpu" else asked


def device_name(accelerator: str) -> str:
    """The processor's or the GPU's name, such as "NVIDIA H200"."""
    if accelerator == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def set_cpu_threads(*, local_ranks: int) -> int:
    """Give this rank its share of the cores; returns the number of threads.

    A rank that its launcher bound to some cores takes those; unbound ranks share all of them.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    cores = os.cpu_count() or 1
    mine = bound if 0 < bound < cores and local_ranks > 1 else (bound or cores) // local_ranks
    torch.set_num_threads(max(1, mine))
    return torch.get_num_threads()


# mallopt(3), malloc.h of glibc.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


@dataclass(frozen=True)
class Speed:
    """Each speed-up on its own switch.

    Args:
        channels_last: memory layout of convolutions: the faster one on CPUs and tensor cores.
        keep_freed_memory: on a CPU, let glibc keep the memory that a step frees for the next one.
            By default it returns large blocks to the system, and each step pays for new pages.
        threads: CPU threads of each rank; None shares the cores among the ranks of a machine.
        bind_cores: bind each of several ranks on a machine to its own cores, unless its launcher
            has bound it.
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
        """Bind this rank to its own cores if `bind_cores` is set; returns the cores it may use.

        Call it after the cache is built, which uses all cores of the machine.
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
    """Make glibc's malloc reuse freed blocks of any size; False where there is no glibc.

    Otherwise each tensor of more than 32 MiB gets its own mapping, whose pages the kernel zeroes
    at their first touch, in every step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
