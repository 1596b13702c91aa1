"""A part of train as val, for sources that have none."""

import logging
from dataclasses import replace

import numpy as np

from pipelines.errors import UserError
from pipelines.sources.base import Source

__all__ = ["hold_out"]

logger = logging.getLogger(__name__)

_SEED = 0


def hold_out(source: Source, fraction: float) -> Source:
    """Split train into train and val: the same images every time.

    Args:
        source: has only train.
        fraction: of each class's images, rounded, that become val; at least one image of every class stays in train.
            Between 0 and 1, both excluded. Images without labels count as one class.

    Raises:
        UserError: there is a val already (one without labels is left out if train has some), or the
            fraction of every class rounds to no image.
    """
    train = source.splits["train"]
    if "val" in source.splits:
        val = source.splits["val"]
        if (val.labels >= 0).any() or not (train.labels >= 0).any():
            raise UserError("--val-fraction: the source has images for val already")
        logger.warning("note: --val-fraction: the %d images of val have no labels and are left out", len(val.labels))
    rng = np.random.default_rng(_SEED)
    held_out = np.zeros(len(train.labels), bool)
    for label in np.unique(train.labels):
        rows = np.flatnonzero(train.labels == label)
        count = min(round(fraction * len(rows)), len(rows) - 1)
        held_out[rng.permutation(rows)[:count]] = True
    if not held_out.any():
        raise UserError(f"--val-fraction {fraction:g}: no class has enough images, none would be for val")
    val = replace(train.select(held_out), unusable={})  # what could not be listed stays train's
    return Source(source.classes, {"train": train.select(~held_out), "val": val})
