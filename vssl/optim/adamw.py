"""Adam with decoupled weight decay."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pipelines.options import option
from vssl.optim.base import Group, OptimOptions, for_torch, shrink

__all__ = ["AdamW", "AdamWOptions"]


@dataclass(frozen=True)
class AdamWOptions(OptimOptions):
    """The defaults are those of our CIFAR configs, with which docs/method.md's results were measured (ResNets). For a
    ViT DINO takes lr 5e-4 and weight decay 0.04, which rises to 0.4 (Caron et al., arXiv 2104.14294)."""

    default_lr: ClassVar[float] = 2e-3
    default_weight_decay: ClassVar[float] = 1e-4

    betas: tuple[float, float] = option(
        (0.9, 0.999), "decay of the moving averages of the gradient and of its square", low=0.0, high=0.999999
    )


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW (Loshchilov and Hutter, arXiv 1711.05101), which changes neither weights nor its state if the
    attribute ``found_inf`` is 1."""

    Options = AdamWOptions

    def __init__(self, groups: list[Group], options: AdamWOptions) -> None:
        lr = groups[0]["lr"]
        # capturable exists only on accelerators; there fused keeps the step count on the device.
        super().__init__(for_torch(groups), lr, betas=options.betas, fused=True, capturable=lr.is_cuda)

    def step(self, closure: None = None) -> None:
        shrink(self, (group for group in self.param_groups if isinstance(group["decay"], Tensor)))
        super().step()
