from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


@given(
    rows=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    epoch=st.integers(0, 3),
    ranks=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    sampler=st.sampled_from(["shuffle", "balanced", "table"]),
    resident=st.booleans(),
    further=st.data(),
)
def test_fault_22_23_57_a_stream_stopped_anywhere_and_resumed_by_any_ranks_is_the_uninterrupted_one(
    rows: int,
    batch_size: int,
    epoch: int,
    ranks: tuple[int, int],
    sampler: str,
    resident: bool,
    further: st.DataObject,
) -> None:
    order: dict[str, Any] = {"batch_size": batch_size, "shuffle": sampler != "table"}
    order["weights"] = np.arange(1.0, rows + 1) if sampler == "balanced" else None
    whole = EpochOrder(rows=rows, seed=3, **order)
    stop = further.draw(st.integers(0, len(whole)), label="stop")
    drawn: list[tuple[int, int]] = []
    state = {"epoch": epoch, "done": 0, "batch_size": batch_size}
    for world, steps in zip(ranks, (stop, len(whole) - stop), strict=True):
        for rank in range(world if steps else 0):
            part = loader(rows, resident=resident, rank=rank, ranks=world, **order)
            part.load_state_dict(state)
            part.set_epoch(epoch)
            for batch in islice(part, steps):
                pairs = zip(batch.draws.tolist(), batch.rows.tolist(), strict=True)
                drawn += [(draw, row) for draw, row in pairs if row >= 0]
            after = part.state_dict()
        state = after if steps else state
    assert sorted(drawn) == list(enumerate(whole.whole(epoch), epoch * rows))
    if sampler != "balanced":
        assert sorted(row for _, row in drawn) == list(range(rows))


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
