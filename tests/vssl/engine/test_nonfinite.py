"""Steps that are not finite, loss scaling, collapse: what they change, and what a run reports about them."""

import dataclasses
import itertools
import json
import math

import pytest
import torch

from pipelines.errors import UserError
from support.training import everything, first_batch, lines
from vssl.engine.nonfinite import Watch
from vssl.engine.trainer import Trainer
from vssl.optim import OPTIMIZERS
from vssl.runtime.precision import LossScale


def break_loss(trainer, at_call):
    """From a given call on, the loss is NaN."""
    calls = itertools.count(1)

    def spoil(method, inputs, output):
        return output._replace(loss=output.loss * float("nan")) if next(calls) >= at_call else output

    trainer.train_step.method.register_forward_hook(spoil)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_not_finite_changes_nothing(config, optimizer):
    trainer = Trainer(config(f"optim.name={optimizer}"))
    trainer.train_step.set_schedule(epoch=0, lr=0.1, probe_lr=0.1, tau=0.9)
    batch = first_batch(trainer)
    trainer.train_step(batch)
    before = everything(trainer)
    break_loss(trainer, at_call=1)
    trainer.train_step(batch)
    counters = sum(v.dtype == torch.int64 for v in before)
    same = [torch.equal(a, b) for a, b in zip(before, everything(trainer), strict=True)]
    assert sum(same) >= len(before) - counters  # BatchNorm still counts its batches
    assert all(s for s, v in zip(same, before, strict=True) if v.is_floating_point())
    assert trainer.train_step.watch.read() == (1, 2)
    assert trainer.train_step.watch.index.tolist() == batch.index.tolist()


def test_the_first_bad_batch_is_named_whole_and_alone():
    """A ragged batch leaves no image of a full one that was bad in an earlier window."""
    watch = Watch(4, torch.device("cpu"))
    for index, expected in (([5, 6, 7, 8], [5, 6, 7, 8]), ([1, 2], [1, 2, -1, -1])):
        watch.note(torch.tensor(False), torch.tensor(index))
        watch.note(torch.tensor(False), torch.tensor([3, 3, 3, 3]))
        assert watch.read() == (2, 1) and watch.index.tolist() == expected


def test_a_run_whose_loss_is_not_finite_stops_with_a_diagnosis_and_keeps_its_checkpoint(config, tmp_path):
    trainer = Trainer(config("checkpoint.every_steps=3"))
    batches = [batch.index.tolist() for batch in trainer.loader]
    trainer.loader.set_epoch(0)
    break_loss(trainer, at_call=6)
    with pytest.raises(UserError, match=r"not finite in 3 of the last steps, first in step 6; .*diagnosis\.json has"):
        trainer.fit()
    diagnosis = json.loads((tmp_path / "run" / "diagnosis.json").read_text())
    assert (diagnosis["first_bad_step"], diagnosis["bad_steps"], diagnosis["logged_at_step"]) == (6, 3, 8)
    assert diagnosis["last_healthy"]["step"] == 4 and math.isfinite(diagnosis["last_healthy"]["loss"])
    assert diagnosis["images"] == batches[5]
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert "step-000000003.pt" in kept


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_loss_scaling_recovers_from_overflow_and_then_changes_no_bit(config, tmp_path, optimizer):
    plain, scaled = (
        Trainer(config(f"optim.name={optimizer}", f"run.dir={tmp_path / name}")) for name in ("plain", "scaled")
    )
    scale = scaled.train_step.loss_scale = LossScale(torch.device("cpu"), enabled=True)
    scale.scale.fill_(2.0**72)  # overflows float32, because the gradients' squares are summed
    batch = first_batch(plain)
    for trainer in (plain, scaled):
        trainer.train_step.set_schedule(epoch=0, lr=0.1, probe_lr=0.1, tau=0.9)
    before = [w.clone() for w in scaled.train_step.method.parameters()]
    overflows = 0
    while True:
        scaled.train_step(batch)
        bad, _ = scaled.train_step.watch.read()
        if not bad:
            break
        overflows += 1
        assert scale.scale.item() == 2.0 ** (72 - overflows)
        assert all(torch.equal(a, b) for a, b in zip(before, scaled.train_step.method.parameters(), strict=True))
    assert 3 < overflows < 72
    plain.train_step(batch)
    # A power of two changes only exponents.
    for part in ("method", "probe"):
        pairs = zip(*(getattr(trainer.train_step, part).parameters() for trainer in (plain, scaled)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), part


def test_loss_scaling_gives_up_when_halving_does_not_help(config, tmp_path):
    trainer = Trainer(config("train.epochs=4", "train.log_every=10"))
    trainer.train_step.loss_scale = LossScale(torch.device("cpu"), enabled=True)
    break_loss(trainer, at_call=5)
    with pytest.raises(UserError, match="not finite in 10 of the last steps, first in step 21"):
        trainer.fit()
    assert [line["overflows"] for line in lines(tmp_path / "run") if "loss_scale" in line] == [6, 10, 10]
    assert json.loads((tmp_path / "run" / "diagnosis.json").read_text())["loss_scale"] < 1


def test_a_collapse_raises_an_alarm_once(config, capsys):
    trainer = Trainer(config())
    with torch.no_grad():  # an encoder that gives the same features for every image
        trainer.train_step.method.student.backbone.layer3[0].bn2.weight.zero_()
        trainer.train_step.method.student.backbone.layer3[0].downsample[1].weight.zero_()
        trainer.train_step.method.student.backbone.layer3[0].downsample[1].bias.fill_(1.0)
    trainer.schedule = dataclasses.replace(trainer.schedule, lr=0.0)
    trainer.fit()
    assert capsys.readouterr().err.count("step 4: collapse: feature_std is 0.0") == 1
