"""Runs that are planned for a given time (``train.minutes``)."""

import pytest

from pipelines.errors import UserError
from support.training import lines
from vssl.engine.config import resolve
from vssl.engine.time_budget import TimeBudget
from vssl.engine.trainer import Trainer


class Run:
    """A run whose parts take given seconds, by a clock of its own."""

    def __init__(self, minutes, step, evaluation, interval, first_step=0.0):
        self.now = 0.0
        self.budget = TimeBudget(minutes, lambda: self.now)
        self.seconds, self.evaluation, self.interval = step, evaluation, interval
        self.done, self.planned_at = 0, None
        self.evaluate()
        self.now += first_step
        self.limit = self.total = 10**9
        while self.done < self.total:
            self.now += self.seconds
            self.done += 1
            if self.planned_at is None and self.budget.note_step(self.done):
                self.planned_at, self.total = self.done, self.budget.plan(self.done, self.interval, self.limit)
            if interval and (self.done % interval == 0 or self.done == self.total):
                self.evaluate()

    def evaluate(self):
        if self.interval:
            self.now += self.evaluation
            self.budget.note_evaluation(self.evaluation)


@pytest.mark.parametrize("minutes", [1, 30, 600])
@pytest.mark.parametrize("step", [0.03, 0.2, 1.5])
@pytest.mark.parametrize(("evaluation", "interval"), [(0, 0), (2, 20), (5, 333)])
def test_a_run_uses_its_time_and_ends_within_it(minutes, step, evaluation, interval):
    run = Run(minutes, step, evaluation, interval, first_step=20)
    assert run.budget.step == pytest.approx(step, rel=1e-3)
    slack = step + evaluation  # the plan is of whole steps, and the last interval may be short
    assert 0.9 * 60 * minutes - slack - 1e-6 <= run.now <= 0.9 * 60 * minutes + evaluation + 1e-6 <= 60 * minutes
    assert run.planned_at * step <= max(0.05 * 60 * minutes, 12) + 15 * step


def test_batches_that_were_loaded_beforehand_do_not_count():
    now = 0.0
    budget = TimeBudget(10, lambda: now)
    for done in range(1, 200):
        now += 0.001 if done < 8 else 1.0
        if budget.note_step(done):
            break
    assert budget.step == 1.0 and done < 30


def test_evaluations_that_take_most_of_the_time_do_not_delay_the_plan():
    run = Run(minutes=1, step=0.001, evaluation=2, interval=20)
    assert 50 < run.now < 60 and run.planned_at < 100


def test_a_plan_is_at_least_a_step_and_at_most_the_epochs():
    now = 0.0
    budget = TimeBudget(1, lambda: now)
    budget.step = 0.1
    assert budget.plan(7, 0, 100) == 100
    now = 100.0
    assert budget.plan(7, 0, 100) == 8


def test_a_run_without_time_left_ends_as_soon_as_its_pace_is_known(config, tmp_path, capsys):
    trainer = Trainer(config("train.minutes=0.0001", "train.epochs=100", "eval.every=1", "train.log_every=1"))
    trainer.fit()
    assert trainer.step == trainer.total_steps < 20 and trainer.step % 10
    (plan,) = [line for line in lines(tmp_path / "run") if "planned_steps" in line]
    assert plan["planned_steps"] == trainer.step and plan["seconds_per_step"] > 0
    assert [line["step"] for line in lines(tmp_path / "run") if "knn_top1" in line][-1] == trainer.step
    said = capsys.readouterr().err
    assert said.count("train.minutes=0.0001: ") == 1 and " of 100 epochs), at " in said
    assert trainer.schedule.steps == trainer.step and trainer.schedule.learning_rate(trainer.step) < 1e-9
    assert (tmp_path / "run/checkpoints" / f"step-{trainer.step:09}.pt").exists()
    assert (tmp_path / "run/backbone.safetensors").exists()


def test_a_resumed_run_keeps_its_plan(config, tmp_path):
    keys = ("train.minutes=0.0001", "train.epochs=100", "checkpoint.every_steps=1")
    whole = Trainer(config(*keys, "checkpoint.keep=99"))
    whole.fit()
    whole.directory.close()
    last = whole.total_steps - 1
    (tmp_path / "run/checkpoints" / f"step-{whole.total_steps:09}.pt").unlink()
    again = Trainer(config(*keys), "auto")
    assert (again.step, again.total_steps) == (last, whole.total_steps)
    again.fit()
    assert again.step == whole.step


def test_another_number_of_minutes_is_another_plan_and_none_is_all_epochs(config, tmp_path):
    keys = ("train.epochs=3", "checkpoint.every_steps=1")
    first = Trainer(config("train.minutes=0.0001", *keys))
    first.fit()
    first.directory.close()
    assert first.total_steps < 30
    for minutes in ("0", "600"):
        trainer = Trainer(config(f"train.minutes={minutes}", *keys), str(first.directory.path))
        assert trainer.total_steps == 30
        trainer.directory.close()


def test_views_that_grow_cannot_be_planned(config):
    with pytest.raises(UserError, match=r"train\.minutes plans .* but train\.first_size"):
        resolve(config("train.minutes=1", "train.first_size=8"))
