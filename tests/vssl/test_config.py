"""Strict keys and types, overrides, and recipes that fill in null values."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from pipelines.errors import UserError
from vssl.config import from_dict, to_dict, to_yaml
from vssl.config_arguments import ConfigParser, explain
from vssl.engine.config import Config, load_config, resolve
from vssl.methods import METHODS

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


def test_a_shipped_config_is_found_by_its_name_from_everywhere(tmp_path, monkeypatch):
    configs = {path.stem: load_config(path) for path in CONFIGS}
    monkeypatch.chdir(tmp_path)
    assert {name: load_config(name) for name in configs} == configs
    with pytest.raises(UserError, match=f"^no config 'dem': give a YAML file, or one of {', '.join(configs)}$"):
        load_config("dem")
    Path("demo").write_text("train: {epochs: 7}")
    assert load_config("demo").train.epochs == 7  # a file of this name comes first


def test_a_tilde_means_the_users_home(config_file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(config_file, ["data.dir=~/data", "run.dir=~/runs/a", "model.weights=~/w.pth"])
    assert (config.data.dir, config.run.dir) == ("/home/me/data", "/home/me/runs/a")
    assert config.model.weights == "/home/me/w.pth"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=5", "unknown config key 'train.epoch'; did you mean 'train.epochs'?"),
        ("batch_size=5", "did you mean 'data.batch_size'?"),
        ("model.batch_size=5", "did you mean 'data.batch_size'?"),
        ("method.from=cosine", "did you mean 'method.form'?"),
        ("method.form=cosin", "method.form must be cosine or gaussian, not 'cosin'"),
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
        ("method.tau=1.5", "method.tau must be between 0.0 and 1.0, not 1.5"),
        ("train=5", "train is a section of keys: write one of them, such as train.epochs=VALUE"),
        ("model.options=3", "model.options must be a mapping of names to plain values, not 3"),
        ("model.options={depth: {a: 1}}", "model.options.depth must be a number, text, true, false, null or a list"),
        ("method=vssl", "method is a section of keys: write one of them, such as method.name=VALUE"),
        ("method.name=[vssl]", "method.name must be vssl or byol or moco_v3 or vicreg or dino or"),
        ("method.name=own_method:Absent", "method.name=own_method:Absent: there is no module own_method"),
        ("optim.tau=0.5", "did you mean 'method.tau'?"),
        ("data.loader=fcv", "data.loader must be auto or ffcv or dali or resident or torch, not 'fcv'"),
        ("augment.interpolation=cubic", "augment.interpolation must be bilinear or bicubic, not 'cubic'"),
        ("augment.scale=[1, 0.2]", "augment.scale must be given as [least, greatest], not [1.0, 0.2]"),
        ("model.backbone=resnet19", "or resnet8 or timm:NAME or package.module:NAME, not 'resnet19'"),
        ("method.name=simple", "method.name must be vssl or byol or moco_v3"),
        ("method.variance_weight=1", "method.variance_weight is an option of method.name=vicreg"),
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


def test_a_mapping_keeps_its_plain_values(config_file):
    config = load_config(config_file, ["model.options={rate: 1e-1, sizes: [1, 2], act: gelu, bias: false}"])
    assert config.model.options == {"rate": 0.1, "sizes": [1, 2], "act": "gelu", "bias": False}
    assert from_dict(yaml.safe_load(to_yaml(config)), Config) == config
    assert load_config(config_file).model.options == {}


def test_off_is_a_word_not_a_boolean(config_file):
    assert load_config(config_file, ["train.amp=off"]).train.amp == "off"


def test_a_config_survives_yaml_and_is_frozen():
    config = from_dict({"method": {"name": "byol", "latent": 7}, "optim": {"lr": "1e-5"}}, Config)
    assert from_dict(yaml.safe_load(to_yaml(config)), Config) == config
    assert from_dict(to_dict(config), Config) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.epochs = 5


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
@pytest.mark.parametrize("method", METHODS)
def test_shipped_configs_resolve_for_every_method(path, method):
    config = resolve(load_config(path, [f"method.name={method}"]))
    optim = config.optim
    assert None not in (optim.name, optim.lr, optim.weight_decay, *vars(config.method).values())


def test_a_written_value_beats_the_recipe():
    config = resolve(from_dict({"optim": {"lr": 0.123}, "method": {"name": "byol"}}, Config))
    assert config.optim.lr == 0.123 and config.optim.name == "lars" and config.method.predictor_hidden == 4096


def test_byols_published_recipe_depends_on_the_image_size():
    small = resolve(from_dict({"method": {"name": "byol"}}, Config))
    large = resolve(from_dict({"method": {"name": "byol"}, "data": {"image_size": 224}}, Config))
    assert (small.optim.lr, large.optim.lr) == (1.0, 0.5)
    assert (small.method.predictor_hidden, large.method.predictor_hidden) == (4096, 8192)


def test_a_predictor_is_as_wide_as_a_projector_whose_width_is_given():
    config = resolve(from_dict({"method": {"name": "byol", "projector_hidden": 32}}, Config))
    assert config.method.predictor_hidden == 32


def test_the_keys_in_the_docs_are_those_of_the_schema():
    """To update the docs: ``python train.py --help-config > docs/configuration.md``."""
    assert Path("docs/configuration.md").read_text() == explain(Config)


def test_every_key_is_explained():
    rows = [line for line in explain(Config).splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert all(len(row.split(" | ")) == 4 and row.split(" | ")[3].strip("| ") for row in rows), rows


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--epochs", "3"], "--epochs is not a flag but a config key: write train.epochs=3"),
        (["--train.epochs=3"], "--train.epochs is not a flag but a config key: write train.epochs=3"),
        (["--batch-size"], "--batch-size is not a flag but a config key: write data.batch_size=VALUE"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_key_written_as_a_flag_is_answered_with_how_it_is_written(words, answer, capsys):
    parser = ConfigParser(Config, prog="train.py")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_config_args(["-c", "configs/demo.yaml", *words])
    assert answer in capsys.readouterr().err
