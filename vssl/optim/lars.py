"""LARS: a rate for each weight, in proportion to its norm."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pipelines.options import option
from vssl.optim.base import Group, OptimOptions, start_momentum, trained

__all__ = ["LARS", "LARSOptions"]


@dataclass(frozen=True)
class LARSOptions(OptimOptions):
    """The defaults are SimCLR's (Chen et al., arXiv 2002.05709: 0.3 for a batch of 256, weight decay 1e-6)."""

    default_lr: ClassVar[float] = 0.3
    default_weight_decay: ClassVar[float] = 1e-6

    momentum: float = option(0.9, "momentum", low=0.0, high=1.0)
    eta: float = option(0.02, "trust coefficient", low=0.0)


class LARS(torch.optim.SGD):
    """Layer-wise adaptive rate scaling with momentum.

    You, Gitman and Ginsburg, Large Batch Training of Convolutional Networks, arXiv 1708.03888. As in BYOL's
    recipes, the local rate is clipped (LARC), and biases and norms are excluded from adaptation and decay.
    For an adapted weight  g <- min(eta |w| / (|g| + wd |w|) / lr, 1) * (g + wd w), in place; then torch's fused SGD
    with momentum, which changes neither weights nor momentum if the attribute ``found_inf`` is 1.

    Args:
        groups: as ``vssl.optim.base.Group``; weights of the kind ``plain`` are neither adapted nor decayed.
        options: momentum and eta as above.
    """

    Options = LARSOptions

    def __init__(self, groups: list[Group], options: LARSOptions) -> None:
        super().__init__(groups, groups[0]["lr"], options.momentum, fused=True)
        self.eta = options.eta
        start_momentum(self)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            weights = trained(group)
            if group["kind"] != "plain" and weights:
                self._adapt(weights, group["lr"], group["decay"])
        super().step()

    def _adapt(self, weights: list[Tensor], lr: Tensor, decay: float | Tensor) -> None:
        grads = [w.grad for w in weights]
        weight_norms, grad_norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, grads))
        local = self.eta * weight_norms / (grad_norms + decay * weight_norms + 1e-8)
        # The rate is not adapted if the weight or its gradient is zero.
        adapted = (weight_norms > 0) & (grad_norms > 0)
        trust = torch.where(adapted, (local / lr).clamp(max=1.0), 1.0)
        if isinstance(decay, Tensor):
            torch._foreach_add_(grads, torch._foreach_mul(weights, decay))
        else:
            torch._foreach_add_(grads, weights, alpha=decay)
        torch._foreach_mul_(grads, list(trust.unbind()))
