"""What the fuzzers share: the loop, its limits, and the ways to spoil bytes and plain values."""

import faulthandler
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

SLOWEST_ALLOWED = 5.0  # seconds of a processor for one input
HANGS = 200.0  # seconds after which an input that does not end is one that never would
MEMORY = 2 * 1024**3  # bytes of address space beyond what the start takes
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1)
# What words for success begin with.
TAKEN = ("decoded", "read", "unpacked", "converted", "whole")
# What may stand where a value of JSON, YAML or a checkpoint is looked for.
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 0.5, 16.0, 1e308, float("nan"), float("inf"), 2**31, 2**63),
    *(-(2**63), 10**30, "", " ", "x", "0", "nan", "\0", "\n", "\ud800", "<script>", "../x"),
    *("x" * 5000, "No Finding", "Mass", "image", [], {}, [None], {"": 0}, [[[[]]]], {"a": {}}),
)
# Texts that numbers are written with, and nesting without end: of it less, as PyYAML takes a tenth
# of a second for one.
TEXTS = (b"9" * 5000, b"1e999", b"NaN", b"-", b"\xff", b"\\ud800")
NESTED = (b"[" * 20_000, b'{"a":' * 5000)


@dataclass(frozen=True)
class Fuzzer:
    """A parser, its inputs, and what to say of one.

    Attributes:
        inputs: spoiled files without end.
        judge: what became of a file, in a word. Anything that it raises is a failure.
        file: the name of an input, which a parser may look at.
    """

    inputs: Callable[[Random], Iterator[bytes]]
    judge: Callable[[Path], str]
    file: str = "input"


@dataclass
class Figures:
    """What became of some inputs; those of which the outcome is a failure are kept."""

    inputs: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    failures: int = 0
    slowest_seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_mib: int = 0


def altered(random: Random, value: Any) -> Any:
    """A copy of nested plain values of which one place is another, is gone or is there twice."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return random.choice(VALUES)
    copy: Any = value.copy()
    key = random.choice(list(copy)) if isinstance(copy, dict) else random.randrange(len(copy))
    what = random.random()
    if what < 0.7:
        copy[key] = altered(random, copy[key])
    elif what < 0.8:
        del copy[key]
    elif isinstance(copy, list):
        copy.insert(key, copy[random.randrange(len(copy))])
    else:
        copy[random.choice(("", "x", "image", "\ud800", 7, random.choice(list(copy))))] = copy[key]
    return copy


def pieced(random: Random, seeds: Sequence[bytes], pieces: Sequence[bytes]) -> Iterator[bytes]:
    """Seeds with a few pieces of their grammar in the place of what they held, or spoiled."""
    while True:
        content = random.choice(seeds)
        for _ in range(random.choice((1, 1, 2, 3))):
            place = random.randrange(len(content) + 1)
            after = content[place + random.choice((0, 0, 1, 6)) :]
            content = content[:place] + random.choice(pieces) + after
        yield content if random.random() < 0.8 else text_spoiled(random, content, list(seeds))


def text_spoiled(random: Random, content: bytes, others: list[bytes]) -> bytes:
    """As `spoiled`, or with one of TEXTS or NESTED in it."""
    if random.random() < 0.5:
        return spoiled(random, content, others)
    place = random.randrange(len(content) + 1)
    text = random.choice(NESTED if random.random() < 0.05 else TEXTS)
    return content[:place] + text + content[place + random.choice((0, 1, 8)) :]


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


def run(fuzzer: Fuzzer, *, keep: Path, seed: int, count: int, seconds: float = 1e9) -> Figures:
    """Give inputs to a fuzzer's judge until there were `count` or the time is over.

    An outcome is what it says of a file in a word. Anything that it raises, more of a processor
    than SLOWEST_ALLOWED or more memory than MEMORY is a failure, whose input is kept in `keep`. So
    is the input of a crash of the interpreter, in `keep`/running.
    """
    path = keep / "running" / fuzzer.file
    path.parent.mkdir(parents=True, exist_ok=True)
    figures, start, end = Figures(), time.process_time(), time.monotonic() + seconds
    armed = -HANGS
    for number, content in enumerate(islice(fuzzer.inputs(Random(seed)), count)):
        now = time.monotonic()
        if now > end:
            break
        if now - armed > HANGS / 4:  # seldom: it starts a thread
            # Ends the process if an input hangs where Python cannot interrupt.
            faulthandler.dump_traceback_later(HANGS, exit=True)
            armed = now
        path.write_bytes(content)
        started = time.process_time()
        try:
            outcome = fuzzer.judge(path)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            outcome = f"FAILURE: {type(error).__name__}"
            sys.stderr.write(f"{number}: {error!r}\n")
        took = time.process_time() - started
        if took > SLOWEST_ALLOWED:
            outcome = "FAILURE: slow"
        figures.inputs += 1
        figures.slowest_seconds = max(figures.slowest_seconds, took)
        figures.outcomes[outcome] += 1
        if outcome.startswith("FAILURE"):
            figures.failures += 1
            (keep / f"failure_{seed}_{number}").write_bytes(content)
    faulthandler.cancel_dump_traceback_later()
    figures.processor_seconds = time.process_time() - start
    figures.outcomes = dict(sorted(figures.outcomes.items()))
    figures.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return figures
