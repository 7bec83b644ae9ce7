"""The scaling benchmark: its formula finds known constants again, and a small run measures."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from conftest import REPOSITORY, Ended

from benchmarks.scaling_model import (
    CLUSTERS,
    Fit,
    Point,
    errors,
    fit,
    most_gpus,
    on_paper,
    points_of,
    ring,
    scaled_rate,
    training_hours,
)
from benchmarks.scaling_page import with_tables

KNOWN = Fit(
    compute={"thin": (0.002, 0.001), "resnet18": (0.05, 0.008)},
    latency=0.003,
    rank_bandwidth=0.8e9,
    overhead=1.06,
    overlap=0.7,
)
BYTES = {"thin": 4e6, "resnet18": 44.7e6}


def synthetic(*, seen: bool, links: tuple[float | None, ...], batch: int) -> Iterator[Point]:
    """Points that the known constants give, of two ranks."""
    for name, link in product(BYTES, links):
        compute = KNOWN.computing(name, batch)
        reduce = KNOWN.reducing(BYTES[name], ranks=2, link=link)
        point = Point(name, 2, batch, BYTES[name], link, compute, reduce, seen=seen)
        yield replace(point, step=KNOWN.step(point))


def test_known_constants_are_found_again_and_unseen_points_predicted() -> None:
    seen = [p for b in (8, 16) for p in synthetic(seen=True, links=(None, 1000, 10), batch=b)]
    unseen = [*synthetic(seen=False, links=(100, 250), batch=64)]
    wrong = [replace(point, step=1e3, compute=1e3, reduce=1e3) for point in unseen]
    found = fit([*seen, *wrong])  # whatever the unseen ones say
    assert found.overlap == pytest.approx(KNOWN.overlap)
    assert found.latency == pytest.approx(KNOWN.latency)
    assert found.rank_bandwidth == pytest.approx(KNOWN.rank_bandwidth)
    assert found.overhead == pytest.approx(KNOWN.overhead)
    for name, constants in KNOWN.compute.items():
        assert found.compute[name] == pytest.approx(constants)
    assert errors(found, unseen) == pytest.approx([0] * 4, abs=1e-9)
    assert errors(found, wrong) != pytest.approx([0] * 4, abs=0.1)


def test_a_point_is_the_median_of_all_rounds_and_bf16_halves_its_bytes() -> None:
    visit = {
        "network": "thin",
        "ranks": 2,
        "batch": 8,
        "link": None,
        "compression": "bf16",
        "bytes": 400,
        "seen": False,
        "seconds": {"compute": [1.0, 9.0], "reduce": [2.0], "step": [4.0]},
    }
    other = {**visit, "seconds": {"compute": [2.0], "reduce": [4.0, 6.0], "step": [3.0]}}
    (point,) = points_of([visit, other])
    assert (point.bytes, point.compute, point.reduce, point.step) == (200, 2.0, 4.0, 3.5)


def test_on_paper_one_gpu_is_its_own_measure_and_half_the_bytes_cost_half() -> None:
    assert (ring(1), ring(2), ring(4)) == (0, 1, 1.5)
    for cluster in CLUSTERS:
        alone = on_paper(cluster, 1, batch=64)
        assert (alone["reduce"], alone["worst"], alone["best"]) == (0, 1, 1)
        many, half = (on_paper(cluster, 8, batch=64, value_bytes=size) for size in (4, 2))
        assert many["reduce"] == pytest.approx(2 * half["reduce"])
        # 102.4 MB, 7/4 of them over the links inside a node.
        assert many["reduce"] == pytest.approx(1.75 * 102.4e6 / cluster.inside)
        assert many["worst"] < half["worst"] < 1


def test_on_paper_25_epochs_of_chest_xray14_are_their_images_at_one_gpus_rate() -> None:
    one = training_hours(CLUSTERS[0], 1, batch=64, images=86_524)
    assert one["steps_an_epoch"] == 1352
    assert one["hours"] == pytest.approx(25 * 1352 * 64 / 2711 / 3600)
    assert most_gpus(64) == 128
    assert scaled_rate(8192) == pytest.approx(3.2)


def test_the_page_shows_what_was_measured() -> None:
    content = json.loads((REPOSITORY / "benchmarks" / "scaling.json").read_text())
    page = (REPOSITORY / "docs" / "scaling.md").read_text()
    assert with_tables(page, content) == page
    assert len(content["errors"]["unseen"]) >= 6
    figure = (REPOSITORY / "docs" / "scaling.svg").read_text()
    assert re.match(r'<svg xmlns="http://www.w3.org/2000/svg" .*prefers-color-scheme', figure, re.S)


@pytest.mark.slow
def test_a_small_run_measures_steps_and_predicts_those_it_has_not_seen(tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    small = ["--rounds", "1", "--batches", "2", "4", "--side", "32", "--links", "1000"]
    command = ["python", "-m", "benchmarks.scaling", "--json", str(out), *small]
    ended = Ended.of(command, REPOSITORY)
    assert ended.exit_code == 0, ended.stderr
    content = json.loads(out.read_text())
    assert {point["seen"] for point in content["points"]} == {True, False}
    for point in content["points"]:
        assert min(point[key] for key in ("compute", "reduce", "step", "predicted")) > 0
    visit = next(one for one in content["visits"] if one["ranks"] == 2)
    assert sum(visit["buckets"]) == visit["bytes"]  # what is reduced alone is what DDP reduces
