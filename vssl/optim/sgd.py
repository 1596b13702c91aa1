"""Stochastic gradient descent with momentum."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from pipelines.options import option
from vssl.optim.base import Group, OptimOptions, add_scheduled_decay, for_torch, start_momentum

__all__ = ["SGD", "SGDOptions"]


@dataclass(frozen=True)
class SGDOptions(OptimOptions):
    """The defaults are SimSiam's (Chen and He, arXiv 2011.10566, section 4)."""

    default_lr: ClassVar[float] = 0.05
    default_weight_decay: ClassVar[float] = 1e-4

    momentum: float = option(0.9, "momentum", low=0.0, high=1.0)


class SGD(torch.optim.SGD):
    """torch's fused SGD, which changes neither weights nor momentum if the attribute ``found_inf`` is 1."""

    Options = SGDOptions

    def __init__(self, groups: list[Group], options: SGDOptions) -> None:
        super().__init__(for_torch(groups), groups[0]["lr"], momentum=options.momentum, fused=True)
        start_momentum(self)

    def step(self, closure: None = None) -> None:
        add_scheduled_decay(self)
        super().step()
