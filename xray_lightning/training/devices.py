"""Which device and precision a run gets for what it asks, never silently another."""

import os
import platform
from pathlib import Path

import torch

from xray_lightning.errors import UserError

ACCELERATORS = ("auto", "cpu", "cuda")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


class NoCudaError(UserError):
    """CUDA was asked for and is not there; a sweep skips such a row and goes on."""

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
