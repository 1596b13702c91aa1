"""One YAML file a data set, ``key=value`` overrides on top, strict keys and types, frozen after load."""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pipelines.config import AugmentConfig, DataConfig
from pipelines.errors import UserError
from vssl.engine.checkpoint import CheckpointConfig
from vssl.evaluation.config import EvalConfig
from vssl.methods import ObjectiveConfig
from vssl.models import ModelConfig
from vssl.optim import OptimConfig

__all__ = ["Config", "RunConfig", "TrainConfig", "from_dict", "load_config", "to_dict", "to_yaml"]


@dataclass(frozen=True)
class TrainConfig:
    """How the run is carried out."""

    epochs: int = 100
    first_size: int = 0  # progressive resolution: side of a view in the first quarter of the epochs; 0: off
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool | None = None  # torch.compile the step; null: on GPUs yes, on CPUs no (docs/performance.md)
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"  # auto: bf16 on GPUs that have it, fp16 on others, off on CPUs
    accumulate: int = 1  # split every batch into this many micro-batches (BatchNorm then sees a micro-batch)
    clip_grad: float = 0.0  # largest global gradient norm; 0: no clipping
    seed: int = 0
    log_every: int = 20  # steps between two lines of metrics.jsonl


@dataclass(frozen=True)
class RunConfig:
    """Where results go."""

    dir: str = "runs/run"


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. ``null`` means the method's own recipe (see ``vssl.recipes``)."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)


# Ranges of numbers and of the entries of lists, both ends allowed; what a value means is written beside its field.
_ANY, _SHARE = (0, math.inf), (0.0, 1.0)
_RANGES = {
    "data.batch_size": (2, math.inf),
    "data.workers": _ANY,
    "data.prefetch": (1, math.inf),
    "data.image_size": (4, math.inf),
    "data.canvas": (4, math.inf),
    "data.hw_decoder_load": _SHARE,
    "data.limit": _ANY,
    "augment.scale": (1e-6, 1.0),
    "augment.ratio": (1e-3, 1e3),
    "augment.flip": _SHARE,
    "augment.jitter": _SHARE,
    "augment.brightness": _ANY,
    "augment.contrast": _ANY,
    "augment.saturation": _ANY,
    "augment.hue": (0.0, 0.5),
    "augment.gray": _SHARE,
    "augment.blur": _SHARE,
    "augment.blur_sigma": (1e-3, math.inf),
    "augment.solarize": _SHARE,
    "augment.eval_crop": (1e-3, 1.0),
    "augment.std": (1e-6, math.inf),
    "model.projector_hidden": (1, math.inf),
    "model.predictor_hidden": (1, math.inf),
    "model.latent": (1, math.inf),
    "model.logvar_bound": (1e-3, 20.0),
    "objective.beta": _ANY,
    "objective.kappa": _ANY,
    "objective.temperature": (1e-6, math.inf),
    "optim.lr": _ANY,
    "optim.weight_decay": _ANY,
    "optim.momentum": _SHARE,
    "optim.eta": _ANY,
    "optim.warmup_epochs": _ANY,
    "optim.tau": _SHARE,
    "train.epochs": (1, math.inf),
    "train.first_size": _ANY,
    "train.accumulate": (1, math.inf),
    "train.clip_grad": _ANY,
    "train.seed": (0, 2**31 - 1),
    "train.log_every": (1, math.inf),
    "eval.every": _ANY,
    "eval.k": (1, math.inf),
    "eval.temperature": (1e-3, math.inf),
    "eval.probe_lr": _ANY,
    "checkpoint.every_steps": _ANY,
    "checkpoint.every_minutes": _ANY,
    "checkpoint.keep": (1, math.inf),
}


def _check_range(key: str, value: Any) -> None:
    low, high = _RANGES.get(key, (-math.inf, math.inf))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{key} must be a finite number, not {number}")
        if isinstance(number, int | float) and not low <= number <= high:
            bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise UserError(f"{key} must be {bounds}, not {number}")


def _is_union(expected: Any) -> bool:
    return typing.get_origin(expected) in (types.UnionType, typing.Union)


def _type_name(expected: Any) -> str:
    if typing.get_origin(expected) is Literal:
        return " or ".join(map(str, typing.get_args(expected)))
    if typing.get_origin(expected) is tuple:
        return f"a list of {len(typing.get_args(expected))} numbers"
    if _is_union(expected):
        return " or ".join("null" if t is type(None) else _type_name(t) for t in typing.get_args(expected))
    return {"int": "an integer", "float": "a number", "str": "text", "bool": "true or false"}[expected.__name__]


def _convert(key: str, value: Any, expected: Any) -> Any:
    """``value`` as ``expected``, without guessing; raises UserError naming ``key``."""
    arguments = typing.get_args(expected)
    if typing.get_origin(expected) is Literal:
        # YAML reads a bare off/on as a boolean.
        value = {False: "off", True: "on"}.get(value, value) if isinstance(value, bool) else value
        if value in arguments:
            return value
    elif _is_union(expected):
        if value is None:
            return None
        return _convert(key, value, next(t for t in arguments if t is not type(None)))
    elif typing.get_origin(expected) is tuple:
        if isinstance(value, list | tuple) and len(value) == len(arguments):
            return tuple(_convert(key, v, t) for v, t in zip(value, arguments, strict=True))
    elif expected is float:
        # YAML 1.1 reads 1e-5 as text.
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                pass
    elif type(value) is expected:
        return value
    raise UserError(f"{key} must be {_type_name(expected)}, not {value!r}")


def _all_keys(cls: type, prefix: str = "") -> list[str]:
    keys = []
    for f in dataclasses.fields(cls):
        name = prefix + f.name
        keys += _all_keys(f.type, name + ".") if dataclasses.is_dataclass(f.type) else [name]
    return keys


def _unknown(key: str) -> UserError:
    """Names the nearest valid key: the same last word in another section first, then the likeliest spelling."""
    keys = _all_keys(Config)
    near = difflib.get_close_matches(key, keys + [k.split(".")[0] for k in keys], n=1, cutoff=0.0)[0]
    same_name = [k for k in keys if k.split(".")[-1] == key.split(".")[-1]]
    return UserError(f"unknown config key {key!r}; did you mean {(same_name or [near])[0]!r}?")


def from_dict(values: dict, cls: type = Config, prefix: str = "") -> Any:
    """The config that a nested dict describes; what it does not name keeps its default.

    Raises:
        UserError: a key that does not exist (names the nearest one), a value of another type or out of range.
    """
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    given = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in fields:
            raise _unknown(key)
        if dataclasses.is_dataclass(fields[name]):
            if not isinstance(value, dict):
                raise UserError(f"{key} must be a section of keys, not {value!r}")
            given[name] = from_dict(value, fields[name], key + ".")
        else:
            given[name] = _convert(key, value, fields[name])
            _check_range(key, given[name])
    return cls(**given)


def to_dict(config: Any) -> dict:
    """Nested dict of plain values (tuples as lists); ``from_dict`` reads it back."""
    plain = dataclasses.asdict(config, dict_factory=dict)
    return yaml.safe_load(yaml.safe_dump(_lists(plain)))


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file and apply ``section.key=value`` overrides (values are YAML).

    Raises:
        UserError: no such file, not YAML, or whatever ``from_dict`` objects to.
    """
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections of keys, as configs/demo.yaml does")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"override {override!r} must have the form section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"override {override!r}: the value is not valid YAML") from error
        if key not in _all_keys(Config):
            raise _unknown(key)
        section, name = key.split(".")
        if not isinstance(values.setdefault(section, {}), dict):
            raise UserError(f"{section} must be a section of keys, not {values[section]!r}")
        # An empty value keeps its text meaning: run.dir= is "", not null.
        values[section][name] = "" if text == "" else value
    return from_dict(values)
