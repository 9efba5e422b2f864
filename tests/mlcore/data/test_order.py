"""The order of samples is a function of seed and epoch, whole, and the same for any number of ranks."""

import numpy as np
import pytest

from mlcore.data.order import EpochOrder


def indices(order: EpochOrder, epoch: int, start: int = 0) -> list[int]:
    return [i for key in order.batches(epoch, start=start) if key.real for i in key.indices]


LENGTHS = np.random.default_rng(0).integers(7, 30, 270).tolist()


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["random", "by-length"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 16, 270, 1000])
def test_every_sample_comes_exactly_once(lengths: list[int] | None, world_size: int, batch_size: int) -> None:
    ranks = [EpochOrder(270, batch_size, 5, lengths=lengths, rank=r, world_size=world_size) for r in range(world_size)]
    seen = sorted(i for order in ranks for i in indices(order, 3))
    assert seen == list(range(270))
    assert len({len(list(order.batches(3))) for order in ranks}) == 1, "every rank must run the same number of batches"


def test_order_depends_on_seed_and_epoch_alone() -> None:
    order = EpochOrder(100, 8, seed=1)
    assert indices(order, 4) == indices(EpochOrder(100, 8, seed=1), 4)
    assert indices(order, 4) != indices(order, 5)
    assert indices(order, 4) != indices(EpochOrder(100, 8, seed=2), 4)


def test_ranks_together_read_the_batches_of_one_process() -> None:
    alone = list(EpochOrder(50, 8, seed=1).batches(0))
    ranks = [list(EpochOrder(50, 4, seed=1, rank=r, world_size=2).batches(0)) for r in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert whole.indices == sum((part.indices for part in parts if part.real), ())


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["random", "by-length"])
def test_starting_in_the_middle_is_a_slice(lengths: list[int] | None) -> None:
    order = EpochOrder(270, 16, seed=3, lengths=lengths)
    assert list(order.batches(2, start=7 * 16)) == list(order.batches(2))[7:]


@pytest.mark.parametrize("start", [0, 8, 96, 264, 270])
def test_going_on_with_other_batches_misses_and_repeats_nothing(start: int) -> None:
    """A run on one rank with batches of 8 goes on with two ranks and batches of 11."""
    first = indices(EpochOrder(270, 8, seed=3), 2)[:start]
    ranks = [EpochOrder(270, 11, seed=3, rank=r, world_size=2) for r in range(2)]
    rest = [i for order in ranks for i in indices(order, 2, start)]
    assert sorted(first + rest) == list(range(270))


def test_an_epoch_is_over_when_no_batch_is_left() -> None:
    assert [EpochOrder(10, 4).is_over(p) for p in (0, 8, 9, 10, 12)] == [False, False, False, True, True]
    assert [EpochOrder(10, 4, drop_last=True).is_over(p) for p in (0, 6, 7, 8)] == [False, False, True, True]


def test_last_batch_is_short_and_a_rank_without_samples_gets_a_stand_in() -> None:
    order = [EpochOrder(9, 4, rank=r, world_size=2) for r in range(2)]
    last = [list(o.batches(0))[-1] for o in order]
    assert [key.real for key in last].count(True) == 1
    stand_in = next(key for key in last if not key.real)
    assert len(stand_in.indices) == 1


def test_drop_last_leaves_out_the_short_batch() -> None:
    order = EpochOrder(10, 4, drop_last=True)
    assert [len(key.indices) for key in order.batches(0)] == [4, 4]
    assert len(order) == 2


def test_grouping_by_length_spends_little_on_padding_and_stays_random() -> None:
    order = EpochOrder(270, 16, seed=0, lengths=LENGTHS)
    lengths = np.asarray(LENGTHS)
    padded = sum(lengths[list(k.indices)].max() * len(k.indices) for k in order.batches(0))
    assert 1 - lengths.sum() / padded < 0.05
    firsts = [min(lengths[list(k.indices)]) for k in order.batches(0)]
    assert firsts != sorted(firsts), "short batches must not always come first"
    assert list(order.batches(0)) != list(order.batches(1))
