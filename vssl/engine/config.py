"""``Config``, all options together, and the meaning of ``null`` in it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pipelines.augment.groups import complete
from pipelines.config import SMALL_IMAGE, AugmentConfig, DataConfig
from pipelines.errors import UserError
from pipelines.options import option
from pipelines.parts import OWN
from vssl.config import read_config, variants
from vssl.engine.former_keys import drop_former_keys
from vssl.evaluation.config import EvalConfig
from vssl.loggers import DEFAULT, LOGGERS
from vssl.methods import METHODS, find_method
from vssl.methods.base import MethodOptions, Recipe
from vssl.models.config import ModelConfig
from vssl.optim import OPTIMIZERS, find_optimizer
from vssl.optim.base import OptimOptions, ResolvedOptim

__all__ = [
    "CheckpointConfig",
    "Config",
    "Resolved",
    "RunConfig",
    "TrainConfig",
    "load_config",
    "resolve",
    "without_weights",
]


@dataclass(frozen=True)
class TrainConfig:
    """How the run is carried out."""

    epochs: int = option(100, "passes over the training images", low=1, may_change=True)
    minutes: float = option(
        0.0,
        "plan a run that ends within this time, with at most train.epochs; compiling and evaluations count, Python's "
        "start does not; 0: off",
        low=0.0,
        may_change=True,
    )
    first_size: int = option(
        0, "progressive resolution: side of a view in the first quarter of the epochs; 0: off", low=0
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: a GPU where there is one", may_change=True)
    compile: bool | None = option(None, "compile the step with torch.compile; null: on GPUs only", may_change=True)
    amp: Literal["auto", "bf16", "fp16", "off"] = option(
        "auto", "auto: bf16 on GPUs that have it, fp16 on others, off on CPUs", may_change=True
    )
    exchange: Literal["float32", "bf16"] = option(
        "float32", "several processes: how gradients are sent; bf16: half the bytes, rounded", may_change=True
    )
    deterministic: bool = option(
        False,
        "on a GPU use only algorithms that repeat their bits, at some cost of speed; on a CPU all do",
        may_change=True,
    )
    accumulate: int = option(
        1, "split every batch into this many micro-batches (BatchNorm then sees a micro-batch)", low=1
    )
    clip_grad: float = option(0.0, "largest global gradient norm; 0: no clipping", low=0.0, may_change=True)
    seed: int = option(0, "seed of the weights, the order of images, the views and the noise", low=0, high=2**31 - 1)
    log_every: int = option(20, "steps between two lines of metrics.jsonl", low=1, may_change=True)
    loggers: tuple[str, ...] = option(
        DEFAULT,
        "where figures go besides metrics.jsonl; [] for nowhere else",
        words=(*LOGGERS, OWN),
        may_change=True,
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save."""

    every_steps: int = option(
        0, "steps between two checkpoints; 0: one at the end of each epoch", low=0, may_change=True
    )
    every_minutes: float = option(0.0, "save when the last checkpoint is this old; 0: off", low=0.0, may_change=True)
    keep: int = option(2, "how many of the newest checkpoints are kept", low=1, may_change=True)


@dataclass(frozen=True)
class RunConfig:
    """Where results go."""

    dir: str = option(
        "runs/run", "run directory; it must not hold a run yet, unless you resume it", may_change=True, path=True
    )


def _method_options() -> dict[str, type[MethodOptions]]:
    return {name: find_method(name).Options for name in METHODS}


def _own_method_options(name: str) -> type[MethodOptions]:
    return find_method(name).Options


def _optim_options() -> dict[str, type[OptimOptions]]:
    return {name: find_optimizer(name).Options for name in OPTIMIZERS}


def _own_optim_options(name: str) -> type[OptimOptions]:
    return find_optimizer(name).Options


def _recipe(config: "Config") -> Recipe:
    """The recipe of the config's method."""
    method = find_method(config.method.name)
    return method.recipe(config.method, small_images=config.data.image_size <= SMALL_IMAGE)


def _recipes_optimizer(config: "Config") -> str:
    return _recipe(config).optimizer


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. ``null`` means the method's own recipe (see ``resolve``)."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodOptions = variants(  # noqa: RUF009 (it is a field)
        _method_options, default="vssl", find=_own_method_options
    )
    optim: OptimOptions = variants(  # noqa: RUF009 (it is a field)
        _optim_options, default="lars", find=_own_optim_options, implied=_recipes_optimizer
    )
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True)
class Resolved(Config):
    """The result of ``resolve``: a config that leaves nothing to the method's recipe."""

    optim: ResolvedOptim = field(default_factory=ResolvedOptim)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or the shipped config of that name, and apply ``section.key=value`` overrides. Keys that this
    version no longer has are dropped from the file, as ``drop_former_keys`` does. Raises UserError as
    ``vssl.config.read_config``."""
    return read_config(Config, path, overrides, drop_former_keys)


def resolve(config: Config) -> Resolved:
    """The config with every ``null`` that stands for the method's recipe replaced. Changing ``method.name`` alone thus
    gives a fair comparison. Rate and weight decay are the recipe's only for the recipe's optimizer; any other one
    has defaults of its own.

    Raises:
        UserError: keys that exclude each other, or the learning rate would not fall.
    """
    if config.train.minutes and config.train.first_size:
        raise UserError(
            "train.minutes plans from the pace of the first steps, but train.first_size makes the later ones slower: "
            "set one of them to 0"
        )
    recipe = _recipe(config)
    name = config.optim.name or recipe.optimizer
    options = find_optimizer(name).Options
    lr, weight_decay = options.default_lr, options.default_weight_decay
    if name == recipe.optimizer:
        lr, weight_decay = recipe.lr, recipe.weight_decay
    optim = cast(ResolvedOptim, _fill(config.optim, {"name": name, "lr": lr, "weight_decay": weight_decay}))
    if type(optim) is not options:  # the default of a config that was not read from a file or dict
        common = {field.name: getattr(optim, field.name) for field in dataclasses.fields(OptimOptions)}
        optim = options(**common)
    if optim.final_lr > optim.lr:
        raise UserError(f"optim.final_lr={optim.final_lr:g} is above optim.lr={optim.lr:g}, from which the rate falls")
    sections = {
        "method": _fill(config.method, recipe.options),
        "optim": optim,
        "augment": complete(_fill(config.augment, recipe.augment), config.data.image_size),
    }
    return Resolved(**vars(config) | sections)


def without_weights(config: Resolved) -> Resolved:
    """The config without ``model.weights``: a checkpoint has all weights, and the file may be gone by now."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, weights=""))


def _fill(section: Any, values: dict[str, Any]) -> Any:
    missing = {key: value for key, value in values.items() if getattr(section, key) is None}
    return dataclasses.replace(section, **missing)
