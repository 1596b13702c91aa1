"""Signals that stop a run: what is saved, and when."""

import signal
import subprocess
import sys
import time

import pytest

from support.training import (
    lines,
)
from vssl.config import to_yaml
from vssl.engine.trainer import Stopped, Trainer


def start(config_path, *arguments):
    command = [sys.executable, "train.py", "-c", str(config_path), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(run_dir, process):
    deadline = time.monotonic() + 90
    while not list(run_dir.glob("checkpoints/step-*.pt")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_sigterm_saves_and_exits(config, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config("checkpoint.every_steps=3", "train.epochs=50")))
    process = start(path)
    wait_for_checkpoint(tmp_path / "run", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143
    saved = int(sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))[-1].stem.split("-")[1])
    assert f"saved at step {saved}; continue with --resume auto" in err


SIGNALS = [
    (number, 128 + number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_saves_and_stops(config, number, code):
    trainer = Trainer(config("checkpoint.every_steps=1000"))

    def interrupt(*_):
        hook.remove()
        signal.raise_signal(number)

    hook = trainer.train_step.method.register_forward_pre_hook(interrupt)
    with pytest.raises(Stopped) as stopped:
        trainer.fit()
    assert stopped.value.code == code
    assert trainer.directory.checkpoints.newest()["step"] == trainer.step < trainer.total_steps


def test_an_ignored_signal_stays_ignored(config):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        trainer = Trainer(
            config("train.epochs=1", "data.limit=64"), on_step=lambda _: signal.raise_signal(signal.SIGHUP)
        )
        trainer.fit()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert trainer.step == trainer.total_steps


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_signal_in_an_evaluation_is_answered_before_its_next_batch(config, tmp_path, epochs):
    """The epoch is saved already, and a resumed run evaluates it."""
    trainer = Trainer(config("eval.every=1", "data.limit=128"))
    measure, batches = trainer.evaluation.measure, []

    def interrupted(backbone, probe, each):
        def note():
            batches.append(trainer.step)
            signal.raise_signal(signal.SIGTERM)
            each()

        return measure(backbone, probe, note if trainer.step == 4 * epochs else each)

    trainer.evaluation.measure = interrupted
    with pytest.raises(Stopped) as stopped:
        trainer.fit()
    trainer.directory.close()
    assert stopped.value.code == 143 and batches == [4 * epochs] and trainer.train_step.method.student.training
    assert trainer.directory.checkpoints.newest()["step"] == 4 * epochs
    resumed = Trainer(config("eval.every=1", "data.limit=128"), resume="auto")
    resumed.fit()
    resumed.directory.close()
    assert [line["step"] for line in lines(tmp_path / "run") if "knn_top1" in line] == [0, 4, 8]
    assert resumed.knn_first is not None


def test_an_epoch_is_saved_before_it_is_evaluated(config, tmp_path):
    """An evaluation that fails costs no epoch, and one that was done is not repeated."""
    trainer = Trainer(config("eval.every=1", "data.limit=128"))
    measure = trainer.evaluation.measure

    def fail(*arguments):
        result = measure(*arguments)
        if trainer.step == 4:
            trainer._write(**result)
            raise MemoryError
        return result

    trainer.evaluation.measure = fail
    with pytest.raises(MemoryError):
        trainer.fit()
    trainer.directory.close()
    resumed = Trainer(config("eval.every=1", "data.limit=128"), resume="auto")
    assert resumed.step == 4
    resumed.fit()
    assert [line["step"] for line in lines(tmp_path / "run") if "knn_top1" in line] == [0, 4, 8]
