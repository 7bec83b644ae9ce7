"""A few hundred inputs of each fuzzer, which by hand run as long as one likes."""

from itertools import islice
from pathlib import Path
from random import Random

import pytest

from fuzz import decoder, fuzzing, manifest


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of what the fuzzer writes
def test_spoiled_images_are_decoded_or_refused(tmp_path: Path) -> None:
    some = islice(decoder.inputs(Random(1)), 400)
    outcomes, failures = fuzzing.run(
        some, decoder.judge, keep=tmp_path, name=decoder.NAME, seconds=60
    )
    assert failures == 0
    assert min(outcomes["decoded"], outcomes["refused"]) > 20


def test_spoiled_tables_are_read_or_refused(tmp_path: Path) -> None:
    some = islice(manifest.inputs(Random(1)), 60)
    outcomes, failures = fuzzing.run(
        some, manifest.judge, keep=tmp_path, name=manifest.NAME, seconds=60
    )
    assert failures == 0
    assert min(outcomes["read and split"], outcomes["refused"]) > 5
