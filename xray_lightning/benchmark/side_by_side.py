"""Time arms side by side: one process each, one after the other, round after round."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import current_thread, main_thread
from time import monotonic
from typing import Any

from xray_lightning.benchmark.arms import COMPUTE_ONLY, DALI, PAPER_LOOP, Arm
from xray_lightning.benchmark.workload import Workload
from xray_lightning.data.cache import threads
from xray_lightning.errors import XrayError, one_line

# Relative, of two losses that should be equal. The first comes from the pixels, the weights and
# the order alone. Then Adam's updates, the learning rate times the gradient's sign whatever its
# size, multiply every difference. Two arms do differ a little: the paper's first convolution has
# three channels of such updates where ours has one, and DALI's resize is not Pillow's.
FIRST_TOLERANCE = 1e-4
LATER_TOLERANCE = 0.02
DALI_FIRST_TOLERANCE = 0.002  # 0.2 levels of 255 a pixel, on average
LOOSE_LATER_TOLERANCE = 0.15  # paper_loop and dali

Told = Callable[[str], None]


class ArmFailedError(XrayError):
    """The process of an arm ended with an error; the message is its last line."""


@dataclass
class Timed:
    """What was measured: raw results by arm and precision, and what went wrong."""

    raw: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    trials: dict[str, dict[int, float]] = field(default_factory=dict)
    workers: dict[str, int] = field(default_factory=dict)  # tuned, by precision


class SideBySide:
    """Runs the arms' processes in `folder`.

    Args:
        tell: shown on a terminal: called with what runs now, before each process.
    """

    def __init__(self, workload: Workload, folder: Path, *, tell: Told) -> None:
        self._folder, self._tell = folder, tell
        self._workload = folder / "workload.json"
        workload.write(self._workload)
        self._steps = workload.timed_steps
        self.timed = Timed()

    def check_losses(self, arms: Sequence[Arm]) -> None:
        """Compare the first losses of every arm in float32; one that differs has failed."""
        losses = self.timed.losses
        for arm in sorted(arms, key=lambda arm: arm.name != COMPUTE_ONLY):
            self._tell(f"checking {arm.name}")
            try:
                losses[arm.name] = self._process("check", arm, precision="32-true")["losses"]
                reference = next(iter(losses))
                if difference := loss_difference(losses, arm.name, reference):
                    self.timed.failed[arm.name] = difference
            except ArmFailedError as error:
                self.timed.failed[arm.name] = str(error)

    def tune_workers(self, arm: Arm, precisions: Sequence[str]) -> None:
        """Try numbers of workers in short runs and keep the fastest for each precision."""
        for precision in precisions:
            rates = {}
            for workers in worker_counts(threads()):
                self._tell(f"{arm.name}: {workers} workers")
                try:
                    found = self._process("trial", arm, precision=precision, workers=workers)
                except ArmFailedError as error:
                    self.timed.failed[arm.name] = str(error)
                    return
                rates[workers] = found["images_per_second"]
            self.timed.trials[precision] = rates
            self.timed.workers[precision] = max(rates, key=lambda workers: rates[workers])

    def repeat(self, pairs: Sequence[tuple[Arm, str]]) -> None:
        """One round: each arm at each of its precisions once."""
        for arm, precision in pairs:
            if arm.name in self.timed.failed:
                continue
            self._tell(f"{arm.name} {precision}")
            try:
                result = self._process(
                    "time", arm, precision=precision, workers=self.timed.workers.get(precision)
                )
            except ArmFailedError as error:
                self.timed.failed[arm.name] = str(error)
                continue
            self.timed.raw.setdefault(arm.name, {}).setdefault(precision, []).append(result)

    def _process(
        self, task: str, arm: Arm, *, precision: str, workers: int | None = None
    ) -> dict[str, Any]:
        folder = self._folder / "arms" / task / f"{arm.name}_{precision}"
        folder.mkdir(parents=True, exist_ok=True)
        out = folder / "result.json"
        cache_dir = folder / "cache"  # of its own, so that the first run of each arm is cold
        cold = not cache_dir.exists()
        start = monotonic()
        command = [sys.executable, "-m", "xray_lightning.benchmark.process", task, arm.name]
        command += ["--workload", str(self._workload), "--precision", precision]
        command += ["--folder", str(folder / "run"), "--cache-dir", str(cache_dir)]
        command += ["--out", str(out), "--started", str(start)]
        if workers is not None:
            command += ["--workers", str(workers)]
        self._wait(command, log=folder / "log.txt", arm=arm)
        seconds = monotonic() - start
        result: dict[str, Any] = json.loads(out.read_text())
        out.unlink()
        if task != "time":
            return result
        cut_short = result["timed_steps"] < self._steps
        return result | {"seconds": None if cut_short else seconds, "cold": cold}

    def _environment(self) -> dict[str, str]:
        """The caller's, with compiled code kept from one process to the next, as users have it."""
        kept = {"TORCHINDUCTOR_CACHE_DIR": str(self._folder / "inductor")}
        if sys.dont_write_bytecode:
            bytecode = str(self._folder / "bytecode")
            kept |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": bytecode}
        return {**os.environ, **kept, "PYTHONWARNINGS": "ignore"}

    def _wait(self, command: list[str], *, log: Path, arm: Arm) -> None:
        process = None
        with log.open("w") as output:
            try:
                with _interrupted_later():
                    process = subprocess.Popen(
                        command,
                        env=self._environment(),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                exit_code = process.wait()
            except BaseException:  # Ctrl-C: nothing is left running, nothing is half timed
                if process is not None:
                    process.kill()
                    process.wait()
                raise
        if exit_code:
            raise ArmFailedError(f"{arm.name}: {_last_line(log, exit_code)}")


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Let Ctrl-C wait for the end: inside of Popen it leaves a process that nobody knows."""
    if current_thread() is not main_thread():  # the others are never interrupted
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _last_line(log: Path, exit_code: int) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"ended by {name}" + (f" ({one_line(Exception(lines[-1]))})" if lines else "")
    return lines[-1].strip() if lines else f"exit code {exit_code}"


def worker_counts(cores: int) -> list[int]:
    """The numbers of workers worth a trial: powers of two, and every core."""
    return sorted({2**power for power in range(cores.bit_length()) if 2**power <= cores} | {cores})


def loss_difference(losses: dict[str, list[float]], arm: str, reference: str) -> str | None:
    """What tells an arm's losses from the reference's by more than rounding; None if nothing."""
    loose = {arm, reference} & {PAPER_LOOP, DALI}
    later = LOOSE_LATER_TOLERANCE if loose else LATER_TOLERANCE
    first = DALI_FIRST_TOLERANCE if DALI in (arm, reference) else FIRST_TOLERANCE
    tolerances = [first] + [later] * (len(losses[reference]) - 1)
    pairs = zip(losses[arm], losses[reference], tolerances, strict=True)
    if all(abs(one - other) <= tolerance * abs(other) for one, other, tolerance in pairs):
        return None
    shown = {name: ", ".join(f"{loss:.5f}" for loss in losses[name]) for name in (arm, reference)}
    return (
        f"{arm}: its first losses are {shown[arm]}, and those of {reference} {shown[reference]}: "
        "other pixels, weights or order"
    )
