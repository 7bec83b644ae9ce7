"""The table of macro AUROC against minutes, from runs in folders."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

SAMPLE = REPOSITORY / "tests" / "results_sample.json"


def store(
    folder: Path, *, seed: int, auroc: float | None, minutes: float | None, **changes: Any
) -> Path:
    """A run folder with the sample's record, changed."""
    results = json.loads(SAMPLE.read_text())
    results |= {"seed": seed, "name": changes.get("name", "quick"), "status": "finished"}
    results["metrics"]["test"]["auroc_macro"] = auroc
    results["timing"]["total"] = None if minutes is None else 60 * minutes
    results["environment"]["device"] = changes.get("device", "a processor")
    results["config"] |= {"seed": seed, "stages": ["fit", "test"], "speed": {"threads": 1}}
    results["config"]["trainer"] = {"max_epochs": changes.get("epochs", 3)}
    results["config"]["data"] = {"image_size": 64}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def told(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.time_to_quality", *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_a_recipe_is_one_row_and_the_quickest_stands_first(tmp_path: Path) -> None:
    long = [
        store(tmp_path / f"long{seed}", seed=seed, auroc=auroc, minutes=10, name="long", epochs=48)
        for seed, auroc in enumerate((0.66, 0.68))
    ]
    quick = [
        store(tmp_path / f"quick{seed}", seed=seed, auroc=0.7, minutes=minutes)
        for seed, minutes in enumerate((1, 2, 6))
    ]
    done = told(*long, *quick, "--note", "Quiet.", "--json", tmp_path / "table.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "table.json").read_text())
    assert content == json.loads(done.stdout)
    rows = [
        dict(zip(content["table"]["columns"], r, strict=True)) for r in content["table"]["rows"]
    ]
    assert [(row["recipe"], row["epochs"], row["threads"]) for row in rows] == [
        ("quick", 3, "1"),
        ("long", 48, "1"),
    ]
    assert [row["minutes, median"] for row in rows] == ["2.0", "10.0"]
    assert rows[0]["shortest to longest"] == "1.0 to 6.0"
    assert (rows[1]["test macro AUROC, each"], rows[1]["mean"]) == ("0.660, 0.680", "0.670")
    assert content["table"]["notes"][-1] == "Quiet."
    assert [recipe["seeds"] for recipe in content["recipes"]] == [[0, 1, 2], [0, 1]]


@pytest.mark.slow
def test_recipes_of_an_earlier_record_stay_but_for_those_measured_again(tmp_path: Path) -> None:
    earlier, now = tmp_path / "earlier.json", tmp_path / "now.json"
    long = store(tmp_path / "long", seed=0, auroc=0.66, minutes=10, name="long", epochs=48)
    quick = store(tmp_path / "quick", seed=0, auroc=0.7, minutes=2)
    assert told(long, quick, "--json", earlier).returncode == 0
    again = store(tmp_path / "again", seed=0, auroc=0.71, minutes=12)
    assert told(again, "--earlier", earlier, "--json", now).returncode == 0
    rows = json.loads(now.read_text())["table"]["rows"]
    assert [(row[0], row[5]) for row in rows] == [("long", "0.660"), ("quick", "0.710")]
    other = store(tmp_path / "other", seed=0, auroc=0.71, minutes=12, device="another")
    done = told(other, "--earlier", earlier)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("of other images or another device than these runs\n")
    done = told(again, "--earlier", tmp_path / "nothing.json")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "nothing.json is no such record" in done.stderr


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"device": "another"}, "several kinds of device: a processor, another"),
        ({"auroc": None}, "is no finished training with a test macro AUROC"),
        ({"minutes": None}, "does not say how long it took"),
    ],
    ids=["device", "no score", "no time"],
)
def test_what_does_not_compare_is_refused_in_one_line(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    one = store(tmp_path / "one", seed=0, auroc=0.7, minutes=1)
    other = store(tmp_path / "other", **({"seed": 1, "auroc": 0.7, "minutes": 1} | changes))
    done = told(one, other)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
