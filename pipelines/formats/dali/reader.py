"""Random access to the images in the shards of a split."""

from pathlib import Path

import numpy as np
import torch

from pipelines.errors import UserError
from pipelines.formats.checksums import Checksums
from pipelines.formats.dali.format import read_table, shard_path
from pipelines.images import ImageError, decode

__all__ = ["ShardReader"]


class ShardReader:
    """Maps the shards and decodes as the conversion does; needs neither DALI nor ffcv."""

    def __init__(self, folder: Path, split: str) -> None:
        self._source = folder, split
        table = read_table(folder, split)
        self.sizes, self.labels = table.sizes, table.labels
        self._table = table
        self._checksums = Checksums(folder, split, self.labels, self.sizes)
        shards = range(table.shards[-1] + 1)
        self._paths = [shard_path(folder, split, number) for number in shards]
        # torch's maps keep no file open: there may be more shards than a process may have open files.
        self._maps = [
            torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8).numpy() for path in self._paths
        ]

    def __reduce__(self) -> tuple:
        return type(self), self._source

    def encoded(self, index: int) -> np.ndarray:
        """uint8 [bytes]: a JPEG or PNG file, a view of the mapped shard."""
        start, length, shard = self._table.starts[index], self._table.lengths[index], self._table.shards[index]
        encoded = self._maps[shard][start : start + length]
        self._checksums.check(index, encoded, self._paths[shard])
        return encoded

    def image(self, index: int) -> np.ndarray:
        try:
            pixels = np.array(decode(self.encoded(index).tobytes())[0])
            problem = None if pixels.shape[:2] == tuple(self.sizes[index]) else "has a size that differs from the table"
        except ImageError as error:
            problem = str(error)
        if problem is not None:
            raise UserError(f"{self._paths[self._table.shards[index]]}: sample {index} {problem}, pack the data again")
        return pixels

    def close(self) -> None:
        self._maps = []
