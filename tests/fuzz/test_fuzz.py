"""Some inputs of each fuzzer, which by hand run as long as one likes."""

import os
from pathlib import Path

import pytest

from fuzz import fuzzing
from fuzz.fuzzers import FUZZERS

# Where an input takes long; of the others there are 300.
FEWER = {"manifest": 60, "overrides": 100, "predictions": 100, "checkpoint": 200}


@pytest.mark.filterwarnings("ignore")  # pydicom's and numpy's, of what the fuzzers write
@pytest.mark.parametrize("parser", FUZZERS)
def test_spoiled_inputs_are_read_or_refused(
    parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sync", lambda: None)  # of all disks, after each archive
    count = FEWER.get(parser, 300)
    figures = fuzzing.run(FUZZERS[parser], keep=tmp_path, seed=1, count=count)
    assert (figures.inputs, figures.failures) == (count, 0)
    taken = sum(n for word, n in figures.outcomes.items() if word.startswith(fuzzing.TAKEN))
    assert min(taken, count - taken) >= count // 50
