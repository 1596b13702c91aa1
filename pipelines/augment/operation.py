"""The base class of colour operations: how their parameters are drawn, and how they are applied."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from pipelines.augment.groups import ViewGroup
from pipelines.config import AugmentConfig
from pipelines.rng import Draws

__all__ = ["Operation", "Params", "Planes", "choose", "flatten_views"]

Planes = tuple[Tensor, Tensor, Tensor]  # red, green, blue: float32 [N, H, W] in [0, 1]
Params: TypeAlias = Tensor | tuple[Tensor | None, ...]  # of one operation; each [B, V, ...], by image and view


class Operation(ABC):
    """An operation of the recipe. To add one: a subclass, its config fields, a line in ``views.OPERATIONS``.

    Args:
        config: the recipe.
        group: the views that it is applied to, V of them.
    """

    name: ClassVar[str]  # the key of its parameters

    def __init__(self, config: AugmentConfig, group: ViewGroup) -> None:
        self.config, self.group = config, group

    @property
    @abstractmethod
    def active(self) -> bool:
        """Whether the recipe can apply it to any view; if not, it is neither drawn nor applied."""

    @abstractmethod
    def sample(self, draws: Draws) -> Params:
        """Draw the parameters under names that no other operation uses. A view not chosen gets a neutral value."""

    @abstractmethod
    def apply(self, planes: Planes, params: Any) -> Planes:
        """Apply the operation to the N = V * B views of the group, view after view. A pure function.

        Args:
            params: from ``sample`` of the same class.
        """

    def in_group(self, full: Sequence[float], local: float) -> tuple[float, ...]:
        """The probability for each view of the group: those of full views repeat in turn."""
        given = full if self.group.name == "full" else (local,)
        return tuple(given[view % len(given)] for view in range(self.group.count))


def choose(draws: Draws, name: str, probabilities: Sequence[float]) -> Tensor:
    """bool [B, V]: which views are chosen. ``probabilities``: of the views; fewer than V repeat in turn."""
    numbers = draws.uniform(name).unbind(dim=1)
    return torch.cat([number < probabilities[v % len(probabilities)] for v, number in enumerate(numbers)], dim=1)


def flatten_views(value: Tensor) -> Tensor:
    """[B, V, ...] to [V * B, 1, 1, ...], view after view, to broadcast with ``Planes``."""
    return value.transpose(0, 1).flatten(0, 1)[:, None, None]
