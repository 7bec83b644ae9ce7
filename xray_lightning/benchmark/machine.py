"""The machine and the command that a figure was measured with: none is told without them."""

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "torchvision", "lightning", "numpy", "pillow", "isal", "timm", "monai")


def machine(accelerator: str = "cpu") -> dict[str, Any]:
    """Processor, cores, memory in GiB, GPU (None on a CPU), system, and versions of packages."""
    from xray_lightning.data.cache import threads
    from xray_lightning.training.devices import device_name

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": device_name("cpu").rsplit(",", 1)[0],
        "cores": threads(),
        "memory_gib": round(pages / 2**30, 1),
        "gpu": device_name("cuda") if accelerator == "cuda" else None,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
    }


def record(
    kind: str, *, table: dict[str, Any], command: str | None = None, accelerator: str = "cpu"
) -> dict[str, Any]:
    """What every JSON file of measurements begins with: what, when, how, where, and its table.

    Args:
        table: `title`, `columns`, `rows` and `notes`; see `readme`.
        command: what measured it; by default this process's own command line.
    """
    return {
        "kind": kind,
        "date": datetime.now(UTC).date().isoformat(),
        "command": command or shlex.join(["python", *sys.argv]),
        "machine": machine(accelerator),
        "table": table,
    }


def installed(package: str) -> str | None:
    """The package's version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def described(facts: dict[str, Any]) -> str:
    """A machine in one line of a table's foot."""
    gpu = f"{facts['gpu']}, " if facts.get("gpu") else ""
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    return (
        f"{gpu}{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['os']}, "
        f"Python {facts['python']}, {packages}"
    )
