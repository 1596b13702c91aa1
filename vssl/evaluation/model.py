"""A trained model as evaluation sees it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipelines.augment.views import Augment
from pipelines.config import AugmentConfig, DataConfig
from vssl.methods.base import Method
from vssl.models.config import ModelConfig

__all__ = ["FrozenModel", "RunSettings"]


class RunSettings(Protocol):
    """The sections of a run's config that evaluation reads."""

    @property
    def data(self) -> DataConfig: ...

    @property
    def augment(self) -> AugmentConfig: ...

    @property
    def model(self) -> ModelConfig: ...


class FrozenModel(Protocol):
    """A trained student in evaluation mode, without gradients; ``vssl.load`` returns one."""

    source: Path  # the file or folder that it came from
    backbone: nn.Module  # [N, 3, S, S] -> [N, F]
    step: int | None  # how long it was trained, if known
    trained_by: str | None  # the name of its method, if known
    augment: Augment  # the transforms of its run
    device: torch.device

    @property
    def config(self) -> RunSettings: ...

    @property
    def features(self) -> Callable[[Any], Tensor]:
        """From normalised images, float32 [N, 3, S, S], to the backbone's features [N, F]."""

    def trained_method(self) -> Method:
        """The method with all its parts. Raises UserError if only its backbone was kept."""
