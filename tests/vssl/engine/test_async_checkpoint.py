"""Checkpoints are written while the training goes on, with the state of their own step; no failed write is lost."""

import os
import shutil
import signal
import threading

import pytest
import torch

from pipelines.errors import UserError
from vssl.engine.async_checkpoint import Saver
from vssl.engine.checkpoint import Checkpoints, load_checkpoint
from vssl.engine.run_ahead import RunAhead
from vssl.engine.trainer import Trainer

CPU = torch.device("cpu")


class Slow(Checkpoints):
    """Writes nothing before ``go`` is set."""

    def __init__(self, directory):
        super().__init__(directory, keep=2)
        self.go = threading.Event()

    def save(self, step, state):
        self.go.wait()
        return super().save(step, state)


def make_state(value, device=CPU):
    weight = torch.full((2, 3, 4, 4), float(value), device=device).to(memory_format=torch.channels_last)
    counter = torch.tensor(value, device=device)
    return {"step": value, "method": {"w": weight}, "optimizer": {"state": {0: [counter, None]}, "name": "sgd"}}


def change(state):
    """What the next training steps do."""
    state["method"]["w"].zero_()
    state["optimizer"]["state"][0][0].zero_()
    state["optimizer"]["state"].clear()


def assert_saved(path, value):
    saved, expected = load_checkpoint(path), make_state(value)
    assert saved.keys() == expected.keys() and saved["step"] == value
    assert saved["method"]["w"].equal(expected["method"]["w"])
    assert saved["method"]["w"].is_contiguous(memory_format=torch.channels_last)
    assert saved["optimizer"] == expected["optimizer"]


def test_the_training_goes_on_while_a_checkpoint_is_written(tmp_path):
    checkpoints, state = Slow(tmp_path), make_state(1)
    with Saver(checkpoints, CPU) as saver:
        saver.save(1, state)
        assert not checkpoints.paths()
        change(state)
        checkpoints.go.set()
        saver.finish()
        assert_saved(*checkpoints.paths(), 1)


def test_a_second_save_waits_for_the_first_and_the_end_for_the_last(tmp_path):
    checkpoints = Slow(tmp_path)
    with Saver(checkpoints, CPU) as saver:
        saver.save(1, make_state(1))
        threading.Timer(0.2, checkpoints.go.set).start()
        saver.save(2, make_state(2))
    for path, value in zip(checkpoints.paths(), (1, 2), strict=True):
        assert_saved(path, value)


@pytest.fixture
def broken(tmp_path):
    """Checkpoints that cannot be written."""
    (tmp_path / "file").touch()
    return Checkpoints(tmp_path / "file", keep=2)


def test_a_failed_write_is_raised_by_the_next_save_or_at_the_end(broken):
    saver = Saver(broken, CPU)
    with pytest.raises(UserError, match=r"cannot write .*000001"), saver:
        saver.save(1, make_state(1))
        with pytest.raises(UserError, match=r"cannot write .*000000"):
            saver.save(2, make_state(2))
        saver.save(1, make_state(1))


def test_another_error_is_not_hidden_by_a_failed_write(broken, capsys):
    with pytest.raises(KeyError), Saver(broken, CPU) as saver:
        saver.save(1, make_state(1))
        raise KeyError
    assert capsys.readouterr().err.startswith("not saved: cannot write ")


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_a_run_that_could_not_save_ends_with_the_reason(config, tmp_path, number):
    """At its end, and also when a signal stopped it: then nothing may say that it was saved."""

    def on_step(trainer):
        if trainer.step == 2:
            shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
            (tmp_path / "run" / "checkpoints").touch()
            if number is not None:
                os.kill(os.getpid(), number)

    trainer = Trainer(config("train.epochs=1"), on_step=on_step)
    with pytest.raises(UserError, match="cannot write"):
        trainer.fit()
    assert trainer.step == (trainer.total_steps if number is None else 3)


@pytest.mark.gpu
def test_on_a_gpu_a_checkpoint_holds_the_state_of_its_step(cuda, tmp_path):
    state, checkpoints = make_state(1, cuda), Checkpoints(tmp_path, keep=2)
    with Saver(checkpoints, cuda) as saver:
        for value in (1, 2):
            torch.cuda._sleep(10**8)  # the state is written only after this
            state["method"]["w"].fill_(value)
            state["optimizer"]["state"][0] = [torch.tensor(value, device=cuda), None]
            saver.save(value, state | {"step": value})
            change(state)
    for path, value in zip(checkpoints.paths(), (1, 2), strict=True):
        assert_saved(path, value)


@pytest.mark.gpu
def test_the_host_runs_at_most_some_steps_ahead(cuda):
    run_ahead, done = RunAhead(cuda, steps=2), []
    for step in range(6):
        torch.cuda._sleep(10**8)
        done.append(torch.cuda.Event())
        done[-1].record()
        run_ahead.limit()
        assert all(event.query() for event in done[: max(0, step - 1)])
