"""Small trainings, and what tests of training compare."""

import contextlib
import json
from pathlib import Path

import torch

from vssl.config import to_yaml
from vssl.engine.checkpoint import Checkpoints
from vssl.engine.config import load_config, resolve
from vssl.engine.trainer import Trainer
from vssl.methods import build_method

# Seconds of training on a CPU.
SMALL = (
    "method.projector_hidden=32",
    "method.latent=8",
    "train.epochs=2",
    "train.compile=false",
    "train.device=cpu",
    "eval.every=0",
)


def small_config(data_dir, run_dir, *overrides):
    """A run of a few seconds on the digits; overrides are ``key=value``."""
    settings = [
        f"data.dir={data_dir}",
        f"run.dir={run_dir}",
        "data.limit=320",
        "data.batch_size=32",
        "data.image_size=8",
        "train.log_every=4",
        *SMALL,
    ]
    return load_config("configs/demo.yaml", [*settings, *overrides])


def finish(config):
    """Train to the end; returns the run directory."""
    trainer = Trainer(config)
    trainer.fit()
    trainer.directory.close()
    return trainer.directory.path


def everything(trainer):
    """All tensors that a step changes, as one flat list."""
    flat = []

    def walk(value):
        if isinstance(value, torch.Tensor):
            flat.append(value.clone())
        elif isinstance(value, dict):
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(trainer.train_step.state_dict())
    return flat


def save_untrained(config):
    """Save a checkpoint of an untrained student in the config's run directory; returns the directory."""
    settings = resolve(config)
    method = build_method(settings.method, settings.model, settings.data.image_size)
    run = Path(settings.run.dir)
    Checkpoints(run / "checkpoints", keep=1).save(0, {"step": 0, "method": method.state_dict()})
    (run / "config.yaml").write_text(to_yaml(settings))
    return run


def lines(run_dir):
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def measured(run_dir):
    """The lines of ``metrics.jsonl`` that have a loss."""
    return [line for line in lines(run_dir) if "loss" in line]


def losses(run_dir):
    """The loss by step."""
    return {line["step"]: line["loss"] for line in measured(run_dir)}


class Killed(Exception):
    pass


def kill_after(config, steps, world=None):
    """Train until the process "dies" after a step, without saving at that moment."""

    def on_step(trainer):
        if trainer.step == steps:
            raise Killed

    trainer = Trainer(config, None, world, on_step)
    with contextlib.suppress(Killed):
        trainer.fit()
    assert trainer.step == steps < trainer.total_steps
    if trainer.directory is not None:  # only the first process has one
        trainer.directory.close()


def assert_a_killed_run_ends_the_same(config, tmp_path, *overrides):
    """Kill a run of 20 steps in its second epoch, two steps after a checkpoint, and resume it: its weights and all else
    in its state are bit for bit those of a run that was not killed. Returns both trainings."""
    common = (*overrides, "checkpoint.every_steps=3")
    whole = Trainer(config(*common, f"run.dir={tmp_path / 'whole'}"))
    whole.fit()
    kill_after(config(*common), steps=14)
    resumed = Trainer(config(*common), resume="auto")
    assert resumed.step == 12
    resumed.fit()
    for a, b in zip(everything(whole), everything(resumed), strict=True):
        assert torch.equal(a, b)
    return whole, resumed


def first_batch(trainer):
    return next(iter(trainer.loader))
