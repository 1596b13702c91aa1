"""Packed data sets of random pixels: speed does not depend on what an image shows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.convert import convert
from pipelines.formats.packed import holds_packed
from pipelines.sources.base import Source, SourceSplit

__all__ = ["pack_noise_if_absent"]

_CLASSES = 100


@dataclass(frozen=True)
class _Noise:
    """Images of independent, uniformly distributed pixels; the same at every iteration."""

    count: int
    side: int

    def __iter__(self) -> Iterator[np.ndarray]:
        random = np.random.default_rng(0)
        for _ in range(self.count):
            yield random.integers(256, size=(self.side, self.side, 3), dtype=np.uint8)


def pack_noise_if_absent(out: Path, count: int, side: int) -> None:
    """Pack ``count`` images of ``side`` x ``side`` random pixels in the resident format, only for training; nothing is
    done if ``out`` holds a packed data set already.

    Raises:
        UserError: ``out`` cannot be written.
    """
    if holds_packed(out):
        return
    names = [str(index) for index in range(count)]
    split = SourceSplit(_Noise(count, side), names, np.arange(count) % _CLASSES)
    classes = tuple(str(label) for label in range(_CLASSES))
    convert("noise", Source(classes, {"train": split}), out, format="resident", workers=1)
