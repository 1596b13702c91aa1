"""Progressive resolution: the sizes, how the step and the loaders use them, and resuming at a smaller size."""

import functools
import gc
import os
import signal

import pytest
import torch

from pipelines.errors import UserError
from vssl.engine.progressive_resize import STAGES, view_side
from vssl.engine.trainer import Stopped, Trainer


def test_views_grow_to_full_size_in_equal_parts_of_a_run():
    sides = [view_side(epoch, 100, 128, 224) for epoch in range(100)]
    assert sides == [128] * 25 + [160] * 25 + [192] * 25 + [224] * 25


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("first", "full"), [(16, 32), (20, 30), (96, 224), (224, 224)])
def test_views_never_shrink_and_end_at_full_size(epochs, first, full):
    sides = [view_side(epoch, epochs, first, full) for epoch in range(epochs)]
    assert sides == sorted(sides) and sides[-1] == full and min(sides) >= min(first, full) - 4
    assert len(set(sides)) <= STAGES
    assert all(side % 8 == 0 for side in sides if side != full)


def test_without_a_first_size_all_views_are_full():
    assert {view_side(epoch, 10, 0, 224) for epoch in range(10)} == {224}


def watch_views(trainer):
    """The list that gets every step's (epoch, side of the views)."""
    seen = []

    def note(method, inputs):
        views, keys = inputs
        seen.append((keys.epoch.item(), views.full.shape[-1]))

    trainer.train_step.method.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize("form", ["resident", "ffcv", "dali", "torch"])
def test_the_step_sees_views_of_each_epochs_size(form, folders, packed, config, capsys):
    name = "dali" if form == "torch" else form
    if form == "dali":
        pytest.importorskip("nvidia.dali")
    source = packed("photographs", name).dir
    keys = ["data.limit=8", "data.batch_size=4", "data.image_size=32", "train.first_size=16", "train.epochs=4"]
    trainer = Trainer(config(f"data.dir={source}", f"data.loader={form}", *keys))
    seen = watch_views(trainer)
    trainer.fit()
    expected = [view_side(epoch, 4, 16, 32) for epoch in range(4)]
    assert expected[0] == 16 and len(set(expected)) == 3
    assert seen == [(epoch, side) for epoch, side in enumerate(expected) for _ in range(2)]
    assert "views of 16 pixels from epoch 0 on" in capsys.readouterr().err


def stop_at_step(config, number):
    def on_step(trainer):
        if trainer.step == number - 1:  # after the signal, the next step is finished and everything is saved
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = Trainer(config, on_step=on_step)
    with pytest.raises(Stopped):
        trainer.fit()
    assert trainer.step == number


def test_a_run_resumed_at_a_smaller_size_ends_with_the_same_bytes(config, tmp_path):
    keys = ["data.image_size=16", "train.first_size=8", "train.epochs=4", "checkpoint.every_steps=2", "data.limit=128"]
    Trainer(config(*keys, f"run.dir={tmp_path / 'whole'}")).fit()
    stop_at_step(config(*keys), 6)  # in the middle of the second epoch
    gc.collect()  # unlocks the run's directory
    Trainer(config(*keys), resume="auto").fit()
    whole, resumed = ((tmp_path / name / "backbone.safetensors").read_bytes() for name in ("whole", "run"))
    assert whole == resumed


def test_each_size_is_compiled(config, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    keys = ["data.image_size=16", "train.first_size=8", "train.epochs=2", "data.limit=64", "train.compile=true"]
    Trainer(config(*keys)).fit()
    err = capsys.readouterr().err
    assert err.count("compiled the step in") == 2 and "eager" not in err
    torch.compiler.reset()


def test_a_first_size_above_the_full_one_is_refused(config):
    with pytest.raises(UserError, match=r"^train.first_size=16 must not exceed data.image_size=8$"):
        Trainer(config("train.first_size=16"))


@pytest.mark.gpu
def test_on_a_gpu_each_size_is_compiled_and_captured(config, cuda, capsys):
    keys = ["data.image_size=16", "train.first_size=8", "train.epochs=4", "train.compile=true", "train.device=cuda"]
    trainer = Trainer(config(*keys))
    trainer.fit()
    sizes = {view_side(epoch, 4, 8, 16) for epoch in range(4)}
    assert capsys.readouterr().err.count("compiled the step in") == len(sizes) > 1
    assert trainer.step == trainer.total_steps
