"""Several processes over gloo train as one process does, stay equal, and end together."""

import hashlib
import itertools
import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from pipelines.errors import UserError
from support.training import kill_after, lines, losses
from vssl.config import to_yaml
from vssl.engine.config import resolve
from vssl.engine.step import TrainStep
from vssl.engine.trainer import Trainer
from vssl.methods import METHODS
from vssl.profile.stages import StageProfiler

pytestmark = pytest.mark.ddp


def digest(state):
    """A digest of every tensor that a step changes."""
    total = hashlib.sha256()
    for part in ("method", "probe"):
        for key, value in sorted(state[part].items()):
            if not value.is_floating_point():  # BatchNorm's counter of calls, which is never read
                continue
            total.update(key.encode() + value.numpy().tobytes())
    return total.hexdigest()


def train(config, resume=None):
    def work(world):
        trainer = Trainer(config, resume, world)
        trainer.fit()
        return digest(trainer.train_step.state_dict())

    return work


@pytest.fixture
def smooth(monkeypatch):
    """Softplus for ReLU: a ReLU's input of nearly 0 may have another sign after other rounding, and the gradient jumps
    there (by 1e-3 of itself, in these small networks), although both are right."""
    monkeypatch.setattr(torch.nn.ReLU, "forward", lambda self, x: torch.nn.functional.softplus(x))


# 20 steps of 48 images, which one to four processes can share equally. The learning rates are so low that training does
# not amplify rounding errors (at ten times these, changing the weights of one process by 1e-6 changes the loss by more
# than 1e-2).
TWENTY = ("data.limit=960", "data.batch_size=48", "train.epochs=1", "train.log_every=1", "optim.warmup_epochs=0")


ARMS = {
    "vssl": (),
    "vssl, accumulated": ("train.accumulate=2",),
    "vssl, prior": ("method.likelihood=prior", "method.kappa=4"),  # draws noise
    "vssl, dropout": ("model.backbone=support.networks:Dropping", "train.accumulate=2"),
    "byol": ("method.name=byol", "method.predictor_hidden=16"),
    "byol, accumulated": ("method.name=byol", "method.predictor_hidden=16", "train.accumulate=3"),
    "moco_v3": ("method.name=moco_v3", "method.predictor_hidden=16"),  # its loss needs the samples of all processes
    "moco_v3, accumulated": ("method.name=moco_v3", "method.predictor_hidden=16", "train.accumulate=3"),
}


@pytest.mark.parametrize(
    ("size", "arm", "backend"),
    [
        (2, "vssl, prior", None),
        (2, "vssl, accumulated", "aot_eager"),
        (2, "vssl, dropout", None),
        (3, "moco_v3", None),
        (2, "byol, accumulated", None),
    ],
)
def test_twenty_steps_are_those_of_one_process(config, processes, tmp_path, compile_with, smooth, size, arm, backend):
    if backend:
        compile_with(backend)
    runs = {
        n: config(
            *TWENTY,
            *ARMS[arm],
            "eval.every=1",
            f"run.dir={tmp_path / f'on-{n}'}",
            "checkpoint.every_minutes=9",
            f"train.compile={'true' if backend and n > 1 else 'false'}",
        )
        for n in (1, size)
    }
    Trainer(runs[1]).fit()
    digests = processes(size, train(runs[size]))
    assert len(set(digests)) == 1  # student, teacher, buffers and probe are the same bits everywhere
    if backend:
        assert "compiled the step in" in processes.output(0)
    one, several = (losses(tmp_path / f"on-{n}") for n in (1, size))
    assert list(one) == list(range(1, 21))
    assert several == pytest.approx(one, rel=1e-4)
    measured = [[line["knn_top1"] for line in lines(tmp_path / f"on-{n}") if "knn_top1" in line] for n in (1, size)]
    assert measured[0] == pytest.approx(measured[1], abs=0.02) and measured[0][0] == measured[1][0]
    environment = json.loads((tmp_path / f"on-{size}" / "environment.json").read_text())
    assert environment["world_size"] == size and environment["derived"]["images_per_process"] == 48 // size


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_with_local_views_train_as_one(config, processes, tmp_path, smooth, name):
    """The network has a weight without a gradient, for which the processes must not wait."""
    keys = (*TWENTY, f"method.name={name}", "augment.views=3", "augment.local_views=2", "augment.local_weight=0.5")
    keys += ("model.backbone=support.networks:UnusedWeight", "train.accumulate=2", "optim.name=adamw", "optim.lr=1e-4")
    keys += ("data.limit=480", "train.clip_grad=1")
    runs = {n: config(*keys, f"run.dir={tmp_path / f'on-{n}'}") for n in (1, 2)}
    Trainer(runs[1]).fit()
    assert len(set(processes(2, train(runs[2])))) == 1
    one, two = (losses(tmp_path / f"on-{n}") for n in (1, 2))
    assert list(one) == list(range(1, 11)) and two == pytest.approx(one, rel=1e-4)


def test_every_process_orthogonalises_the_same_updates(config, processes, tmp_path):
    runs = [config(*TWENTY, "optim.name=muon", "eval.every=0", f"run.dir={tmp_path / f'on-{n}'}") for n in (1, 2)]
    Trainer(runs[0]).fit()
    assert len(set(processes(2, train(runs[1])))) == 1
    one, several = (losses(tmp_path / f"on-{n}") for n in (1, 2))
    assert several == pytest.approx(one, rel=1e-2)


@pytest.mark.inductor
@pytest.mark.parametrize("arm", ARMS)
def test_generated_code_trains_one_and_several_processes_as_eager_code_one(config, processes, tmp_path, arm):
    def run(size, compiled):
        name = f"{size}-{compiled}"
        keys = ("eval.every=0", f"train.compile={str(compiled).lower()}", f"run.dir={tmp_path / name}")
        # Other code rounds otherwise, so that a ReLU's input of nearly 0 may change its sign, which changes gradients
        # by 1e-3. At the other tests' learning rate the losses are then 1e-3 apart after 20 steps.
        digests = processes(
            size, train(config(*TWENTY, *ARMS[arm], *keys, f"optim.lr={resolve(config()).optim.lr / 10}")), 1500
        )
        assert len(set(digests)) == 1
        assert ("compiled the step in" in processes.output(0)) == compiled
        return losses(tmp_path / name)

    eager = run(1, False)
    for size, compiled in [(1, True), (2, False), (2, True), (4, False), (4, True)]:
        found = run(size, compiled)
        print(arm, size, compiled, max(abs(found[step] / loss - 1.0) for step, loss in eager.items()))
        assert found == pytest.approx(eager, rel=1e-4)


def test_if_compiling_fails_in_one_process_all_run_eager(config, processes, compile_with):
    compile_with("eager")

    def work(world):
        if world.rank == 1:
            torch.compile = lambda *_, **__: fail
        trainer = Trainer(config("data.limit=64", "train.epochs=1", "train.compile=true"), None, world)
        trainer.fit()
        return trainer.train_step.compiled, digest(trainer.train_step.state_dict())

    def fail(*_):
        raise RuntimeError("no compiler here\nand more")

    first, second = processes(2, work)
    assert first == second and first[0] is False
    line = "torch.compile failed, the step runs eager: RuntimeError: no compiler here\n"
    assert processes.output(0).count(line) == 1


def test_processes_that_would_exchange_in_different_orders_run_eager(config, processes, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    dry_run = TrainStep.dry_run

    def work(world):
        monkeypatch.setattr(TrainStep, "dry_run", lambda *a: dry_run(*a)[:: 1 - 2 * world.rank])
        trainer = Trainer(config("data.limit=64", "train.epochs=1", "train.compile=true"), None, world)
        trainer.fit()
        return trainer.train_step.compiled

    assert processes(2, work) == [False, False]
    assert "the step runs eager: the processes would exchange statistics in different orders" in processes.output(0)


def test_gradients_sent_in_bf16_are_those_of_float32_but_for_their_rounding(config, processes, tmp_path):
    def work(world):
        found = []
        for exchange in ("float32", "bf16"):
            trainer = Trainer(config(f"train.exchange={exchange}", f"run.dir={tmp_path / exchange}"), None, world)
            trainer.train_step.backward(next(iter(trainer.loader)))
            found.append([w.grad for w in trainer.train_step.method.student.parameters()])
        exact, rounded = found
        apart = [(a - b).norm().item() / (a.norm().item() + 1e-4) for a, b in zip(exact, rounded, strict=True)]
        return max(apart), sum(g.double().sum().item() for g in rounded)

    (apart, total), other = processes(2, work)
    assert other == (apart, total)  # the same bits on both
    assert 0 < apart < 2.0**-7


def test_all_processes_take_the_same_plan_for_the_same_time(config, processes):
    def work(world):
        trainer = Trainer(config("train.minutes=0.0001", "train.epochs=100"), None, world)
        trainer.fit()
        return trainer.step, trainer.total_steps, digest(trainer.train_step.state_dict())

    first, second = processes(2, work)
    assert first == second and first[0] == first[1] < 1000


def test_without_synchronised_statistics_the_copies_stay_equal(config, processes):
    chosen = config(*TWENTY, "data.limit=384", "model.sync_batchnorm=false", "train.accumulate=2")
    digests = processes(2, train(chosen))
    assert digests[0] == digests[1]


def test_another_number_of_processes_continues_the_same_run(config, processes, tmp_path):
    common = (*TWENTY, "data.limit=480", "checkpoint.every_steps=3")
    Trainer(config(*common, f"run.dir={tmp_path / 'whole'}")).fit()

    processes(2, lambda world: kill_after(config(*common), 8, world))
    resumed = processes(3, train(config(*common), "auto"))
    assert len(set(resumed)) == 1
    assert [line["resumed_from_step"] for line in lines(tmp_path / "run") if "resumed_from_step" in line] == [6]
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)


def test_a_mistake_seen_by_all_is_said_once(config, processes):
    for overrides, message in [
        (("data.batch_size=33",), "data.batch_size=33 cannot be shared equally by 2 processes"),
        (("data.drop_last=false", "data.limit=321"), "the last batch of an epoch has 1 images, which 2 processes"),
        (("data.dir=absent",), "absent: no such folder"),
    ]:
        processes(2, train(config(*overrides)), codes=[2, 2])
        assert processes.output(0).startswith(f"error: {message}".split(":")[0])
        assert message in processes.output(0) and len(processes.output(0).splitlines()) == 1
        assert processes.output(1) == ""


class Damaged:
    """A loader that meets a damaged sample in its fourth batch."""

    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        yield from itertools.islice(self.loader, 3)
        raise UserError("the JPEG data of sample 77 are damaged")


def test_one_processs_broken_sample_ends_all(config, processes):
    def work(world):
        trainer = Trainer(config("data.batch_size=36"), None, world)
        if world.rank == 1:
            trainer.loader = Damaged(trainer.loader)
        trainer.fit()

    processes(3, work, codes=[2, 2, 2])
    assert processes.output(1) == "error: the JPEG data of sample 77 are damaged\n"
    assert processes.output(0) == processes.output(2) == ""


def test_a_step_that_is_bad_on_one_process_changes_nothing_on_any(config, processes):
    def work(world):
        trainer = Trainer(config(), None, world)
        batch = next(iter(trainer.loader))
        trainer.train_step.set_schedule(epoch=0, lr=1.0, probe_lr=0.1, tau=0.5)
        before = digest(trainer.train_step.state_dict())

        def spoil(method, inputs, output):
            # The loss is infinite, and its gradients are finite.
            return output._replace(loss=output.loss + float("inf"))

        if world.rank == 1:
            trainer.train_step.method.register_forward_hook(spoil)
        trainer.train_step(batch)
        return before == digest(trainer.train_step.state_dict()), trainer.train_step.watch.read()

    assert processes(2, work) == [(True, (1, 1)), (True, (1, 1))]


def test_fewer_gpus_than_processes_is_one_line(processes, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    processes(2, lambda world: world.set_device(torch.device("cuda")), codes=[2, 2])
    line = "error: every process needs a GPU of its own, this machine has 1: start fewer processes"
    assert processes.output(1).startswith(line) and len(processes.output(1).splitlines()) == 1
    assert processes.output(0) == ""


def test_throughput_of_two_processes_is_that_of_both_together(config, processes):
    def work(world):
        profiler = StageProfiler(config(), repeats=1, seconds=0.01, world=world)
        try:
            return profiler.measure()
        finally:
            profiler.close()

    first, second = processes(2, work)
    assert {name: stage["images_per_second"] for name, stage in first["stages"].items()} == {
        name: stage["images_per_second"] for name, stage in second["stages"].items()
    }  # timed together, so that both make the same number of calls
    for stage in first["stages"].values():
        batch = config().data.batch_size
        assert stage["images_per_second"] == pytest.approx(1000 * batch / stage["milliseconds"], rel=1e-6)
    shared = first["processes"]
    weights = sum(w.numel() for w in Trainer(config()).train_step._learners.parameters() if w.requires_grad)
    assert (shared["count"], shared["gradient_bytes"]) == (2, 4 * weights)
    assert shared["statistics_bytes"] > 0 and shared["all_reduce_milliseconds"] > 0


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_resumes(config, processes, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config("train.epochs=500", "checkpoint.every_steps=1000000")))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    process = subprocess.Popen([*command, "-c", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() or not losses(run):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    (saved,) = (run / "checkpoints").glob("*.pt")
    step = int(saved.stem.split("-")[1])
    assert err.count(f"stopped by SIGTERM: saved at step {step}; continue with --resume auto") == 1
    epochs = step // 10 + 1
    processes(2, train(config(f"train.epochs={epochs}"), "auto"))
    assert (run / "backbone.safetensors").exists()
    assert [line["resumed_from_step"] for line in lines(run) if "resumed_from_step" in line] == [step]
