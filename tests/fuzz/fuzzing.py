"""What the fuzzers share: the loop, its limits, and the ways to spoil bytes."""

import argparse
import faulthandler
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

SLOWEST_ALLOWED = 5.0  # seconds of one input
MEMORY = 2 * 1024**3  # bytes of address space beyond what the start takes
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1)

Spoil = Callable[[Random, bytes], bytes]


def spoiled(random: Random, content: bytes, others: list[bytes]) -> bytes:
    """`content` with one to four faults of any kind."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        content = random.choice(_WAYS)(random, content, others)
    return content


def _flip(random: Random, content: bytes, _: list[bytes]) -> bytes:
    spoilt = bytearray(content)
    for _place in range(random.choice((1, 1, 2, 8, 64))):
        if spoilt:
            spoilt[random.randrange(len(spoilt))] = random.randrange(256)
    return bytes(spoilt)


def _number(random: Random, content: bytes, _: list[bytes]) -> bytes:
    width = random.choice((1, 2, 4))
    place = random.randrange(max(1, min(len(content), random.choice((64, 1024, 10**9)))))
    number = random.choice(NUMBERS) % 256**width
    order = random.choice(("little", "big"))
    return content[:place] + number.to_bytes(width, order) + content[place + width :]  # type: ignore[arg-type]


def _cut(random: Random, content: bytes, _: list[bytes]) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _remove(random: Random, content: bytes, _: list[bytes]) -> bytes:
    start = random.randrange(len(content) + 1)
    return content[:start] + content[start + random.choice((1, 2, 8, 100, 5000)) :]


def _repeat(random: Random, content: bytes, _: list[bytes]) -> bytes:
    start = random.randrange(len(content) + 1)
    part = content[start : start + random.choice((1, 8, 64, 1000))]
    return content[:start] + part * random.choice((2, 3, 50)) + content[start:]


def _splice(random: Random, content: bytes, others: list[bytes]) -> bytes:
    other = random.choice(others)
    return content[: random.randrange(len(content) + 1)] + other[random.randrange(len(other)) :]


_WAYS = (_flip, _flip, _number, _number, _cut, _remove, _repeat, _splice)


def run(
    inputs: Iterator[bytes], judge: Callable[[Path], str], *, keep: Path, name: str, seconds: float
) -> tuple[Counter[str], int]:
    """Give inputs to `judge` until the time is over; returns the outcomes, and how many failed.

    An outcome is what `judge` says of a file in a word. Anything that it raises, more time than
    SLOWEST_ALLOWED or more memory than MEMORY is a failure, whose input is kept in `keep`. So is
    the input of a crash of the interpreter, as `keep`/running.
    """
    keep.mkdir(parents=True, exist_ok=True)
    outcomes: Counter[str] = Counter()
    slowest, failures, end = 0.0, 0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        for number, content in enumerate(inputs):
            if time.monotonic() > end:
                break
            path.write_bytes(content)
            (keep / "running").write_bytes(content)
            # Ends the process if the input hangs where Python cannot interrupt.
            faulthandler.dump_traceback_later(10 * SLOWEST_ALLOWED, exit=True)
            for _again in range(2):  # slow only once: a busy machine, not the input
                started = time.perf_counter()
                try:
                    outcome = judge(path)
                except Exception as error:  # noqa: BLE001 - that is what is looked for
                    outcome = f"FAILURE: {type(error).__name__}"
                    sys.stderr.write(f"{number}: {error!r}\n")
                took = time.perf_counter() - started
                if took <= SLOWEST_ALLOWED:
                    break
            faulthandler.cancel_dump_traceback_later()
            if took > SLOWEST_ALLOWED:
                outcome = "FAILURE: slow"
            slowest = max(slowest, took)
            outcomes[outcome] += 1
            if outcome.startswith("FAILURE"):
                failures += 1
                (keep / f"failure_{number}").write_bytes(content)
    (keep / "running").unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(f"slowest {slowest:.2f} s, peak memory {peak} MiB\n")
    return outcomes, failures


def main(
    inputs: Callable[[Random], Iterator[bytes]], judge: Callable[[Path], str], *, name: str
) -> None:
    """The command line of a fuzzer: exit 1 if an input failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"))
    given = parser.parse_args()
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY, here + MEMORY))
    outcomes, failures = run(
        inputs(Random(given.seed)), judge, keep=given.keep, name=name, seconds=60 * given.minutes
    )
    for outcome, count in outcomes.most_common():
        sys.stdout.write(f"{count:>9,}  {outcome}\n")
    sys.exit(1 if failures else 0)
