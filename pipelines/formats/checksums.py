"""A CRC-32 of every sample, in ``{split}-crc32.npy``: what was packed is what is trained on.

libjpeg makes a wrong picture of most damaged JPEG data without a complaint, and a changed pixel, label or size looks
like any other.
"""

import mmap
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import UserError
from pipelines.formats.arrays import open_array

__all__ = ["Checksums", "checksum", "checksum_file"]

_TABLE_ENTRY = struct.Struct("<qii")


def checksum(label: int, height: int, width: int, stored: bytes | np.ndarray) -> int:
    """CRC-32 of a sample: of its label (int64), height and width (int32), little endian, and then its stored bytes."""
    buffer: Any = stored  # numpy's annotations call an array one from Python 3.12 on
    return zlib.crc32(buffer, zlib.crc32(_TABLE_ENTRY.pack(label, height, width)))


def checksum_file(split: str) -> str:
    """Name of the file that holds a split's checksums, uint32 [N]."""
    return f"{split}-crc32.npy"


class Checksums:
    """Compares each sample with its checksum when its bytes are read for the first time, and never again.

    Threads share an instance, and so do processes that are forked from this one.

    Args:
        folder, split: a packed split.
        labels, sizes: int64 [N] and int32 [N, 2] as its tables have them.

    Raises:
        UserError: the file of checksums is missing, damaged, or not of N samples.
    """

    def __init__(self, folder: Path, split: str, labels: np.ndarray, sizes: np.ndarray) -> None:
        self._file = checksum_file(split)
        self._expected = np.array(open_array(folder / self._file, np.uint32, (len(labels),)))
        self._labels, self._sizes = labels, sizes
        # Shared memory of no file, for the worker processes of one epoch do not live to see the next.
        self._checked = np.frombuffer(mmap.mmap(-1, len(labels)), np.bool_)

    def unchecked(self, index: np.ndarray) -> np.ndarray:
        """Those of the samples int64 [B] that have not been read yet."""
        return index[~self._checked[index]]

    def check(self, index: int, stored: bytes | np.ndarray, path: Path) -> None:
        """Compare the bytes of a sample, which were read from the file ``path``, unless that has been done.

        Raises:
            UserError: bytes, label or size are not those that were packed.
        """
        if self._checked[index]:
            return
        height, width = self._sizes[index].tolist()
        if checksum(int(self._labels[index]), height, width, stored) != self._expected[index]:
            raise UserError(
                f"{path}: sample {index} does not match its checksum in {self._file}: damaged, pack the data again"
            )
        self._checked[index] = True
