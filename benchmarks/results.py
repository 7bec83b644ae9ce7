"""Results of measurements: medians, ratios, the machine, and the README made from JSON."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from xray_lightning.errors import UserError
from xray_lightning.files import write_atomically

Raw = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of some repeats."""
    found = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


def take_turns(
    arms: Mapping[str, Callable[[], float]], repeats: int, *, title: str, unit: str
) -> list[dict[str, float]]:
    """Measure all arms in each turn, in reverse order every other turn; a first turn is dropped."""
    turns: list[dict[str, float]] = []
    for turn in range(-1, repeats):
        found = {name: arms[name]() for name in list(arms)[:: -1 if turn % 2 else 1]}
        if turn >= 0:
            turns.append(found)
            shown = ", ".join(f"{name} {found[name]:.1f}" for name in arms)
            load = os.getloadavg()[0]
            sys.stderr.write(f"{title}, turn {turn}: {shown} {unit}, load {load:.1f}\n")
    return turns


def summarise(raw: Raw) -> dict[str, Any]:
    """The `arms` block: each arm's median rate at its best precision, and all results behind it."""
    arms: dict[str, Any] = {}
    for arm, precisions in raw.items():
        at = {precision: _at(results) for precision, results in precisions.items()}
        best = max(at, key=lambda precision: float(at[precision]["images_per_second"]))
        arms[arm] = {
            "images_per_second": at[best]["images_per_second"],
            "precision": best,
            "by_precision": at,
        }
    return arms


def _at(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rates = [result["images_per_second"] for result in results]
    whole = [result for result in results if result["seconds"] is not None]
    cold = [result["seconds"] for result in whole if result["cold"]]
    warm = [result["seconds"] for result in whole if not result["cold"]]
    memory = [result["peak_memory_bytes"] for result in results]
    return {
        "images_per_second": median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "cold_seconds": median(cold) if cold else None,
        "warm_seconds": median(warm) if warm else None,
        "data_wait_fraction": median(result["data_wait_fraction"] for result in results),
        "peak_memory_bytes": {
            place: None if memory[0][place] is None else max(one[place] for one in memory)
            for place in ("host", "device")
        },
        "repeats": list(results),
    }


def ratios(arms: Mapping[str, Any]) -> dict[str, float]:
    """Best against best: quotients of the median rates at each arm's own best precision."""
    return {
        f"{one}_to_{other}": arms[one]["images_per_second"] / arms[other]["images_per_second"]
        for one, other in _pairs(arms)
    }


def ratios_by_precision(arms: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """At equal precision: the quotient of medians, and the lowest and highest within a round."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for one, other in _pairs(arms):
        mine, its = arms[one]["by_precision"], arms[other]["by_precision"]
        for precision in (name for name in mine if name in its):
            rounds = [
                a["images_per_second"] / b["images_per_second"]
                for a, b in zip(mine[precision]["repeats"], its[precision]["repeats"], strict=False)
            ]
            quotient = mine[precision]["images_per_second"] / its[precision]["images_per_second"]
            found.setdefault(precision, {})[f"{one}_to_{other}"] = {
                "ratio": quotient,
                "lowest": min(rounds),
                "highest": max(rounds),
            }
    return found


def _pairs(arms: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of arms to compare: `ours` with every other arm, and every arm with `compute_only`."""
    pairs = [("ours", other) for other in arms if "ours" in arms and other != "ours"]
    limit = "compute_only"
    return pairs + [(one, limit) for one in arms if limit in arms and one not in (limit, "ours")]


COLUMNS = [
    "arm",
    "precision",
    "images/s",
    "lowest to highest",
    "ours is",
    "of compute-only",
    "waits for data",
    "cold s",
    "warm s",
    "host MiB",
    "device MiB",
]


def table(content: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a benchmark's JSON: `title`, `columns`, `rows` and `notes`."""
    settings = content["settings"]
    rows = [
        _row(content, arm, precision)
        for precision in settings["precisions"]
        for arm, facts in content["arms"].items()
        if precision in facts["by_precision"]
    ]
    place = "CUDA" if content["machine"]["gpu"] else f"{settings['threads']} CPU threads"
    title = (
        f"{settings['model']} at {settings['image_size']} px, batch {settings['batch_size']}, "
        f"{place}, files of {settings['source_size']}"
    )
    return {"title": title, "columns": COLUMNS, "rows": rows, "notes": notes(content)}


def _row(content: Mapping[str, Any], arm: str, precision: str) -> list[str]:
    facts = content["arms"][arm]["by_precision"][precision]
    at = content["ratios_by_precision"].get(precision, {})
    ours, limit = at.get(f"ours_to_{arm}"), at.get(f"{arm}_to_compute_only")
    memory = facts["peak_memory_bytes"]
    return [
        arm,
        precision,
        f"{facts['images_per_second']:.1f}",
        f"{facts['lowest']:.1f} to {facts['highest']:.1f}",
        f"{ours['ratio']:.2f} x" if ours else "",
        f"{limit['ratio']:.2f}" if limit else "",
        f"{100 * facts['data_wait_fraction']:.1f} %",
        *(_seconds(facts[key]) for key in ("cold_seconds", "warm_seconds")),
        *(f"{memory[key] / 2**20:.0f}" if memory[key] else "" for key in ("host", "device")),
    ]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def notes(content: Mapping[str, Any]) -> list[str]:
    """Notes that a reader of the table needs."""
    settings, best = content["settings"], content["ratios"]
    first, later, loose = settings["loss_tolerance"]
    told = [
        f"Best against best, ours is {best[key]:.2f} x {key.removeprefix('ours_to_')}."
        for key in ("ours_to_paper_loop", "ours_to_compute_only")
        if key in best
    ]
    told += [
        f"Rounds: {settings['repeats']}; in each, one arm after the other, each in a process of "
        "its own. Median, lowest and highest.",
        f"images/s: one window of {settings['timed_steps']} steps, after "
        f"{settings['warmup_steps']} that are left out. For ours, from results.json.",
        "cold and warm s: the whole process, from its start to its end, with the image cache not "
        "there and there; files are in the system's page cache in both. Bare loops neither "
        f"validate nor save, and their window ends after {settings['most_seconds']:g} s.",
        "host MiB: the process's peak, and its workers' share at the window's end.",
        f"Equal losses: the first {settings['checked_steps']} steps of every arm in 32-true, from "
        f"the same weights and in the same order, agree to {first:g} (the first loss), then to "
        f"{later:g} (Adam multiplies rounding), or {loose:g} for paper_loop, whose first "
        "convolution learns in three channels, and dali; relative.",
    ]
    from benchmarks.arms import ARMS  # imports torch, which the other tables do not need

    told += [f"{arm}: {ARMS[arm].what}." for arm in content["arms"] if arm in ARMS]
    told += [
        f"{precision}: {workers} workers." for precision, workers in content["workers"].items()
    ]
    told += [f"Left out: {arm}: {reason}." for arm, reason in content["skipped"].items()]
    told += [f"Failed: {reason}" for reason in content["failed"].values()]
    return told


PACKAGES = ("torch", "torchvision", "lightning", "numpy", "pillow", "isal", "timm", "monai")


def machine(accelerator: str = "cpu") -> dict[str, Any]:
    """Processor, cores, memory in GiB, GPU (None on a CPU), system, and versions of packages."""
    from xray_lightning.hardware import device_name
    from xray_lightning.workers import threads

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
    """The first keys of every JSON file of measurements; see `KEYS`.

    Args:
        table: `title`, `columns`, `rows` and `notes`, as `render` takes them.
        command: the command that measured; by default this process's own command line.
    """
    return {
        "kind": kind,
        "date": datetime.now(UTC).date().isoformat(),
        "command": command or command_line(),
        "machine": machine(accelerator),
        "table": table,
    }


def command_line() -> str:
    """This process's own command as a shell takes it, such as `python -m benchmarks.decoders`."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def installed(package: str) -> str | None:
    """The package's version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def described(facts: dict[str, Any]) -> str:
    """A machine's facts in one line, for a table's notes."""
    gpu = f"{facts['gpu']}, " if facts.get("gpu") else ""
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    return (
        f"{gpu}{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['os']}, "
        f"Python {facts['python']}, {packages}"
    )


README = "README.md"
LOG_WIDTH = 160  # characters
HEAD = """# Benchmarks

Measured results, each in a JSON file of this folder with every repeat, the machine and the command.
This page is made from them: `python -m benchmarks.side_by_side --readme benchmarks`.
"""
KEYS = {"kind", "machine", "command", "date", "table"}


def write_readme(folder: Path) -> Path:
    """Write the page of a folder's JSON files; returns its path.

    Raises:
        UserError: no JSON file, one that lacks one of `KEYS`, or the page cannot be written.
    """
    path = folder / README
    try:
        write_atomically(path, render(folder))
    except OSError as error:
        raise UserError(f"--readme {folder}: cannot be written ({error})") from error
    return path


def render(folder: Path) -> str:
    """The page as Markdown, a section for each file in the order of their names."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"--readme {folder} holds no JSON file; measure with --json first")
    return "\n".join([HEAD, *(_section(path) for path in files)])


def _section(path: Path) -> str:
    content = _read(path)
    table = content["table"]
    lines = [
        f"## {table['title']}",
        "",
        _markdown_row(table["columns"]),
        _markdown_row(["---"] * len(table["columns"])),
        *map(_markdown_row, table["rows"]),
        "",
        *(f"- {note}" for note in table["notes"]),
        f"- Measured {content['date']}: `{content['command']}` ([{path.name}]({path.name})).",
        f"- {described(content['machine'])}",
        "",
    ]
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not complete JSON ({error}); measure again") from error
    missing = KEYS - content.keys() if isinstance(content, Mapping) else KEYS
    if missing:
        raise UserError(f"{path} has no {', '.join(sorted(missing))}: not a measurement")
    return dict(content)


def _markdown_row(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def print_table(content: Mapping[str, Any], console: Console) -> None:
    """Print a measurement's table at a terminal's width, or in whole lines for a log."""
    table = content["table"]
    shown = Table(title=table["title"], box=SIMPLE_HEAD)
    for number, column in enumerate(table["columns"]):
        shown.add_column(column, justify="left" if number < 2 else "right")
    for row in table["rows"]:
        shown.add_row(*map(str, row))
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH, file=console.file)
    console.print(shown)
    for note in table["notes"]:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
