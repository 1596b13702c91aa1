"""``Config``, all options together, and what ``null`` in it means."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.augment.groups import complete
from pipelines.config import SMALL_IMAGE, AugmentConfig, DataConfig
from pipelines.options import option
from vssl.config import read_config, variants
from vssl.evaluation.config import EvalConfig
from vssl.methods import METHODS, find_method
from vssl.methods.base import MethodOptions
from vssl.models.config import ModelConfig
from vssl.optim import OptimConfig

__all__ = ["CheckpointConfig", "Config", "RunConfig", "TrainConfig", "load_config", "resolve"]


@dataclass(frozen=True)
class TrainConfig:
    """How the run is carried out."""

    epochs: int = option(100, "passes over the training images", low=1, may_change=True)
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

    dir: str = option("runs/run", "run directory; it must not hold a run yet, unless you resume it", may_change=True)


def _method_options() -> dict[str, type[MethodOptions]]:
    return {name: find_method(name).Options for name in METHODS}


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. ``null`` means the method's own recipe (see ``resolve``)."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodOptions = variants(_method_options, default="vssl")  # noqa: RUF009 (it is a field)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply ``section.key=value`` overrides. Raises UserError as ``vssl.config.read_config``."""
    return read_config(Config, path, overrides)


def resolve(config: Config) -> Config:
    """The config with every ``null`` replaced by the value of the method's recipe, so that changing ``method.name``
    alone gives a fair comparison."""
    method = find_method(config.method.name)
    recipe = method.recipe(config.method, small_images=config.data.image_size <= SMALL_IMAGE)
    optim = {"name": recipe.optimizer, "lr": recipe.lr, "weight_decay": recipe.weight_decay}
    return dataclasses.replace(
        config,
        method=_fill(config.method, recipe.options),
        optim=_fill(config.optim, optim),
        augment=complete(_fill(config.augment, recipe.augment), config.data.image_size),
    )


def _fill(section: Any, values: dict[str, Any]) -> Any:
    missing = {key: value for key, value in values.items() if getattr(section, key) is None}
    return dataclasses.replace(section, **missing)
