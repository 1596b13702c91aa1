"""Count the steps that were not finite and remember the first one, on the device."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.files import write_json

__all__ = ["Watch", "diagnosis"]


class Watch:
    """Counts the steps whose loss or gradient was not finite, and keeps the number and the batch of the first.

    ``note`` works in place without a host sync and can be part of a captured step; ``read`` needs a sync.

    Args:
        images: number of images of a batch on this process.
    """

    def __init__(self, images: int, device: torch.device) -> None:
        self.steps, self.bad_steps, self.first = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))
        self.index = torch.full((images,), -1, device=device)  # -1: no image

    def note(self, good: Tensor, index: Tensor) -> None:
        """Record a step. good: bool, a scalar; index: int64 [B], its images; B is at most ``images``."""
        self.steps += 1
        first = ~good & (self.bad_steps == 0)
        self.first.copy_(torch.where(first, self.steps, self.first))
        kept = self.index[: len(index)]
        kept.copy_(torch.where(first, index, kept))
        self.index[len(index) :].masked_fill_(first, -1)  # a ragged batch does not fill the rest
        self.bad_steps += ~good

    def read(self) -> tuple[int, int]:
        """The number of bad steps since the last reading, and the first of them (counted from 1; 0: none). ``index``
        stays until the next bad step."""
        bad, first = torch.stack([self.bad_steps, self.first]).tolist()
        for counter in (self.steps, self.bad_steps, self.first):
            counter.zero_()
        return bad, first


def diagnosis(path: Path, figures: dict[str, Any], *, write: bool) -> UserError:
    """Write what is known of steps that were not finite; the error that names the file.

    Args:
        figures: with ``bad_steps`` and ``first_bad_step``.
        write: False on all processes but the first.
    """
    if write:
        write_json(path, figures)
    return UserError(
        f"the loss or a gradient was not finite in {figures['bad_steps']} of the last steps, first in step "
        f"{figures['first_bad_step']}; they changed nothing, the last checkpoint is kept, and {path} has the batch and "
        "the last healthy figures: lower optim.lr or set train.clip_grad"
    )
