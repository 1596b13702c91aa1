"""The momentum teacher: an exponential moving average of a network with its buffers; the schedule of its momentum."""

import copy
import math

import torch
from torch import Tensor, nn

from vssl.models.norm import freeze_statistics
from vssl.models.random_layers import silence

__all__ = ["Teacher", "scale_tau", "tau_at"]


def scale_tau(tau: float, batch_size: int) -> float:
    """The teacher's momentum at the start, for a batch of this size: tau ** (batch_size / 256) above 256, else tau.

    With larger batches there are fewer updates per image, and each must forget more (Busbridge et al., How to Scale
    Your EMA, arXiv 2307.13813). Below 256 the rule costs accuracy (docs/decisions/tau-and-batch.md).
    """
    return tau ** max(1.0, batch_size / 256)


def tau_at(step: int, *, start: float, steps: int) -> float:
    """The teacher's momentum at ``step`` (counted from 0) of ``steps``: rises from ``start`` to 1 by a cosine.

    tau(k) = 1 - (1 - tau_0) (cos(pi k / K) + 1) / 2 (BYOL, arXiv 2006.07733, section 3.2).
    """
    return 1.0 - (1.0 - start) * (math.cos(math.pi * step / steps) + 1.0) / 2.0


class Teacher(nn.Module):
    """theta_t <- tau theta_t + (1 - tau) theta_s, in place, without gradients.

    Weights and floating-point buffers (BatchNorm's running statistics) are averaged alike; the teacher never changes
    its buffers itself. It has no dropout and no drop path, as in DINO (arXiv 2104.14294).

    Args:
        student: the network to copy; its norms must be those of ``vssl.models.norm`` (see ``adopt_norms``).
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)
        freeze_statistics(self.network)
        silence(self.network)

    @torch.no_grad()
    def forward(self, images: Tensor) -> object:
        """The output of ``network`` for images [B, 3, S, S]."""
        return self.network(images)

    @torch.no_grad()
    def update(self, student: nn.Module, rate: Tensor) -> None:
        """Move towards the student by ``rate`` = 1 - tau, a float32 scalar on the device; 0 changes nothing.

        This is a step of gradient descent on |theta_t - theta_s|^2 / 2. So torch's fused SGD can do it: one kernel
        for many tensors, which reads the rate on the device.
        """
        ours, theirs = self.network.state_dict(keep_vars=True), student.state_dict(keep_vars=True)
        averaged = [key for key, value in ours.items() if value.is_floating_point()]
        # p <- p - lr (weight_decay p - g)
        torch._fused_sgd_(
            [ours[key] for key in averaged],
            [theirs[key] for key in averaged],
            [],
            lr=rate,
            weight_decay=1.0,
            maximize=True,
            momentum=0.0,
            dampening=0.0,
            nesterov=False,
            is_first_step=False,
        )
