"""Packed data sets of random pixels: speed does not depend on what an image shows."""

from pathlib import Path

import numpy as np

from pipelines.errors import UserError
from pipelines.formats.packed import Packed, holds_packed, measure_split, write_manifest
from pipelines.formats.resident import Writer
from pipelines.formats.staging import staged
from pipelines.images import Sample

__all__ = ["pack_noise_if_absent"]

_CLASSES = 100


def pack_noise_if_absent(out: Path, count: int, side: int) -> None:
    """Pack ``count`` images of ``side`` x ``side`` random pixels in the resident format, only for training; nothing is
    done if ``out`` holds a packed data set already.

    Raises:
        UserError: ``out`` cannot be written.
    """
    if holds_packed(out):
        return
    random = np.random.default_rng(0)
    try:
        with staged(out, lambda _: False) as folder:
            writer = Writer(folder, "train", count)
            for index in range(count):
                writer.add(Sample(side, side, False, random.bytes(3 * side * side)), index % _CLASSES)
            writer.close()
            classes = tuple(str(label) for label in range(_CLASSES))
            splits = {"train": measure_split(folder, "resident", "train")}
            options: dict[str, float | None] = {"max_resolution": None, "quality": None}
            write_manifest(Packed(folder, "resident", "noise", classes, splits, options), [])
    except OSError as error:
        raise UserError(f"cannot pack noise into {out}: {error}") from error
