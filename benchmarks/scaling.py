"""Scaling of data-parallel training: measured here, fitted, and extrapolated to GPU clusters.

    python -m benchmarks.scaling --json benchmarks/scaling.json
    python -m benchmarks.scaling --page docs/scaling.md --json benchmarks/scaling.json

The ranks run on hosts of network namespaces, with one thread each, and the link between them is
shaped by `tc`; where that is not allowed they run on this host, with no link to shape. Every round
goes through all settings, every other round in reverse order.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from benchmarks.network_hosts import Host, lacking, network, shape
from benchmarks.results import record
from benchmarks.scaling_model import errors, fit, points_of
from benchmarks.scaling_page import summary_table, write_page
from xray_lightning.errors import UserError
from xray_lightning.files import write_atomically
from xray_lightning.workers import threads as cores

REPOSITORY = Path(__file__).resolve().parents[1]
LINKS = (None, 1000.0, 100.0, 10.0)  # Mbit/s
MOST_REPEATS, LEAST_REPEATS, SECONDS_A_VISIT = 20, 2, 1.2
PORT = 29531


@dataclass(frozen=True)
class Setting:
    """One setting to measure; a visit is one measurement of it, with several repeats.

    Attributes:
        batch: images a rank.
        seen: whether the fit uses it, or it is held out.
        expected: rough seconds of a step, which determine the number of repeats.
    """

    network: str
    ranks: int
    batch: int
    link: float | None = None
    compression: str | None = None
    threads: int = 1
    seen: bool = True
    expected: float = 0.2

    @property
    def repeats(self) -> int:
        wanted = round(SECONDS_A_VISIT / self.expected)
        return max(LEAST_REPEATS, min(MOST_REPEATS, wanted))


def settings(ranks: int, *, links: Sequence[float | None], batches: Sequence[int]) -> list[Setting]:
    """Settings of one rank at each batch, and of all ranks at each batch and link.

    The last batch, 100 Mbit/s and compressed gradients are held out from the fit.
    """
    unseen = batches[-1]
    found = [
        Setting(name, 1, batch, seen=False, expected=0.01 * batch)
        for name in ("thin", "resnet18")
        for batch in (*batches, ranks * batches[-1])
    ]
    found.append(Setting("resnet18", 1, batches[-1], threads=ranks, seen=False))
    for link in links:
        million = 8 * 4 / (link or 8000)  # seconds to send a million parameters
        for batch in batches if link is None or link > 10 else (batches[0], unseen):
            seen = link != 100 and batch != unseen
            seconds = 0.002 * batch + million
            found.append(Setting("thin", ranks, batch, link, seen=seen, expected=seconds))
        for batch in batches if link is None or link > 100 else (batches[0], unseen):
            seen = link != 100 and batch != unseen
            seconds = 0.01 * batch + 11.2 * million
            if link is None or link > 10:
                found.append(Setting("resnet18", ranks, batch, link, seen=seen, expected=seconds))
    compressed = [link for link in links if link is not None and link >= 100]
    return found + [
        Setting("resnet18", ranks, batches[0], link, "bf16", seen=False, expected=180 / link)
        for link in compressed
    ]


class Ranks:
    """The rank processes, each on a host, and the link between the hosts."""

    def __init__(self, hosts: Sequence[Host], count: int) -> None:
        self._hosts = hosts
        self._link: float | None = None
        address = hosts[0].address if hosts else "127.0.0.1"
        self._processes = [self._start(rank, count, address) for rank in range(count)]

    def _start(self, rank: int, count: int, address: str) -> "subprocess.Popen[str]":
        arguments = [sys.executable, "-m", "benchmarks.scaling_rank"]
        arguments += [str(rank), str(count), address, str(PORT)]
        interface = self._hosts[rank].interface if self._hosts else "lo"
        env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": interface}
        env["OMP_WAIT_POLICY"] = "PASSIVE"
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": None}
        if self._hosts:
            return self._hosts[rank].start(arguments, folder=REPOSITORY, env=env, **pipes)
        return subprocess.Popen(
            arguments, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, text=True, **pipes
        )

    def ask(self, ask: dict[str, Any], *, ranks: int) -> list[dict[str, Any]]:
        """Send a request to the first `ranks` ranks; returns their answers."""
        asked = self._processes[:ranks]
        for process in asked:
            assert process.stdin is not None  # noqa: S101 - piped above
            process.stdin.write(json.dumps(ask) + "\n")
            process.stdin.flush()
        answers = []
        for process in asked:
            assert process.stdout is not None  # noqa: S101
            line = process.stdout.readline()
            if not line:
                raise UserError("a rank of the benchmark has ended; see its message above")
            answers.append(json.loads(line))
        return answers

    def visit(self, setting: Setting, *, side: int) -> dict[str, Any]:
        """Shape the link and time one setting; `seconds` are each repeat's on the slowest rank."""
        if setting.link != self._link:
            for host in self._hosts[1:]:
                shape(host, mbit=setting.link)
            self._link = setting.link
        alone = setting.ranks == 1
        kinds = ["compute"] if alone else ["compute", "reduce", "step"]
        ask = {
            "model": setting.network,
            "batch": setting.batch,
            "side": side,
            "alone": alone,
            "compression": setting.compression,
            "threads": setting.threads,
            "repeats": setting.repeats,
            "kinds": kinds,
        }
        answers = self.ask(ask, ranks=setting.ranks)
        seconds = {
            kind: [max(times) for times in zip(*(one[kind] for one in answers), strict=True)]
            for kind in kinds
        }
        own = {key: value for key, value in asdict(setting).items() if key != "expected"}
        first = answers[0]
        skew = [median(one["compute"]) for one in answers]
        return {
            **own,
            "bytes": first["bytes"],
            "buckets": first["buckets"],
            "seconds": seconds,
            "skew": max(skew) - min(skew),
        }

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None  # noqa: S101
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def started(count: int) -> Iterator[Ranks]:
    """Start `count` ranks, each on a host of its own if hosts can be made."""
    with ExitStack() as stack:
        hosts = [] if lacking() else stack.enter_context(network(count))
        ranks = Ranks(hosts, count)
        stack.callback(ranks.close)
        yield ranks


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Visits of all rounds; stops before a round that would probably exceed `--seconds`."""
    why = lacking()
    if why:
        sys.stderr.write(f"no link is shaped: {why}\n")
    links = [None] if why else [None, *options.links]
    chosen = settings(options.ranks, links=links, batches=options.batches)
    visits: list[dict[str, Any]] = []
    start = monotonic()
    with started(options.ranks) as ranks:
        for kind in {(one.network, one.ranks, one.compression) for one in chosen}:
            # Build models and DDP's buckets while the link is not limited.
            network_, count, compression = kind
            warm = Setting(network_, count, options.batches[0], None, compression, expected=1.0)
            ranks.visit(warm, side=options.side)
        for number in range(options.rounds):
            before = monotonic()
            order = chosen[:: -1 if number % 2 else 1]
            visits += [{"round": number, **ranks.visit(one, side=options.side)} for one in order]
            now = monotonic()
            load = os.getloadavg()[0]
            sys.stderr.write(f"round {number}: {now - before:.0f} s, load {load:.1f}\n")
            if now - start + (now - before) > options.seconds:
                break
    return visits


def content_of(
    visits: list[dict[str, Any]], *, ranks: int, side: int, batches: Sequence[int]
) -> dict[str, Any]:
    """The points, the fit, its errors and the table of these visits."""
    points = points_of([visit for visit in visits if visit["threads"] == 1])
    fitted = fit(points)
    several = [point for point in points if point.ranks > 1]
    told = {
        "settings": {
            "ranks": ranks,
            "side": side,
            "batches": list(batches),
            "rounds": 1 + max(visit["round"] for visit in visits),
            "cores": cores(),
            "links": [link for link in {point.link for point in points} if link],
        },
        "points": [{**asdict(point), "predicted": fitted.step(point)} for point in several],
        "fit": asdict(fitted),
        "errors": {
            "seen": errors(fitted, [point for point in several if point.seen]),
            "unseen": errors(fitted, [point for point in several if not point.seen]),
        },
        "visits": visits,
    }
    return {**told, "table": summary_table(told)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--json", type=Path, required=True, help="the file of measurements")
    parser.add_argument("--page", type=Path, help="write its tables and figure into this page")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--oversubscribe", action="store_true", help="more ranks than cores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=600, help="the most; whole rounds")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32], help="a rank")
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--links", type=float, nargs="*", default=LINKS[1:], help="in Mbit/s")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.page is None:
        if options.ranks > cores() and not options.oversubscribe:
            raise UserError(f"--ranks {options.ranks}: more than {cores()} cores; --oversubscribe")
        asked = {"ranks": options.ranks, "side": options.side, "batches": options.batches}
        content = content_of(measure(options), **asked)
        content = {**record("scaling", table=content["table"]), **content}
        write_atomically(options.json, json.dumps(content, indent=1) + "\n")
        return
    content = json.loads(options.json.read_text(encoding="utf-8"))
    asked = {key: content["settings"][key] for key in ("ranks", "side", "batches")}
    content |= content_of(content["visits"], **asked)  # fit again, with the current formula
    write_atomically(options.json, json.dumps(content, indent=1) + "\n")
    write_page(options.page, content)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
