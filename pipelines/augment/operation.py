"""The base class of colour operations: how their parameters are drawn, and how they are applied."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from pipelines.config import AugmentConfig
from pipelines.rng import Draws

__all__ = ["Operation", "Params", "Planes", "choose", "flatten_views"]

Planes = tuple[Tensor, Tensor, Tensor]  # red, green, blue: float32 [N, H, W] in [0, 1]
Params: TypeAlias = Tensor | tuple[Tensor | None, ...]  # of one operation; each [B, 2, ...], by image and view


class Operation(ABC):
    """An operation of the recipe. To add one: a subclass, its config fields, a line in ``views.OPERATIONS``."""

    name: ClassVar[str]  # the key of its parameters

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def active(self) -> bool:
        """Whether the recipe can apply it to any view; if not, it is neither drawn nor applied."""

    @abstractmethod
    def sample(self, draws: Draws) -> Params:
        """Draw the parameters under names that no other operation uses. A view not chosen gets a neutral value."""

    @abstractmethod
    def apply(self, planes: Planes, params: Any) -> Planes:
        """Apply the operation to N = 2B views: B first views, then B second views. A pure function.

        Args:
            params: from ``sample`` of the same class.
        """


def choose(draws: Draws, name: str, probabilities: tuple[float, float]) -> Tensor:
    """bool [B, 2]: which views are chosen; one probability for first views, one for second views."""
    numbers = draws.uniform(name).unbind(dim=1)
    return torch.cat([number < share for number, share in zip(numbers, probabilities, strict=True)], dim=1)


def flatten_views(value: Tensor) -> Tensor:
    """[B, 2, ...] to [2B, 1, 1, ...], first views, then second views, to broadcast with ``Planes``."""
    return value.transpose(0, 1).flatten(0, 1)[:, None, None]
