"""Record of a run, results.json: written atomically, so that it is complete at any moment.

Its types are in `runs.schema`. Nothing here imports that, as it would delay the start of a run.
"""

import json
import logging
import math
import re
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xray_lightning.files import write_atomically

SCHEMA_VERSION = 1
FILE_NAME = "results.json"
LOG_NAME = "train.log"  # the training process holds a lock on it
RUNNING = "running"
MOST_WARNINGS = 100

_TIMED = (
    *("startup", "cache", "fit", "test", "total"),
    *("fit_images_per_second", "steady_images_per_second", "step_seconds", "data_wait_fraction"),
)


def predictions_name(split: str) -> str:
    """The file in a run folder that has the predictions of a split."""
    return f"predictions_{split}.csv"


def finite(value: Any) -> Any:
    """The same nested value with None for NaN and infinities, which standard JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def git_commit() -> str | None:
    """The commit of the project's checkout; None outside of one."""
    here = Path(__file__)
    # An installed package may lie below some other project's checkout.
    commands = (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"])
    try:
        for command in commands:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *command],
                capture_output=True,
                text=True,
                check=True,
                timeout=5,
            )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


# What a resumed run may change: how and where it runs, not what it computes.
FREE_KEYS = (
    "accelerator",
    "callbacks",
    "ckpt_path",
    "data.cache",
    "data.cache_dir",
    "data.device_memory_share",
    "data.images",
    "data.root",
    "evaluation",
    "logger",
    "report",
    "resume",
    "speed",
    "stages",
    "strategy",
    "trainer",
)


def leaving_out(settings: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Settings by dotted name, without those named `keys` or nested below them."""
    below = tuple(f"{key}." for key in keys)
    return {name: value for name, value in settings.items() if not f"{name}.".startswith(below)}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key: {"a": {"b": 1}} as {"a.b": 1}."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Every key whose value differs, as `key: was -> now`."""
    old, new = flat(was), flat(now)
    keys = sorted(old.keys() | new.keys())
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)
    ]


@dataclass
class RunRecord:
    """results.json of one run folder, rewritten at each `write`."""

    folder: Path
    content: dict[str, Any]

    @classmethod
    def start(
        cls, folder: Path, *, name: str, command: str, seed: int | None, config: dict[str, Any]
    ) -> "RunRecord":
        """A new record with status `running`, not yet written."""
        return cls(
            folder,
            {
                "schema_version": SCHEMA_VERSION,
                "name": name,
                "command": command,
                "status": RUNNING,
                "reason": None,
                "seed": seed,
                "git_commit": git_commit(),
                "config": config,
                "data": None,
                "environment": bare_environment(),
                "timing": {
                    **dict.fromkeys(_TIMED),
                    "peak_memory_bytes": {"host": None, "device": None},
                },
                "metrics": {"test": None},
                "history": [],
                "training": {"warnings": [], "skipped_steps": 0},
            },
        )

    @classmethod
    def load(cls, folder: Path) -> "RunRecord | None":
        """The folder's record; None where there is none that can be read."""
        try:
            return cls(folder, json.loads((folder / FILE_NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError):  # RecursionError: nested too deeply
            return None

    def write(self) -> None:
        """Replace the file atomically: a killed process leaves the old one or the new one."""
        text = json.dumps(finite(self.content), indent=1, allow_nan=False, default=str)
        write_atomically(self.folder / FILE_NAME, text + "\n")

    def end(self, status: str, reason: str | None = None) -> None:
        """Write the final status."""
        self.content["status"], self.content["reason"] = status, reason
        self.write()

    @property
    def status(self) -> str:
        return str(self.content["status"])


@contextmanager
def kept_warnings(kept: list[str]) -> Iterator[None]:
    """Add what is logged as a warning or worse to `kept`, each text once."""
    handler = logging.Handler(logging.WARNING)

    def keep(record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name == "py.warnings":  # "FILE:LINE: Category: text", then the line of code
            text = re.sub(r"^.*?:\d+: ", "", text.splitlines()[0])
        if text not in kept and len(kept) < MOST_WARNINGS:
            kept.append(text)

    handler.emit = keep  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def bare_environment() -> dict[str, Any]:
    """The `environment` block before a device is chosen, without importing torch."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("xray-lightning")
    except PackageNotFoundError:  # a checkout that was never installed; see git_commit
        own = None
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "lightning": version("lightning"),
        "xray_lightning": own,
        **dict.fromkeys(("device", "accelerator", "world_size")),
        "hosts": [socket.gethostname()],
        **dict.fromkeys(("mpi", "strategy", "precision_asked", "precision_used")),
    }
