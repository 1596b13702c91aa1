"""Runs and configs of earlier versions: what is dropped, what is refused; runs of commit dcff865 continue."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import vssl
from pipelines.errors import UserError
from pipelines.formats.packed import open_packed
from support.training import measured
from vssl.engine import former_keys
from vssl.engine.checkpoint import load_newest
from vssl.engine.config import load_config, resolve
from vssl.engine.former_keys import FormerKey, drop_former_keys
from vssl.engine.resume import find_changes, identify
from vssl.engine.trainer import Trainer

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
RUNS = ("run-dcff865-vssl", "run-dcff865-byol")


@pytest.fixture(params=RUNS)
def run(request, tmp_path, digits):
    """A copy of a run of 10 steps in two epochs, made at commit dcff865; its data are the digits."""
    shutil.copytree(FIXTURES / request.param, tmp_path / "run")
    return tmp_path / "run"


def own_config(run, digits, *overrides):
    return load_config(run / "config.yaml", [f"data.dir={digits}", f"run.dir={run}", *overrides])


def test_a_former_run_loads_and_embeds(run):
    model = vssl.load(run, device="cpu")
    side = model.config.data.image_size
    assert model.step == 10 and model.features(torch.zeros(2, 3, side, side)).shape == (2, 64)


def test_a_former_run_is_compared_without_a_false_difference(run, digits):
    saved, config = load_newest(run)["run"], resolve(own_config(run, digits))
    packed = open_packed(digits)
    saved = saved | {"data": packed.digest}
    changes = [change.key for change in find_changes(saved, config, packed, 1)]
    assert changes == ["data.dir", "run.dir"]
    with pytest.raises(UserError, match=r"optim.name was adamw, now lars: that would be another run"):
        find_changes(saved, resolve(own_config(run, digits, "optim.name=lars")), packed, 1)
    for key, value, old in (("warmup_epochs", 1.0, "null"), ("final_weight_decay", 0.4, "null")):
        other = dataclasses.replace(config, optim=dataclasses.replace(config.optim, **{key: value}))
        with pytest.raises(UserError, match=f"optim.{key} was {old}, now {value}: that would be another run"):
            find_changes(saved, other, packed, 1)


def test_a_former_run_continues_with_its_optimizers_state(run, digits):
    path = next((run / "checkpoints").iterdir())
    state = torch.load(path)
    state["run"]["data"] = open_packed(digits).digest
    torch.save(state, path)
    trainer = Trainer(own_config(run, digits, "train.epochs=4"), resume="auto")
    assert trainer.step == 10 and trainer.schedule.warmup_steps == round(0.1 * 20)
    restored = trainer.train_step.optimizer.state_dict()["state"]
    assert restored.keys() == state["optimizer"]["state"].keys()
    for number, saved in state["optimizer"]["state"].items():
        assert all(torch.equal(restored[number][name], value) for name, value in saved.items())
    trainer.fit()
    assert max(line["step"] for line in measured(run)) == 20


def test_a_former_run_has_the_same_learning_rates(run, digits):
    trainer = Trainer(own_config(run, digits, "run.dir=" + str(run.parent / "again")))
    logged = {line["step"]: line["lr"] for line in measured(run)}
    assert logged and {step: trainer.schedule.learning_rate(step - 1) for step in logged} == logged


def test_a_new_run_starts_with_a_former_runs_weights(run, digits, tmp_path):
    config = own_config(
        run, digits, f"model.weights={run}/checkpoints/step-000000010.pt", f"run.dir={tmp_path / 'new'}"
    )
    backbone = Trainer(config).train_step.method.student.backbone
    saved = load_newest(run)["method"]
    assert torch.equal(backbone.conv1.weight, saved["student.backbone.conv1.weight"])


OPTIM = {"name": "adamw", "lr": 0.002, "weight_decay": 1e-4, "momentum": 0.9, "eta": 0.02, "warmup_epochs": 10.0}


@pytest.mark.parametrize(
    ("changed", "epochs", "expected"),
    [
        ({}, 20, {"warmup_epochs": None}),
        ({}, 1000, {"warmup_epochs": None}),
        ({"warmup_epochs": 5.0}, 20, {"warmup_epochs": 2.0}),
        ({"warmup_epochs": 5.0}, 100, {"warmup_epochs": 5.0}),
        ({"warmup_epochs": 20.0}, 1000, {"warmup_epochs": 20.0}),
        ({"warmup_epochs": 0.0}, 20, {"warmup_epochs": 0.0}),
        ({"name": "lars", "eta": 0.01}, 20, {"warmup_epochs": None, "momentum": 0.9, "eta": 0.01}),
        ({"name": "sgd", "momentum": 0.8}, 20, {"warmup_epochs": None, "momentum": 0.8}),
    ],
)
def test_a_whole_former_section_is_read_as_it_was_meant(changed, epochs, expected):
    read = drop_former_keys({"optim": OPTIM | changed, "train": {"epochs": epochs}})["optim"]
    common = {key: (OPTIM | changed)[key] for key in ("name", "lr", "weight_decay")}
    assert read == common | expected | {"final_weight_decay": None}


def test_keys_of_another_optimizer_are_dropped_only_at_their_former_defaults(tmp_path):
    for optim, owner in (
        ({"momentum": 0.9, "eta": 0.02}, None),
        ({"momentum": 0.5}, "momentum"),
        ({"eta": 1.0}, "eta"),
    ):
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump({"optim": {"name": "adamw", "warmup_epochs": 10.0, **optim}}))
        if owner is None:
            assert load_config(path).optim.warmup_epochs == 10.0  # not a whole section of the former kind
        else:
            with pytest.raises(UserError, match=rf"optim.{owner} is an option of optim.name=lars.*, not of adamw"):
                load_config(path)


@pytest.fixture
def removed(monkeypatch):
    monkeypatch.setattr(former_keys, "FORMER_KEYS", {"train.speed": FormerKey(1.0, "how fast it was")})


def test_a_removed_key_is_dropped_at_its_default_and_refused_at_another_value(removed, tmp_path, compare_saved):
    path = tmp_path / "c.yaml"
    path.write_text("train: {speed: 1.0, epochs: 3}\ndata:\n")
    assert load_config(path).train.epochs == 3
    path.write_text("train: {speed: 2.0}\n")
    line = "train.speed=2.0: this version has no such key any more (how fast it was)"
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value) == line
    assert compare_saved({"speed": 1.0}) == []
    with pytest.raises(UserError) as error:
        compare_saved({"speed": 2.0})
    assert str(error.value) == line


@pytest.fixture
def compare_saved(config, digits):
    """``compare_saved(more)``: the changes from a checkpoint whose section ``train`` had more keys."""
    packed, settings = open_packed(digits), resolve(config())

    def compare(more):
        saved = identify(settings, packed, 1)
        saved["config"]["train"] |= more
        return find_changes(saved, settings, packed, 1)

    return compare


@pytest.mark.parametrize("section", ["optim", "method"])
@pytest.mark.parametrize("name", ["{}", "[adamw]", "3", "true"])
def test_a_name_that_is_no_text_is_one_line(tmp_path, section, name):
    path = tmp_path / "config.yaml"
    path.write_text(f"{section}:\n  name: {name}\n")
    with pytest.raises(UserError, match=rf"^{section}\.name must be "):
        load_config(path)
