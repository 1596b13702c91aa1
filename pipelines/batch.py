"""The batch that a loader hands to the step, the views made of it, and the protocol of every loader."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

__all__ = ["Batch", "Loader", "Views"]


class Batch(NamedTuple):
    """One process's share of a batch, on the device.

    ``C == 1``: whole images on a padded canvas, to be cropped on the device. ``C == 2``: the two crops, already cut
    by the loader, with the parameters of ``augment.sample_crops``; ``H == W == image_size``.
    """

    pixels: Tensor  # uint8 [B, C, H, W, 3], RGB
    size: Tensor  # int32 [B, 2], valid height and width inside H x W; what lies outside is arbitrary
    labels: Tensor  # int64 [B], -1: no label
    index: Tensor  # int64 [B], position in the packed split, the same in every format


class Views(NamedTuple):
    """The augmented views of a batch, in groups of one side; in a group, view after view: row v * B + b is view v of
    image b."""

    full: Tensor  # float32 [V * B, 3, S, S], V >= 2
    local: Tensor | None = None  # float32 [L * B, 3, s, s]; None: no local views


class Loader(Protocol):
    """Gives the batches of an epoch in the sampler's order; serves any number of epochs.

    The state is (seed, epoch, batches handed out); prefetched batches do not count. ``load_state_dict`` followed by
    ``iter`` continues with exactly the next batch. A worker's exception is raised in the caller's thread with the index
    of the sample. An iteration may be left early. ``close`` ends every thread and frees every buffer; it may be called
    twice.
    """

    def __len__(self) -> int:
        """Batches per epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch; afterwards the epoch is over and ``set_epoch`` starts another."""

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch (counted from 0)."""

    def state_dict(self) -> dict:
        """``{"seed", "epoch", "batches"}``, all integers."""

    def load_state_dict(self, state: dict) -> None:
        """Continue where ``state`` was taken. Raises ``UserError`` if its seed differs."""

    def close(self) -> None:
        """End threads, free buffers."""
