"""Random access to the images of a split in the resident format."""

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.formats.checksums import Checksums
from pipelines.formats.resident.format import open_arrays

__all__ = ["ArrayReader"]


class ArrayReader:
    """Maps one array; each image is at the top left of a canvas, all of one size.

    Attributes:
        shape: of the array.
        path: its file.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._source = folder, split
        self.path = folder / f"{split}.npy"
        pixels, self.labels, self.sizes = open_arrays(folder, split)
        self._pixels: Any = pixels  # None once closed
        self.shape: tuple[int, int, int, int] = self._pixels.shape
        self._checksums = Checksums(folder, split, self.labels, self.sizes)

    def __reduce__(self) -> tuple:
        return type(self), self._source

    def image(self, index: int) -> np.ndarray:
        height, width = self.sizes[index]
        self._checksums.check(index, self._pixels[index], self.path)
        return np.array(self._pixels[index, :height, :width])

    def canvases(self, start: int, stop: int) -> np.ndarray:
        """uint8 [n, H, W, 3], a copy of the whole canvases of samples ``start`` to ``stop - 1``."""
        canvases = np.array(self._pixels[start:stop])
        for index, canvas in enumerate(canvases, start):
            self._checksums.check(index, canvas, self.path)
        return canvases

    def close(self) -> None:
        self._pixels = None
