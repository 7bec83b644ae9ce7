"""Side-by-side timing of training.

python -m benchmarks.side_by_side --arms A,B --data DIR --json FILE
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import current_thread, main_thread
from time import monotonic
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.arms import (
    CHECKED_STEPS,
    COMPUTE_ONLY,
    DALI,
    PAPER_LOOP,
    PRECISIONS,
    Arm,
    Workload,
    choose_arms,
    pairings,
    prepare,
    refuse_unknown,
    source_size,
)
from benchmarks.results import (
    command_line,
    machine,
    print_table,
    ratios,
    ratios_by_precision,
    summarise,
    table,
    write_readme,
)
from xray_lightning.cli import main as cli
from xray_lightning.errors import RunFailedError, UserError, XrayError, check_whole, one_line
from xray_lightning.files import write_atomically
from xray_lightning.hardware import choose_accelerator
from xray_lightning.progress import live_bar, on_terminal
from xray_lightning.runs.results_json import finite
from xray_lightning.training.callbacks import WARMUP_STEPS
from xray_lightning.workers import threads

# Relative tolerances for losses that should be equal. The first loss depends on pixels, weights and
# order alone. Then Adam's updates amplify every difference: at first they are the learning rate
# times the gradient's sign, whatever its size. Two arms do differ a little: the paper's first
# convolution updates three channels where ours has one, and DALI's resize is not Pillow's.
FIRST_TOLERANCE = 1e-4
# At 32 px, noise of 1e-5 in the pixels, as from rounding, changed the third loss by up to 2.7 %;
# swapping two batches changes it by 12 %.
LATER_TOLERANCE = 0.05
DALI_FIRST_TOLERANCE = 0.002  # its pixels differ by 0.2 levels of 255 on average
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
        tell: called before each process with what it runs, to show on a terminal.
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
        command = [sys.executable, "-m", "benchmarks.loop", task, arm.name]
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
        """The caller's environment; compiled code is cached across processes, as for users."""
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
    """Delay Ctrl-C to the block's end: inside Popen it would leave a process without a handle."""
    if current_thread() is not main_thread():  # only the main thread gets KeyboardInterrupt
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
    return lines[-1].strip().removeprefix("xray: error: ") if lines else f"exit code {exit_code}"


def worker_counts(cores: int) -> list[int]:
    """Numbers of workers to try: powers of two up to the number of cores, and that number."""
    return sorted({2**power for power in range(cores.bit_length()) if 2**power <= cores} | {cores})


def loss_difference(losses: dict[str, list[float]], arm: str, reference: str) -> str | None:
    """A message if an arm's losses differ from the reference's beyond the tolerances, else None."""
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


@dataclass(frozen=True)
class Options:
    """The command's options; its help says what each is."""

    data: Path
    command: str
    arms: Sequence[str] = ()
    model: str = "resnet18"
    image_size: int = 224
    batch_size: int = 32
    precisions: Sequence[str] = PRECISIONS
    accelerator: str = "auto"
    threads: int | None = None
    repeats: int = 5
    steps: int | None = None
    images: int | None = None
    json: Path | None = None

    def check(self) -> None:
        """Refuse what can be refused without the data.

        Raises:
            UserError: the first option that is wrong.
        """
        refuse_unknown(self.arms)
        if set(self.precisions) - set(PRECISIONS) or not self.precisions:
            raise UserError(
                f"--precision {','.join(self.precisions)}: choose from {','.join(PRECISIONS)}"
            )
        check_whole("--image-size", self.image_size, least=32)
        check_whole("--batch-size", self.batch_size, least=1)
        check_whole("--repeats", self.repeats, least=1)
        for key in ("threads", "steps", "images"):
            if getattr(self, key) is not None:
                check_whole(f"--{key}", getattr(self, key), least=1)
        folder = Path() if self.json is None else self.json.parent
        if self.json is not None and not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise UserError(f"--json {self.json}: its folder is not there or cannot be written")


STEPS = {"cpu": 7, "cuda": 300}
LOADING_ARMS = ("paper_workers", "timm")  # those that load in worker processes
MOST_SECONDS = 40.0


def bench(options: Options) -> dict[str, Any]:
    """Time the arms; write the JSON file, if one is asked for, and return its content.

    Raises:
        UserError: the data set, or an arm that was named, is not usable.
    """
    accelerator = choose_accelerator(options.accelerator)
    arms, skipped = choose_arms(options.arms, accelerator=accelerator)
    pairs = pairings(arms, options.precisions)
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as name:
        workload = prepare(
            workload_of(options, accelerator),
            Path(name),
            images=options.images,
            steps=options.steps or STEPS[accelerator],
        )
        loading = [arm for arm in arms if arm.name in LOADING_ARMS][:1]
        trials = len(loading) * len(options.precisions) * len(worker_counts(threads()))
        with _shown(len(arms) + trials + options.repeats * len(pairs)) as tell:
            rounds = SideBySide(workload, Path(name), tell=tell)
            rounds.check_losses(arms)
            for arm in loading:
                rounds.tune_workers(arm, options.precisions)
            for _ in range(options.repeats):
                rounds.repeat(pairs)
        content = _content(options, workload, rounds, skipped)
    if options.json is not None:
        write_atomically(options.json, json.dumps(finite(content), indent=1) + "\n")
    return content


def workload_of(options: Options, accelerator: str) -> Workload:
    """The workload as the options ask for it; `prepare` fills in what depends on the data."""
    return Workload(
        data=str(options.data.resolve()),
        split="",
        weights="",
        arch=options.model,
        image_size=options.image_size,
        batch_size=options.batch_size,
        accelerator=accelerator,
        threads=options.threads,
        epochs=1,
        steps_per_epoch=1,
        most_seconds=MOST_SECONDS,
    )


@contextmanager
def _shown(processes: int) -> Iterator[Told]:
    """A bar over the processes on a terminal, nothing in a log."""
    with live_bar(shown=on_terminal()) as bar:
        task = bar.add_task("preparing", total=processes, rate="")
        begun = -1

        def tell(what: str) -> None:
            nonlocal begun
            begun += 1
            bar.update(task, description=what, completed=begun)

        yield tell


def _content(
    options: Options, workload: Workload, rounds: SideBySide, skipped: dict[str, str]
) -> dict[str, Any]:
    timed = rounds.timed
    arms = summarise(timed.raw)
    content: dict[str, Any] = {
        "kind": "bench",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": options.command,
        "machine": machine(workload.accelerator),
        "settings": {
            "model": workload.arch,
            "image_size": workload.image_size,
            "batch_size": workload.batch_size,
            "precisions": list(options.precisions),
            "accelerator": workload.accelerator,
            "threads": workload.threads or threads(),
            "repeats": options.repeats,
            "warmup_steps": WARMUP_STEPS,
            "timed_steps": workload.timed_steps,
            "epochs": workload.epochs,
            "train_images": workload.steps_per_epoch * workload.batch_size,
            "data": Path(workload.data).name,
            "source_size": source_size(workload),
            "most_seconds": workload.most_seconds,
            "checked_steps": CHECKED_STEPS,
            "loss_tolerance": [FIRST_TOLERANCE, LATER_TOLERANCE, LOOSE_LATER_TOLERANCE],
        },
        "arms": arms,
        "ratios": ratios(arms),
        "ratios_by_precision": ratios_by_precision(arms),
        "losses": timed.losses,
        "workers": timed.workers,
        "worker_trials": timed.trials,
        "skipped": skipped,
        "failed": timed.failed,
    }
    return content | {"table": table(content)}


def main(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data set: a CSV as NIH's, and its images.")
    ] = None,
    arms: Annotated[str, typer.Option(help="Which to time: A,B,...; by default every one.")] = "",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results.")] = None,
    model: Annotated[str, typer.Option(help="resnet18, resnet50, densenet121, ...")] = "resnet18",
    image_size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 224,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    precision: Annotated[str, typer.Option(help="One or both.")] = "32-true,bf16-mixed",
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of each arm.")] = None,
    repeats: Annotated[int, typer.Option(help="Rounds over all arms.")] = 5,
    steps: Annotated[
        int | None, typer.Option(help="Steps to time in a run: at least so many, whole epochs.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Use at most so many images.")] = None,
    readme: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only write README.md of DIR's JSON files.")
    ] = None,
) -> None:
    """Time training side by side: ours, its switches, its limit, and what others load images with.

    The peers (timm, MONAI) come with `uv sync --extra bench`; those that are missing are named.

    Example: [bold]python -m benchmarks.side_by_side --arms ours,compute_only --data DIR[/bold]
    """
    console = Console()
    if readme is not None:
        page = write_readme(readme)
        console.print(f"Written: {page}", markup=False, highlight=False, soft_wrap=True)
        return
    if data is None:
        raise UserError("side_by_side needs --data DIR, the folder of a data set")

    options = Options(
        data=data,
        command=command_line(),
        arms=split_names(arms),
        model=model,
        image_size=image_size,
        batch_size=batch_size,
        precisions=split_names(precision),
        accelerator=accelerator,
        threads=threads,
        repeats=repeats,
        steps=steps,
        images=images,
        json=json,
    )
    options.check()

    content = bench(options)
    print_table(content, console)
    if content["failed"]:
        raise RunFailedError("; ".join(content["failed"].values()))


def split_names(text: str) -> list[str]:
    """The names of a list with commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def run_command() -> None:
    """Run this process's command line; errors that a user can cause are one line."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    cli.run(app)


if __name__ == "__main__":
    run_command()
