"""Strict keys and types, overrides, and recipes for what is left null."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from pipelines.errors import UserError
from vssl.config import Config, from_dict, load_config, to_dict, to_yaml
from vssl.recipes import resolve

CONFIGS = sorted(Path("configs").glob("*.yaml"))


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {epochs: 3}\naugment: {blur: [1.0, 0.1]}\n")
    return path


def test_overrides_win_over_the_file_and_the_file_over_defaults(config_file):
    config = load_config(config_file, ["train.epochs=5", "optim.lr=1e-3", "augment.scale=[0.2, 1]", "run.dir=a b"])
    assert config.train.epochs == 5 and config.optim.lr == 1e-3 and config.augment.blur == (1.0, 0.1)
    assert config.augment.scale == (0.2, 1.0) and config.run.dir == "a b"
    assert config.data == Config().data


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=5", "unknown config key 'train.epoch'; did you mean 'train.epochs'?"),
        ("batch_size=5", "did you mean 'data.batch_size'?"),
        ("model.batch_size=5", "did you mean 'data.batch_size'?"),
        ("objective.from=cosine", "did you mean 'objective.form'?"),
        ("objective.form=cosin", "objective.form must be cosine or gaussian, not 'cosin'"),
        ("train.epochs=many", "train.epochs must be an integer, not 'many'"),
        ("train.epochs=1.5", "train.epochs must be an integer, not 1.5"),
        ("train.epochs=true", "train.epochs must be an integer, not True"),
        ("train.epochs=0", "train.epochs must be at least 1, not 0"),
        ("optim.lr=fast", "optim.lr must be a number, not 'fast'"),
        ("optim.lr=.nan", "optim.lr must be a finite number"),
        ("data.dir=5", "data.dir must be text, not 5"),
        ("data.drop_last=maybe", "data.drop_last must be true or false, not 'maybe'"),
        ("augment.blur=0.5", "augment.blur must be a list of 2 numbers, not 0.5"),
        ("augment.flip=1.5", "augment.flip must be between 0.0 and 1.0, not 1.5"),
        ("optim.tau=1.5", "optim.tau must be between 0.0 and 1.0, not 1.5"),
        ("train=5", "unknown config key 'train'"),
        ("train.epochs", "must have the form section.key=value"),
        ("train.epochs=[", "the value is not valid YAML"),
    ],
)
def test_mistakes_are_one_clear_line(config_file, override, message):
    with pytest.raises(UserError) as error:
        load_config(config_file, [override])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "is not valid YAML"),
        ("- 1", "must hold sections of keys"),
        ("train: 5", "train must be a section of keys"),
        ("trian: {epochs: 5}", "did you mean 'train"),
        ("train: !!python/object/apply:os.system [ls]", "is not valid YAML"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "c.yaml")
    assert message in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the config .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_off_is_a_word_not_a_boolean(config_file):
    assert load_config(config_file, ["train.amp=off"]).train.amp == "off"


def test_a_config_survives_yaml_and_is_frozen():
    config = from_dict({"model": {"latent": 7}, "optim": {"lr": "1e-5"}})
    assert from_dict(yaml.safe_load(to_yaml(config))) == config
    assert from_dict(to_dict(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.epochs = 5


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
@pytest.mark.parametrize("method", ["vssl", "byol", "moco_v3"])
def test_shipped_configs_resolve_for_every_method(path, method):
    config = resolve(load_config(path, [f"objective.name={method}"]))
    assert not [k for k in ("lr", "tau", "name", "weight_decay") if getattr(config.optim, k) is None]
    assert None not in (config.model.latent, config.model.projector_hidden, config.model.predictor_hidden)


def test_a_written_value_beats_the_recipe():
    config = resolve(from_dict({"optim": {"lr": 0.123}, "objective": {"name": "byol"}}))
    assert config.optim.lr == 0.123 and config.optim.name == "lars" and config.model.predictor_hidden == 4096


def test_byols_published_recipe_depends_on_the_image_size():
    small = resolve(from_dict({"objective": {"name": "byol"}}))
    large = resolve(from_dict({"objective": {"name": "byol"}, "data": {"image_size": 224}}))
    assert (small.optim.lr, large.optim.lr) == (1.0, 0.5)
    assert (small.model.predictor_hidden, large.model.predictor_hidden) == (4096, 8192)
