"""The momentum teacher: an exponential moving average of the student's encoder, buffers and all."""

import copy

import torch
from torch import Tensor, nn

from vssl.models.encoder import Encoder
from vssl.models.norm import freeze_statistics

__all__ = ["Teacher"]


class Teacher:
    """theta_t <- tau theta_t + (1 - tau) theta_s, in place.

    That is a step of gradient descent on |theta_t - theta_s|^2 / 2 at the rate 1 - tau, and torch's fused one, a single
    kernel for many tensors, reads its rate on the device.

    Weights and floating-point buffers (BatchNorm's running statistics) are averaged alike. In its forward pass the
    teacher normalises with the batch's own statistics, as the student does, and never changes its buffers itself.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        freeze_statistics(self.encoder)
        self._targets, self._sources = self._pairs(encoder)

    def _pairs(self, student: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        ours, theirs = self.encoder.state_dict(keep_vars=True), student.state_dict(keep_vars=True)
        keys = [key for key, value in ours.items() if value.is_floating_point()]
        return [ours[key].data for key in keys], [theirs[key].data for key in keys]

    @torch.no_grad()
    def update(self, weight: Tensor) -> None:
        """Move towards the student by ``weight`` = 1 - tau, a float32 scalar on the device; 0 changes nothing."""
        # p <- p - lr (weight_decay p - g)
        torch._fused_sgd_(
            self._targets,
            self._sources,
            [],
            lr=weight,
            weight_decay=1.0,
            maximize=True,
            momentum=0.0,
            dampening=0.0,
            nesterov=False,
            is_first_step=False,
        )
