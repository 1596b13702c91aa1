"""The step and the loop: what a step changes, exact resume, bad steps, the run directory."""

import copy
import errno
import fcntl
import gc
import itertools
import json
import multiprocessing

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from pipelines.config import SMALL_IMAGE
from pipelines.errors import UserError
from support.training import (
    assert_a_killed_run_ends_the_same,
    everything,
    first_batch,
    kill_after,
    lines,
    measured,
    small_config,
)
from vssl.config import to_yaml
from vssl.engine.compilation import compile_step
from vssl.engine.config import load_config, resolve
from vssl.engine.trainer import Trainer
from vssl.models.backbones import build_backbone
from vssl.runtime.graphs import capture
from vssl.runtime.processes import join_world


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """``(config, run directory)`` of a finished run."""
    run = tmp_path_factory.mktemp("finished") / "run"
    config = small_config(digits, run, "eval.every=1")
    trainer = Trainer(config)
    trainer.fit()
    trainer.directory.close()
    return config, run


@pytest.mark.parametrize(
    ("optimizer", "loader"), [("adamw", "torch"), ("lars", "resident"), ("sgd", "resident"), ("muon", "resident")]
)
def test_a_killed_run_ends_with_the_same_weights_bit_for_bit(config, tmp_path, optimizer, loader):
    overrides = (f"optim.name={optimizer}", f"data.loader={loader}", "data.workers=1")
    assert_a_killed_run_ends_the_same(config, tmp_path, *overrides)
    exported = [(d / "backbone.safetensors").read_bytes() for d in (tmp_path / "whole", tmp_path / "run")]
    assert exported[0] == exported[1]
    assert [line["resumed_from_step"] for line in lines(tmp_path / "run") if "resumed_from_step" in line] == [12]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("optimizer", "compiled"), [("adamw", "false"), ("lars", "true"), ("sgd", "false"), ("muon", "true")]
)
def test_a_deterministic_run_on_a_gpu_is_resumed_bit_for_bit(config, tmp_path, request, optimizer, compiled):
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    overrides = (f"optim.name={optimizer}", f"train.compile={compiled}", "train.device=cuda")
    assert_a_killed_run_ends_the_same(config, tmp_path, *overrides, "train.deterministic=true")


def test_a_changed_seed_changes_the_run(config, tmp_path):
    runs = [
        Trainer(config(f"train.seed={seed}", f"run.dir={tmp_path / str(seed)}", "data.limit=96", "train.epochs=1"))
        for seed in (0, 1)
    ]
    for run in runs:
        run.fit()
    assert not torch.equal(everything(runs[0])[0], everything(runs[1])[0])


@pytest.mark.parametrize("method", ["byol", "moco_v3"])
def test_other_methods_train_in_the_same_engine(config, tmp_path, method):
    trainer = Trainer(config(f"method.name={method}", "optim.name=lars", "optim.lr=0.5"))
    trainer.fit()
    first, *_, last = measured(tmp_path / "run")
    assert last["loss"] < first["loss"]


@pytest.mark.parametrize("form", ["gaussian", "cosine"])
@pytest.mark.parametrize("likelihood", ["prior", "predictive", "implied"])
def test_vssl_learns(config, tmp_path, form, likelihood):
    Trainer(config(f"method.form={form}", f"method.likelihood={likelihood}", "optim.lr=0.03", "train.epochs=4")).fit()
    first, *_, last = measured(tmp_path / "run")
    assert last["loss"] < first["loss"] and last["feature_std"] > 0.05


def test_a_run_leaves_the_promised_files(finished):
    config, run = finished
    environment = json.loads((run / "environment.json").read_text())
    assert environment["world_size"] == 1 and environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (run / "config.yaml").read_text() == to_yaml(resolve(config))
    assert "fc.weight" not in load_file(run / "backbone.safetensors")
    written = lines(run)
    health = {"feature_std", "effective_rank", "alignment", "uniformity"}
    assert {"loss", "lr", "tau", "images_per_second", *health} <= set(written[1])
    evaluated = [line for line in written if "knn_top1" in line]
    assert [line["epoch"] for line in evaluated] == [0.0, 1.0, 2.0]
    assert all(0 <= line["knn_top1"] <= 1 and 0 <= line["online_top1"] <= 1 for line in evaluated)
    assert all(line["step"] >= 0 and "epoch" in line for line in written)


def test_a_directory_that_holds_a_run_is_refused(finished):
    with pytest.raises(UserError, match="already holds a run; continue it with --resume auto"):
        Trainer(finished[0])


def test_two_trainings_in_one_directory_refuse_each_other(config):
    first = Trainer(config())
    with pytest.raises(UserError, match="another process is training"):
        Trainer(config(), resume="auto")
    first.directory.close()
    Trainer(config(), resume="auto").directory.close()


def test_an_incomplete_newest_checkpoint_is_skipped(config, tmp_path):
    common = ["checkpoint.every_steps=3"]
    kill_after(config(*common), steps=14)
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert Trainer(config(*common), resume="auto").step == 9


def test_clipping_limits_the_update(config, tmp_path):
    trainers = [
        Trainer(config("optim.name=sgd", "optim.momentum=0.0", f"train.clip_grad={c}", f"run.dir={tmp_path / str(c)}"))
        for c in (0.0, 0.01)
    ]
    moved = []
    for trainer in trainers:
        before = [w.detach().clone() for w in trainer.train_step.method.parameters()]
        trainer.train_step.set_schedule(epoch=0, lr=1.0, probe_lr=0.0, tau=1.0)
        trainer.train_step(first_batch(trainer))
        after = trainer.train_step.method.parameters()
        moved.append(torch.stack([(a - b).norm() for a, b in zip(after, before, strict=True)]).norm().item())
    assert moved[0] > 0.02 and moved[1] == pytest.approx(0.01, rel=0.05)


def test_the_probes_gradient_never_reaches_the_encoder(config, tmp_path):
    gradients = []
    for probe_lr in (0.1, 0.0):
        trainer = Trainer(config(f"eval.probe_lr={probe_lr}", f"run.dir={tmp_path / str(probe_lr)}"))
        assert (trainer.train_step.probe is None) == (probe_lr == 0)
        trainer.train_step.backward(first_batch(trainer))
        gradients.append([w.grad for w in trainer.train_step.method.student.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_the_step_gets_the_rates_and_the_weight_decay_of_the_schedule(config, tmp_path):
    schedules = ("optim.final_lr=0.001", "optim.final_weight_decay=0.1", "optim.warmup_epochs=0.5")
    seen = []

    def on_step(trainer):
        step, decayed = trainer.step - 1, trainer.train_step.optimizer.param_groups[0]
        seen.append((decayed["lr"].item(), decayed["decay"].item()))
        planned = trainer.schedule.learning_rate(step) * decayed["lr_scale"], trainer.schedule.decay(step)
        assert seen[-1] == pytest.approx(planned, rel=1e-6)

    trainer = Trainer(config(*schedules, "optim.backbone_lr_scale=0.5", "train.epochs=2"), on_step=on_step)
    trainer.fit()
    assert trainer.schedule.warmup_steps == 5 and len(seen) == 20
    assert seen[0][1] < seen[-1][1] < 0.1 and seen[4][0] == max(rate for rate, _ in seen)
    derived = json.loads((tmp_path / "run" / "environment.json").read_text())["derived"]
    assert derived["final_learning_rate"] == 0.001 * 32 / 256
    assert derived["weight_decay_rule"] == "cosine from 0.0001 to 0.1"
    assert derived["warmup_rule"] == "optim.warmup_epochs 0.5"


def test_if_the_compiler_fails_the_step_runs_eager_and_says_why(config, capsys, monkeypatch):
    trainer = Trainer(config())
    twin = copy.deepcopy(trainer.train_step.method.state_dict())

    def broken(*args, **kwargs):
        def call(*args):
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    assert compile_step(trainer.train_step, first_batch(trainer)) is False
    assert "the step runs eager: RuntimeError: no C++ compiler" in capsys.readouterr().err
    for key, value in trainer.train_step.method.state_dict().items():
        assert torch.equal(value, twin[key]), key
    trainer.train_step(first_batch(trainer))


@pytest.mark.slow
def test_the_demo_compiles_without_falling_back_and_gives_the_eager_steps(digits, tmp_path, compile_with):
    compile_with("aot_eager")  # Inductor's C++ would take two minutes; test_augment.py and test_rng.py compile with it

    def trainer(name):
        overrides = [f"data.dir={digits}", f"run.dir={tmp_path / name}", "train.device=cpu"]
        return Trainer(load_config("configs/demo.yaml", overrides))

    compiled, eager = trainer("compiled"), trainer("eager")
    batch = first_batch(eager)
    assert compile_step(compiled.train_step, batch) is True
    for one in (compiled, eager):
        one.train_step.set_schedule(epoch=0, lr=1e-3, probe_lr=0.1, tau=0.9)
        one.train_step(batch)
    ours, theirs = (one.train_step.metrics.read() for one in (compiled, eager))
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


def test_a_file_system_without_locks_is_said(config, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    Trainer(config()).directory.close()
    assert "without locks (No locks available)" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_step_never_waits_for_the_device(config):
    trainer = Trainer(config("train.device=cuda"))
    batches = list(trainer.loader)
    trainer.train_step.set_schedule(epoch=0, lr=0.1, probe_lr=0.1, tau=0.9)
    trainer.train_step(batches[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batches[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_only_full_batches_are_captured(config):
    """The fourth batch of all is a ragged one; it and all others of its size run as usual."""
    from vssl.engine.capture import CapturedStep

    trainer = Trainer(config("train.device=cuda"))
    batch = first_batch(trainer)
    ragged = type(batch)(*(part[:-8] for part in batch))
    run = CapturedStep(trainer.train_step, images=32)
    trainer.train_step.set_schedule(epoch=0, lr=0.001, probe_lr=0.1, tau=0.99)
    for part, captured in zip((batch, batch, batch, ragged, batch, ragged, batch), (0, 0, 0, 0, 1, 1, 1), strict=True):
        run(part)
        assert run.captured == bool(captured)


@pytest.mark.gpu
def test_a_replay_reads_no_host_memory_that_others_use(cuda):
    """A foreach norm copies from pinned memory, which must stay reserved for the graph."""
    tensors, stream = [torch.ones(4, device=cuda) for _ in range(75)], torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch._foreach_norm(tensors)
    norms = []
    graph = capture(lambda: norms.extend(torch._foreach_norm(tensors)), stream)
    others = [torch.zeros(size, dtype=torch.uint8, pin_memory=True) for size in range(8, 4096, 8)]
    torch._foreach_norm(tensors)
    graph.replay()
    assert torch.stack(norms).eq(2).all()
    del others


@pytest.mark.gpu
def test_a_captured_step_trains_as_an_eager_one(config, tmp_path):
    from vssl.engine.capture import CapturedStep

    runs = [Trainer(config("train.device=cuda", "train.amp=off", f"run.dir={tmp_path / name}")) for name in "ab"]
    runners = [runs[0].train_step, CapturedStep(runs[1].train_step, images=32)]
    for trainer, run in zip(runs, runners, strict=True):
        for number, batch in enumerate(trainer.loader):
            trainer.train_step.set_schedule(epoch=0, lr=0.001 * number, probe_lr=0.1, tau=0.99)
            run(batch)
    assert runners[1].captured
    for a, b in zip(everything(runs[0]), everything(runs[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def losses_of_16_steps(config, alone):
    """Losses of a process that exchanges with itself, if ``alone``; on a GPU captured after the warm-up."""
    from vssl.engine.capture import CapturedStep

    with join_world(alone) as world:
        assert (world.size, world.distributed) == (1, alone)
        trainer = Trainer(config, None, world)
        step = trainer.train_step
        assert isinstance(step._forward, DistributedDataParallel) == alone
        run = CapturedStep(step, 32, alone) if config.train.device == "cuda" else step
        losses = []
        for batch in itertools.islice(itertools.cycle(trainer.loader), 16):
            step.set_schedule(epoch=0, lr=2e-5, probe_lr=0.1, tau=0.99)
            run(batch)
            losses.append(step.metrics.read()["loss"])
        assert run is step or run.captured
    return losses


@pytest.mark.parametrize("method", ["vssl", "moco_v3"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_process_that_exchanges_with_itself_trains_as_one_that_exchanges_nothing(config, tmp_path, device, method):
    """On a GPU through NCCL, which waits when its group ends while a graph with its operations exists (``run``)."""
    keys = (f"method.name={method}", f"train.device={device}", "train.amp=off", "optim.name=sgd")
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process that hangs is killed
        arguments = (config(*keys, f"run.dir={tmp_path / 'alone'}"), True)
        found = pool.apply_async(losses_of_16_steps, arguments).get(timeout=120)
    expected = losses_of_16_steps(config(*keys), False)
    assert found == pytest.approx(expected, rel=1e-4 if device == "cpu" else 1e-3)


def test_the_update_reports_the_steps_outcome_and_does_not_change_the_metrics(config):
    trainer = Trainer(config())
    step, batch = trainer.train_step, first_batch(trainer)
    metrics = step.backward(batch)
    before = dict(metrics)
    update = step.update(metrics["loss"])
    assert update.good.item() and update.grad_norm.item() > 0
    assert metrics == before and "grad_norm" not in metrics


def test_a_resumed_checkpoint_is_not_kept_in_memory(config):
    """A resumed run holds no more than a fresh one, whose optimizer makes its state in the first step."""

    def tensors_of(trainer):
        gc.collect()
        mine = {id(value) for value in everything(trainer)}
        return sum(torch.is_tensor(thing) and id(thing) not in mine for thing in gc.get_objects())

    trainer = Trainer(config("train.epochs=1"))
    trainer.fit()
    trainer.directory.close()
    fresh = tensors_of(trainer)
    weights = len(list(trainer.train_step.method.state_dict()))
    del trainer
    resumed = Trainer(config("train.epochs=2"), resume="auto")
    assert tensors_of(resumed) < fresh + weights // 2


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:convnext_atto", "timm:vit_tiny_patch16_224"])
def test_a_network_from_timm_trains_and_its_export_loads_into_timm(config, tmp_path, name):
    timm = pytest.importorskip("timm")
    keys = ["data.limit=16", "data.batch_size=8", "data.image_size=32", "train.epochs=1", "train.log_every=1"]
    trainer = Trainer(config(f"model.backbone={name}", *keys))
    trainer.fit()
    assert all(line["loss"] < 100 for line in measured(tmp_path / "run"))
    weights = load_file(tmp_path / "run" / "backbone.safetensors")
    size = {"img_size": 32} if "vit" in name else {}
    timm.create_model(name.removeprefix("timm:"), num_classes=0, **size).load_state_dict(weights, strict=True)


@pytest.mark.parametrize(("side", "small"), [(SMALL_IMAGE, True), (SMALL_IMAGE + 1, False)])
def test_stem_and_recipe_agree_on_what_a_small_image_is(config, side, small):
    settings = resolve(
        config("method.name=byol", "optim.name=null", f"data.image_size={side}", "model.backbone=resnet18")
    )
    backbone, _ = build_backbone(settings.model, side)
    assert (settings.optim.lr == 1.0) == (backbone.conv1.stride == (1, 1)) == small
