"""A CRC-32 of every sample, in ``{split}-crc32.npy``, to train on exactly the samples that were packed.

Without it damage would go unnoticed: libjpeg decodes most damaged JPEG data to a wrong picture without an error, and a
changed pixel, label or size looks like any other.
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
    buffer: Any = stored  # in numpy's annotations an array is a Buffer only from Python 3.12 on
    return zlib.crc32(buffer, zlib.crc32(_TABLE_ENTRY.pack(label, height, width)))


def checksum_file(split: str) -> str:
    """Name of the file that holds a split's checksums, uint32 [N]."""
    return f"{split}-crc32.npy"


class Checksums:
    """Compares each sample with its checksum when its bytes are read for the first time, and never again.

    Threads and forked processes may share an instance.

    Args:
        folder, split: a packed split.
        labels, sizes: int64 [N] and int32 [N, 2], from the split's tables.

    Raises:
        UserError: the file of checksums is missing, damaged, or does not have N entries.
    """

    def __init__(self, folder: Path, split: str, labels: np.ndarray, sizes: np.ndarray) -> None:
        self._file = checksum_file(split)
        self._expected = np.array(open_array(folder / self._file, np.uint32, (len(labels),)))
        self._labels, self._sizes = labels, sizes
        # Anonymous shared memory: torch's worker processes end with the epoch, but what they checked stays known.
        self._checked = np.frombuffer(mmap.mmap(-1, len(labels)), np.bool_)

    def unchecked(self, index: np.ndarray) -> np.ndarray:
        """The samples among int64 [B] that have not been compared yet."""
        return index[~self._checked[index]]

    def check(self, index: int, stored: bytes | np.ndarray, path: Path) -> None:
        """Compare a sample's bytes, read from the file ``path``, with its checksum, unless already done.

        Raises:
            UserError: bytes, label or size differ from what was packed.
        """
        if self._checked[index]:
            return
        height, width = self._sizes[index].tolist()
        if checksum(int(self._labels[index]), height, width, stored) != self._expected[index]:
            raise UserError(
                f"{path}: sample {index} does not match its checksum in {self._file}: damaged, pack the data again"
            )
        self._checked[index] = True
