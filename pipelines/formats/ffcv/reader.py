"""Random access to the images in a .beton file."""

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.errors import UserError
from pipelines.formats.checksums import Checksums
from pipelines.formats.ffcv.format import read_table

__all__ = ["BetonReader"]


class BetonReader:
    """Maps the file itself, and decodes JPEGs with ffcv's decoder.

    The decoder's return value, which ffcv's own loader ignores, is checked here. ffcv makes one decoder handle per
    thread and never frees it, so decode on long-lived threads.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._source = folder, split
        self.path = folder / f"{split}.beton"
        table = read_table(self.path)
        self.sizes, self.labels, self.jpeg = table.sizes, table.labels, table.jpeg
        self._starts, self._lengths = table.starts, table.lengths
        self._checksums = Checksums(folder, split, self.labels, self.sizes)
        self.uniform = not self.jpeg.any() and bool((self.sizes == self.sizes[:1]).all())
        self._imdecode: Any = _import_imdecode(self.path) if self.jpeg.any() else None
        with self.path.open("rb") as file:
            # Copy-on-write only because torch warns about read-only arrays; nothing is written.
            self._map: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes: Any = np.frombuffer(self._map, np.uint8)  # None once closed, like the map
        self._address = self._bytes.ctypes.data

    def __reduce__(self) -> tuple:
        return type(self), self._source

    def image(self, index: int) -> np.ndarray:
        height, width = self.sizes[index].tolist()
        pixels = self.decode(index, np.empty(3 * height * width, np.uint8))
        return pixels if self.jpeg[index] else pixels.copy()

    def decode(self, index: int, scratch: np.ndarray, denominator: int = 1) -> np.ndarray:
        """Decode without a copy; the GIL is released meanwhile.

        Args:
            index: position in the split.
            scratch: uint8, contiguous, at least as large as the result.
            denominator: 1, 2, 4 or 8: a JPEG is decoded at 1/denominator of its scale; must be 1 for raw pixels.

        Returns:
            uint8 [ceil(height / denominator), ceil(width / denominator), 3]: a view of ``scratch``, or of the mapped
            file for raw pixels.
        """
        height, width = self.sizes[index].tolist()
        stored = self._stored(index)
        if not self.jpeg[index]:
            return stored.reshape(height, width, 3)
        # Before decoding: this raises if the result does not fit into the scratch.
        pixels = scratch[: 3 * -(-height // denominator) * -(-width // denominator)]
        pixels = pixels.reshape(-(-height // denominator), -(-width // denominator), 3)
        start, length, whole = int(self._starts[index]), len(stored), (height, width)
        source, target = self._address + start, scratch.ctypes.data
        failed = self._imdecode(source, length, *whole, target, *whole, 0, 0, 1, denominator, False, False)
        # TurboJPEG returns -1 for its warnings too, but it would silently scale an image of another size to fit.
        if failed or _jpeg_size(self._map, start, start + length) != whole:
            raise UserError(f"{self.path}: the JPEG data of sample {index} are damaged, pack the data again")
        return pixels

    def gather(self, index: np.ndarray) -> np.ndarray:
        """uint8 [B, height, width, 3] for int64 [B]; only if ``uniform`` (raw pixels, all of one size)."""
        for sample in self._checksums.unchecked(index).tolist():
            self._stored(sample)
        height, width = self.sizes[0].tolist()
        windows = np.lib.stride_tricks.as_strided(
            self._bytes, (len(self._bytes) - 3 * height * width + 1, 3 * height * width), (1, 1), writeable=False
        )
        return windows[self._starts[index]].reshape(-1, height, width, 3)

    def _stored(self, index: int) -> np.ndarray:
        """uint8 [bytes], a view of the mapped file."""
        start, length = self._starts[index], self._lengths[index]
        stored = self._bytes[start : start + length]
        self._checksums.check(index, stored, self.path)
        return stored

    def close(self) -> None:
        self._bytes = self._map = None


def _import_imdecode(path: Path) -> Callable[..., int]:
    threads = torch.get_num_threads()
    try:
        from ffcv.libffcv import ctypes_imdecode
    except (ImportError, OSError) as error:
        raise UserError(
            f"{path}: reading its JPEGs needs ffcv, which cannot be imported ({error}): install the requirements, "
            "or pack the data again with --format resident"
        ) from error
    finally:
        torch.set_num_threads(threads)  # importing ffcv makes it 1
    return ctypes_imdecode


def _jpeg_size(data: mmap.mmap, start: int, stop: int) -> tuple[int, int] | None:
    """Height and width in the frame header of the JPEG stream ``data[start:stop]``; None if there is none."""
    at = start + 2
    while at + 9 <= stop and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None
