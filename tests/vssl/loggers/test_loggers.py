"""Where the figures of a run go: valid JSON, TensorBoard after a resume, and loggers that fail."""

import json
import math
import subprocess
import sys

import pytest
import torch

from pipelines.errors import UserError
from support.training import lines
from vssl.engine.trainer import Trainer
from vssl.loggers.base import Logger
from vssl.loggers.group import LoggerGroup
from vssl.loggers.jsonl import read_metrics
from vssl.runtime.precision import LossScale

OWN = """
from vssl.loggers.base import Logger

class Memory(Logger):
    calls = []

    def start(self, run, config, steps, done):
        self.calls.append(("start", run.name, config["train"]["epochs"], steps, done))

    def log(self, step, epoch, values):
        self.calls.append((step, epoch, values))

    def text(self, step, line):
        self.calls.append((step, line))

    def close(self):
        self.calls.append("close")

class Failing(Memory):
    calls = []

    def log(self, step, epoch, values):
        super().log(step, epoch, values)
        if step == 4:
            raise OSError(28, "No space left on device")

class Missing(Memory):
    calls = []

    def start(self, run, config, steps, done):
        import absent_library
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module ``own_loggers`` with ``OWN`` in it."""
    (tmp_path / "own_loggers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import own_loggers

    yield own_loggers
    del sys.modules["own_loggers"]


def strict(text):
    """JSON as its standard says, without NaN and Infinity."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def spoil(trainer, steps):
    """From now on the loss of these calls is NaN, counted from 1."""
    calls = iter(range(1, 1000))

    def hook(method, inputs, output):
        return output._replace(loss=output.loss * float("nan")) if next(calls) in steps else output

    trainer.train_step.method.register_forward_hook(hook)


def test_what_is_not_finite_is_null_and_left_out_when_read(tmp_path):
    group = LoggerGroup([], tmp_path, {}, 10, 0)
    group.log(3, 0.5, {"loss": math.nan, "lr": 0.1, "norm": math.inf, "changed": {"train.epochs": [1, 2]}})
    group.close()
    written = (tmp_path / "metrics.jsonl").read_text()
    assert strict(written) == {
        "step": 3, "epoch": 0.5, "loss": None, "lr": 0.1, "norm": None, "changed": {"train.epochs": [1, 2]},
    }  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text(written + '{"step": 4, "epoch": 0.6, "loss": NaN, "lr": Infinity}\n')
    first, of_an_earlier_version = read_metrics(tmp_path)
    assert first == {"step": 3, "epoch": 0.5, "lr": 0.1, "changed": {"train.epochs": [1, 2]}}
    assert of_an_earlier_version == {"step": 4, "epoch": 0.6}


def test_skipped_steps_do_not_enter_the_means_and_a_window_without_a_good_one_has_none(config, tmp_path):
    plain = Trainer(config("train.log_every=1", f"run.dir={tmp_path / 'plain'}", "train.epochs=1"))
    plain.fit()
    bad = Trainer(config("train.log_every=4", f"run.dir={tmp_path / 'bad'}", "train.epochs=1"))
    spoil(bad, {3, 4, 5, 6, 7, 8})
    bad.train_step.loss_scale = LossScale(torch.device("cpu"), enabled=True)  # then these steps do not end the run
    bad.fit()
    first, second, _ = [line for line in map(strict, (tmp_path / "bad/metrics.jsonl").open()) if "loss" in line]
    good = [line["loss"] for line in lines(tmp_path / "plain") if "loss" in line][:2]
    assert first["loss"] == pytest.approx(sum(good) / 2) and first["overflows"] == 2
    assert second["loss"] is None and second["grad_norm"] is None and second["overflows"] == 4


def test_an_own_logger_gets_everything(config, own):
    Trainer(config("train.loggers=[own_loggers:Memory]", "train.epochs=1")).fit()
    start, *figures, last = own.Memory.calls
    assert start == ("start", "run", 1, 10, 0) and last == "close"
    assert [step for step, _, values in figures if "loss" in values] == [4, 8, 10]


def test_alarms_reach_a_logger_as_text(config, own):
    trainer = Trainer(config("train.loggers=[own_loggers:Memory]", "train.epochs=1"))
    with torch.no_grad():  # an encoder that gives the same features for every image
        trainer.train_step.method.student.backbone.layer3[0].bn2.weight.zero_()
        trainer.train_step.method.student.backbone.layer3[0].downsample[1].weight.zero_()
    trainer.fit()
    assert any(len(call) == 2 and "collapse" in call[1] for call in own.Memory.calls)


@pytest.mark.parametrize(
    ("name", "reason", "calls"),
    [
        ("Failing", "OSError: [Errno 28] No space left on device", 3),
        ("Missing", "ModuleNotFoundError: No module named 'absent_library'", 1),
    ],
)
def test_a_logger_that_fails_is_reported_once_and_dropped(config, own, capsys, tmp_path, name, reason, calls):
    Trainer(config(f"train.loggers=[own_loggers:{name}, own_loggers:Memory]", "train.epochs=2")).fit()
    said = capsys.readouterr().err
    assert said.count("no further figures") == 1
    assert f"no further figures for the logger own_loggers:{name}: {reason}\n" in said
    assert len(getattr(own, name).calls) == calls and getattr(own, name).calls[-1] == "close"
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == [4, 8, 12, 16, 20]
    assert own.Memory.calls[-1] == "close" and own.Memory.calls[-2][0] == 20


@pytest.mark.parametrize(("names", "said"), [(["tensorboard"], 0), (["tensorboard", "own_loggers:Memory"], 1)])
def test_only_the_default_may_lack_its_library_in_silence(own, monkeypatch, capsys, tmp_path, names, said):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    group = LoggerGroup(names, tmp_path, {"train": {"epochs": 1}}, 10, 0)
    group.log(1, 0.1, {"loss": 1.0})
    group.close()
    assert capsys.readouterr().err.count("no further figures for the logger tensorboard") == said


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[tensorbord]", "train.loggers must be tensorboard or package.module:NAME, not 'tensorbord'"),
        ("tensorboard", "train.loggers must be a list of names, not 'tensorboard'"),
        ("[3]", "train.loggers must be text, not 3"),
    ],
)
def test_a_wrong_list_of_loggers_is_one_clear_line(config, value, message):
    with pytest.raises(UserError) as error:
        config(f"train.loggers={value}")
    assert message in str(error.value)


def test_an_own_logger_must_be_one(config, own, tmp_path):
    with pytest.raises(UserError, match=r"own_loggers:Logging: own_loggers has no Logging"):
        Trainer(config("train.loggers=[own_loggers:Logging]")).fit()
    with pytest.raises(UserError, match=r"Path is not a subclass of vssl\.loggers\.base\.Logger"):
        Trainer(config("train.loggers=[pathlib:Path]", f"run.dir={tmp_path / 'other'}")).fit()


def scalars(run, tag):
    """The steps at which TensorBoard shows a figure."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_tensorboard_shows_every_step_of_a_resumed_run_once(config, tmp_path):
    keys = ("train.log_every=1", "train.epochs=2", "eval.every=1", "checkpoint.every_steps=4")
    first = Trainer(config(*keys))
    spoil(first, {7})
    with pytest.raises(UserError):  # after steps 5 and 6, which will be taken again
        first.fit()
    first.directory.close()
    assert scalars(tmp_path / "run", "grad_norm") == [1, 2, 3, 4, 5, 6, 7]
    Trainer(config(*keys), "auto").fit()
    assert scalars(tmp_path / "run", "loss") == list(range(1, 21))
    assert scalars(tmp_path / "run", "knn_top1") == [0, 10, 20]


LIMITED = """
import resource, sys
from pathlib import Path
from vssl.loggers.group import LoggerGroup

group = LoggerGroup(["tensorboard"], Path(sys.argv[1]), {}, 100, 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
for step in range(20):
    group.log(step, 0.0, {name: 1.0 for name in "abc"})
group.close()
"""


def test_a_file_that_cannot_grow_ends_tensorboard_and_not_the_run(tmp_path):
    pytest.importorskip("tensorboard")
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "no further figures for the logger tensorboard: OSError: [Errno 27] File too large\n"
    assert len(lines(tmp_path)) == 20


def test_a_logger_needs_start_and_log():
    with pytest.raises(TypeError, match="abstract"):
        Logger()
