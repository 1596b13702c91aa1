"""Learning rate and weight decay of every step; how long the warm-up is."""

import itertools

import pytest

from pipelines.errors import UserError
from vssl.optim.adamw import AdamWOptions
from vssl.optim.schedule import Schedule


def test_warm_up_rises_linearly_then_the_cosine_falls_to_zero():
    schedule = Schedule(lr=2.0, steps=100, warmup_steps=10)
    rates = [schedule.learning_rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:])) and 0 < rates[-1] < 0.01


def test_without_warm_up_the_first_rate_is_the_peak():
    assert Schedule(lr=2.0, steps=5, warmup_steps=0).learning_rate(0) == 2.0


def test_the_cosine_falls_to_the_final_rate():
    schedule = Schedule(lr=2.0, steps=110, warmup_steps=10, final_lr=0.5)
    rates = [schedule.learning_rate(step) for step in range(111)]
    assert rates[9:11] == [2.0, 2.0] and rates[60] == pytest.approx(1.25) and rates[110] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_weight_decay_is_constant_or_follows_a_cosine_over_the_whole_run():
    assert {Schedule(2.0, 100, 10, weight_decay=0.3).decay(step) for step in range(100)} == {0.3}
    schedule = Schedule(2.0, 100, 10, weight_decay=0.04, final_weight_decay=0.4)
    decays = [schedule.decay(step) for step in range(101)]
    assert [decays[0], decays[50], decays[100]] == pytest.approx([0.04, 0.22, 0.4])
    assert all(a < b for a, b in itertools.pairwise(decays))


def plan(warmup, epochs, steps_per_epoch=7, **options):
    options = AdamWOptions(name="adamw", lr=0.1, weight_decay=0.0, warmup_epochs=warmup, **options)
    return Schedule.of(options, batch_size=512, steps=epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch)


@pytest.mark.parametrize(
    ("warmup", "epochs", "steps"),
    [(None, 20, 14), (None, 1, 1), (None, 100, 70), (None, 1000, 70), (5.0, 20, 35), (0.0, 20, 0), (19.5, 20, 136)],
)
def test_a_given_warm_up_is_obeyed_and_none_is_ten_epochs_or_a_tenth(warmup, epochs, steps):
    assert plan(warmup, epochs).warmup_steps == steps


@pytest.mark.parametrize("warmup", [20.0, 30.0])
def test_a_warm_up_that_is_not_shorter_than_the_run_is_refused(warmup):
    with pytest.raises(UserError) as error:
        plan(warmup, 20)
    assert str(error.value) == (
        f"optim.warmup_epochs={warmup:g} is not shorter than the run of 20 epochs: make it smaller, or null for "
        "10 epochs but at most a tenth of the run"
    )


def test_rates_are_for_a_batch_of_256():
    schedule = plan(None, 20, final_lr=0.01)
    assert (schedule.lr, schedule.final_lr) == (0.2, 0.02)
