"""What an operation on the colours of the views is: how its parameters are drawn, and how they are applied."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from pipelines.config import AugmentConfig
from pipelines.rng import Draws

__all__ = ["Operation", "Params", "Planes", "choose", "flatten_views"]

Planes = tuple[Tensor, Tensor, Tensor]  # red, green, blue: float32 [N, H, W] in [0, 1]
Params: TypeAlias = Tensor | tuple[Tensor | None, ...]  # of one operation: [B, 2, ...] each, of every image and view


class Operation(ABC):
    """An operation of the recipe. A new one is a subclass, its config fields, and its line in ``views.OPERATIONS``."""

    name: ClassVar[str]  # the key of its parameters

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def active(self) -> bool:
        """Whether the recipe lets any view undergo it; otherwise it is neither drawn nor applied."""

    @abstractmethod
    def sample(self, draws: Draws) -> Params:
        """Draw the parameters, by names that no other operation uses. A view not chosen gets a neutral value."""

    @abstractmethod
    def apply(self, planes: Planes, params: Any) -> Planes:
        """Change the ``planes`` of N = 2B views, the B first ones before the B second ones; a pure function.

        Args:
            params: as ``sample`` of the same class gives them.
        """


def choose(draws: Draws, name: str, probabilities: tuple[float, float]) -> Tensor:
    """bool [B, 2]: whether to do something, with a probability for each view."""
    numbers = draws.uniform(name).unbind(dim=1)
    return torch.cat([number < share for number, share in zip(numbers, probabilities, strict=True)], dim=1)


def flatten_views(value: Tensor) -> Tensor:
    """[B, 2, ...] to [2B, 1, 1, ...], the first views before the second ones, to go with ``Planes``."""
    return value.transpose(0, 1).flatten(0, 1)[:, None, None]
