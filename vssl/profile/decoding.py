"""libjpeg-turbo alone: the minimum cost of decoding."""

import mmap
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipelines.formats.arrays import unaligned
from pipelines.formats.ffcv.format import read_table
from pipelines.loading.prefetch import run_ahead

__all__ = ["JpegDecoder"]


class JpegDecoder:
    """Decodes the JPEGs of a .beton file on threads and discards the pixels: no crop, no copy, no checks.

    Args:
        path: the .beton file; ffcv must be installed, because its decoder is used.
        workers: number of threads.
        aligned: decode to an address that numpy chooses, instead of an odd address, which is faster.
    """

    def __init__(self, path: Path, workers: int, *, aligned: bool = False) -> None:
        from ffcv.libffcv import ctypes_imdecode

        self._imdecode = ctypes_imdecode
        self._table = read_table(path)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._address = np.frombuffer(self._map, np.uint8).ctypes.data
        self._scratch = threading.local()
        self._workers, self._aligned = workers, aligned
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="jpeg")

    def batches(self, samples: Iterable[tuple[np.ndarray, np.ndarray]], ahead: int) -> Generator[int]:
        """Decode the batches, up to ``ahead`` of them at the same time; yields the number of images of each.

        Args:
            samples: for each batch, positions int64 [B] and the denominators int64 [B] of the scales to decode at.
        """
        return run_ahead(self._start, samples, ahead)

    def _start(self, batch: tuple[np.ndarray, np.ndarray]) -> tuple[int, list[Future]]:
        index, denominator = batch
        parts = zip(np.array_split(index, self._workers), np.array_split(denominator, self._workers), strict=True)
        return len(index), [self._threads.submit(self._decode, *part) for part in parts]

    def _decode(self, index: np.ndarray, denominator: np.ndarray) -> None:
        table, scratch = self._table, self._scratch
        if not hasattr(scratch, "pixels"):
            shape = (3 * int(table.sizes.astype(np.int64).prod(axis=1).max()),)
            scratch.pixels = np.empty(shape, np.uint8) if self._aligned else unaligned(shape)
        target = scratch.pixels.ctypes.data
        for sample, scale in zip(index.tolist(), denominator.tolist(), strict=True):
            if table.jpeg[sample]:
                size = table.sizes[sample].tolist()
                source, length = self._address + int(table.starts[sample]), int(table.lengths[sample])
                self._imdecode(source, length, *size, target, *size, 0, 0, 1, scale, False, False)

    def close(self) -> None:
        self._threads.shutdown()
