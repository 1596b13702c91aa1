"""The sampler's order, state, and slices for each process."""

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.loading.sampler import Sampler


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler.remaining())


def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide():
    sampler = Sampler(1000, 100, seed=3)
    first, again, next_epoch = epoch_of(sampler, 0), epoch_of(sampler, 0), epoch_of(sampler, 1)
    other_seed = epoch_of(Sampler(1000, 100, seed=4), 0)
    np.testing.assert_array_equal(first, again)
    for batches in (first, next_epoch, other_seed):
        assert np.concatenate(batches).dtype == np.int64
        np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(1000))
    assert (np.concatenate(first) != np.concatenate(next_epoch)).mean() > 0.9
    assert (np.concatenate(first) != np.concatenate(other_seed)).mean() > 0.9


def test_every_sample_comes_first_equally_often():
    sampler = Sampler(8, 4, seed=0)
    firsts = np.bincount([epoch_of(sampler, epoch)[0][0] for epoch in range(1600)], minlength=8)
    # Binomial(1600, 1/8): mean 200, standard deviation 13.2.
    assert np.abs(firsts - 200).max() < 5 * 13.2


def test_seeds_and_epochs_are_not_mixed_up():
    orders = {
        tuple(np.concatenate(epoch_of(Sampler(50, 10, seed=seed), epoch))) for seed in range(6) for epoch in range(6)
    }
    assert len(orders) == 36


def test_without_shuffle_the_order_is_the_packed_one():
    batches = list(Sampler(10, 4, shuffle=False, drop_last=False).remaining())
    assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(("batch_size", "world_size"), [(12, 4), (10, 4), (3, 4)])
def test_processes_partition_the_same_global_batches_whatever_the_world_size(batch_size, world_size):
    alone = epoch_of(Sampler(50, batch_size, seed=1), 2)
    ranks = [epoch_of(Sampler(50, batch_size, seed=1, rank=r, world_size=world_size), 2) for r in range(world_size)]
    for number, whole in enumerate(alone):
        parts = [batches[number] for batches in ranks]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_drop_last_leaves_out_different_samples_each_epoch():
    sampler = Sampler(103, 10, seed=0)
    assert len(sampler) == 10
    left_out = [frozenset(range(103)) - {*np.concatenate(epoch_of(sampler, epoch)).tolist()} for epoch in range(20)]
    assert all(len(left) == 3 for left in left_out)
    assert len(set(left_out)) > 15


def test_keeping_the_last_batch_gives_every_sample_once():
    sampler = Sampler(103, 10, seed=0, drop_last=False)
    batches = epoch_of(sampler, 5)
    assert len(batches) == len(sampler) == 11
    assert len(batches[-1]) == 3
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(103))


def test_limit_is_a_fixed_subset_in_a_new_order_each_epoch():
    sampler = Sampler(1000, 8, seed=7, limit=64)
    first, second = np.concatenate(epoch_of(sampler, 0)), np.concatenate(epoch_of(sampler, 1))
    assert len(sampler) == 8
    assert set(first) == set(second) == set(sampler.indices)
    assert first.tolist() != second.tolist()
    assert set(first) != set(range(64)), "the first of the packed order would be the first classes"
    assert set(np.concatenate(epoch_of(Sampler(1000, 8, seed=8, limit=64), 0))) != set(first)


@pytest.mark.parametrize("limit", [0, 30, 31])
def test_a_limit_of_zero_or_at_least_the_count_changes_nothing(limit):
    assert set(np.concatenate(epoch_of(Sampler(30, 5, limit=limit), 0))) == set(range(30))


def test_state_continues_with_the_next_batch():
    sampler = Sampler(100, 10, seed=2)
    sampler.set_epoch(4)
    whole = list(sampler.remaining())
    for _ in range(3):
        sampler.advance()
    state = sampler.state_dict()
    assert state == {"seed": 2, "epoch": 4, "batches": 3}
    resumed = Sampler(100, 10, seed=2)
    resumed.load_state_dict(state)
    np.testing.assert_array_equal(list(resumed.remaining()), whole[3:])
    resumed.set_epoch(5)
    assert resumed.state_dict() == {"seed": 2, "epoch": 5, "batches": 0}


def test_looking_ahead_does_not_change_the_state():
    sampler = Sampler(100, 10, seed=2)
    list(sampler.remaining())
    assert sampler.state_dict()["batches"] == 0


def test_a_state_of_another_seed_is_refused():
    with pytest.raises(UserError, match="the saved run used seed 1, this one uses 2"):
        Sampler(10, 5, seed=2).load_state_dict({"seed": 1, "epoch": 0, "batches": 0})


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (9, {}, "9 images, data.batch_size=10, data.drop_last=True"),
        (100, {"limit": 9}, "9 images, data.batch_size=10, data.drop_last=True"),
        (0, {"drop_last": False}, "0 images, data.batch_size=10, data.drop_last=False"),
    ],
)
def test_no_batch_at_all_is_an_error(count, options, message):
    with pytest.raises(UserError, match=message):
        Sampler(count, 10, **options)
