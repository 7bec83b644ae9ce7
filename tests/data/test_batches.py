from typing import Any

import numpy as np
import pytest
import torch

from xray_lightning.data.loader import (
    Batch,
    BatchLoader,
    EpochOrder,
    HostFeed,
    ResidentFeed,
    balanced_weights,
    upload,
)


class NumberedStore:
    """Images whose every pixel is their row, so that a test can see which were read."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def read(self, rows: np.ndarray) -> np.ndarray:
        return np.repeat(rows.astype(np.uint8), 4).reshape(-1, 2, 2)


def loader(
    rows: int = 10, *, first_row: int = 0, resident: bool = False, **order: object
) -> BatchLoader:
    settings: dict[str, object] = {"batch_size": 4, "shuffle": True, "seed": 3} | order
    targets = torch.arange(rows, dtype=torch.float32).unsqueeze(1).repeat(1, 14)
    store = NumberedStore(first_row + rows)
    side = {"store_rows": first_row + np.arange(rows), "targets": targets}
    feed: HostFeed | ResidentFeed = HostFeed(store, **side)  # type: ignore[arg-type]
    if resident:
        images = upload(store, image_size=2, device=torch.device("cpu"), share=1)
        assert images is not None
        feed = ResidentFeed(images, **side)  # type: ignore[arg-type]
    return BatchLoader(feed, EpochOrder(rows=rows, **settings))  # type: ignore[arg-type]


def orders(rows: int, batch_size: int, ranks: int, **further: Any) -> list[EpochOrder]:
    """Those of every rank."""
    given = {"rows": rows, "batch_size": batch_size, "ranks": ranks, **further}
    return [EpochOrder(rank=rank, **given) for rank in range(ranks)]


def visited(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.rows.tolist() if row >= 0]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 7, 10, 103])
@pytest.mark.parametrize("shuffle", [True, False])
def test_fault_57_every_image_is_visited_exactly_once_at_any_number_of_ranks(
    ranks: int, rows: int, shuffle: bool
) -> None:
    shares = [
        [row for mine, _ in order.share(5) for row in mine if row >= 0]
        for order in orders(rows, 8, ranks, shuffle=shuffle)
    ]
    assert sorted(row for share in shares for row in share) == list(range(rows))


def test_fault_23_the_global_order_does_not_depend_on_the_number_of_ranks() -> None:
    alone = EpochOrder(rows=20, batch_size=8, shuffle=True, seed=1)
    ranks = orders(20, 8, 3, shuffle=True, seed=1)
    for step, (whole, size) in enumerate(alone.share(2)):
        parts = [list(order.share(2))[step][0] for order in ranks]
        assert size == len(whole)
        assert sorted(row for part in parts for row in part if row >= 0) == sorted(whole)


@pytest.mark.parametrize("rows", [9, 10, 11, 12, 13])
def test_fault_57_in_evaluation_all_ranks_get_equally_many_rows(rows: int) -> None:
    lengths = [
        [len(mine) for mine, _ in order.share(0)] for order in orders(rows, 5, 3, shuffle=False)
    ]
    assert lengths[0] == lengths[1] == lengths[2]


def test_in_training_a_rank_repeats_a_row_only_if_it_would_have_none() -> None:
    shares = [list(order.share(0)) for order in orders(10, 9, 3, shuffle=True)]
    full, tail = zip(*shares, strict=True)  # one image of the tail for three ranks
    assert [(rows < 0).sum() for rows, _ in tail] == [0, 1, 1]
    assert all((rows >= 0).all() for rows, _ in full)


def test_scaled_sums_of_the_ranks_average_to_the_mean_of_the_global_batch() -> None:
    loss = np.random.default_rng(0).random(10)
    for step in range(3):
        parts = []
        for rank in range(3):
            batch = list(loader(10, batch_size=4, rank=rank, ranks=3))[step]
            counted = batch.rows[batch.rows >= 0].numpy()
            parts.append(loss[counted].sum() * batch.scale)
        whole = list(EpochOrder(rows=10, batch_size=4, shuffle=True, seed=3).share(0))[step][0]
        assert np.mean(parts) == pytest.approx(loss[whole].mean())


def test_epochs_differ_and_the_same_seed_repeats_them() -> None:
    order = EpochOrder(rows=50, batch_size=8, shuffle=True, seed=1)
    again = EpochOrder(rows=50, batch_size=8, shuffle=True, seed=1)
    other = EpochOrder(rows=50, batch_size=8, shuffle=True, seed=2)
    assert (order.whole(0) == again.whole(0)).all()
    assert (order.whole(0) != order.whole(1)).any()
    assert (order.whole(0) != other.whole(0)).any()


def test_a_batch_holds_the_pixels_and_targets_of_its_rows() -> None:
    for batch in loader(10, first_row=5):
        assert batch.images.shape == (len(batch.rows), 1, 2, 2)
        assert batch.images.dtype == torch.uint8
        assert batch.images[:, 0, 0, 0].tolist() == (batch.rows + 5).tolist()
        assert batch.targets[:, 0].tolist() == batch.rows.tolist()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("ranks", [1, 3])
def test_batches_cut_on_the_device_are_those_of_the_store(ranks: int, shuffle: bool) -> None:
    for rank in range(ranks):
        settings = {"first_row": 3, "rank": rank, "ranks": ranks, "shuffle": shuffle}
        host = loader(10, **settings)  # type: ignore[arg-type]
        device = loader(10, resident=True, **settings)  # type: ignore[arg-type]
        for expected, found in zip(host, device, strict=True):
            for one, other in zip(expected[:-1], found[:-1], strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)
            assert expected.scale == found.scale


def test_images_beyond_their_share_of_the_device_are_not_uploaded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    store = NumberedStore(4)
    assert upload(store, image_size=2, device=torch.device("cpu"), share=0.9) is None
    assert "data.device_memory_share=0.9" in caplog.text
    whole = upload(store, image_size=2, device=torch.device("cpu"), share=1)
    assert whole is not None
    assert whole[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("stop", [1, 2])
def test_fault_22_a_loader_resumed_in_mid_epoch_goes_on_where_it_stopped(stop: int) -> None:
    straight, stopped = loader(), loader()
    straight.set_epoch(1)
    stopped.set_epoch(1)
    batches = iter(stopped)
    first = [next(batches) for _ in range(stop)]
    state = stopped.state_dict()

    resumed = loader()
    resumed.load_state_dict(state)
    resumed.set_epoch(1)
    rest = list(resumed)
    assert visited(first) + visited(rest) == visited(list(straight))
    resumed.set_epoch(2)
    straight.set_epoch(2)
    assert visited(list(resumed)) == visited(list(straight))


@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
def test_fault_23_a_draw_has_the_same_number_and_row_at_any_number_of_ranks(sampler: str) -> None:
    weights = np.ones(10) if sampler == "balanced" else None

    def drawn(ranks: int) -> dict[int, int]:
        found = {}
        for rank in range(ranks):
            part = loader(10, rank=rank, ranks=ranks, weights=weights)
            for epoch in range(2):
                part.set_epoch(epoch)
                for batch in part:
                    pairs = zip(batch.draws.tolist(), batch.rows.tolist(), strict=True)
                    found |= {draw: row for draw, row in pairs if row >= 0}
        return found

    assert sorted(drawn(1)) == list(range(20))
    assert drawn(1) == drawn(2) == drawn(3)


def test_a_loader_can_be_left_early_and_starts_again_from_the_beginning() -> None:
    batches = loader()
    next(iter(batches))
    assert len(visited(list(batches))) == 10


def test_an_error_in_reading_reaches_the_consumer() -> None:
    class BrokenStore(NumberedStore):
        def read(self, rows: np.ndarray) -> np.ndarray:
            raise OSError("the disk is gone")

    order = EpochOrder(rows=4, batch_size=2, shuffle=False)
    feed = HostFeed(BrokenStore(4), store_rows=np.arange(4), targets=torch.zeros(4, 14))
    broken = BatchLoader(feed, order)
    with pytest.raises(OSError, match="the disk is gone"):
        list(broken)


def test_balanced_sampling_draws_a_rare_finding_as_often_as_a_common_one() -> None:
    labels = np.zeros((1000, 14), dtype=np.uint8)
    labels[:10, 0] = 1  # rare
    labels[10:410, 1] = 1  # common; the rest has no finding
    weights = balanced_weights(labels)
    order = EpochOrder(rows=1000, batch_size=10, shuffle=True, seed=0, weights=weights)
    drawn = np.concatenate([order.whole(epoch) for epoch in range(20)])
    share = labels[drawn].mean(axis=0)
    assert share[0] == pytest.approx(1 / 3, abs=0.02)
    assert share[1] == pytest.approx(1 / 3, abs=0.02)
