"""The resident format: all pixels in one array, to be loaded into device memory as it is."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pipelines.errors import UserError
from pipelines.formats.arrays import open_array
from pipelines.formats.checksums import Checksums, checksum, checksum_file
from pipelines.images import Sample

__all__ = ["Writer", "file_names", "iter_samples", "open_arrays", "read_labels_and_sizes"]


class Writer:
    """Writes a split's samples in the order in which they are added, each at the top left of a canvas of one size.

    Args:
        folder: where ``{split}.npy`` uint8 [N, H, W, 3], ``{split}-labels.npy`` int64 [N] (-1: none),
            ``{split}-sizes.npy`` int32 [N, 2] (height, width) and the checksums, of whole canvases, are made.
        split: train or val.
        capacity: the most samples that may be added.
    """

    raw_pixels = 2**62  # nothing is compressed
    stores_jpegs = False
    keep_small_jpegs = False
    max_side = 512  # every image takes as much memory as the largest; --max-resolution scales larger ones down

    def __init__(self, folder: Path, split: str, capacity: int) -> None:
        self._folder, self._split = folder, split
        self._labels = np.empty(capacity, np.int64)
        self._sizes = np.empty((capacity, 2), np.int32)
        self._count = 0
        # The canvas is known only after the last image; until then images are stored one after another.
        self._spool_path = folder / f"{split}.spool"
        self._spool = self._spool_path.open("wb", buffering=2**20)

    def add(self, sample: Sample, label: int) -> None:
        self._spool.write(sample.data)
        self._sizes[self._count] = sample.height, sample.width
        self._labels[self._count] = label
        self._count += 1

    def close(self) -> None:
        """Copy the images to their canvases. Raises ``UserError`` if the disk has too little space."""
        self._spool.close()
        sizes = self._sizes[: self._count]
        shape = (self._count, *sizes.max(axis=0, initial=1).tolist(), 3)
        size, free = int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(self._folder).free
        if size > free:
            raise UserError(
                f"{self._folder.parent}: {self._split} would take {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
                "give a smaller --max-resolution, or --format ffcv"
            )
        labels, checksums = self._labels[: self._count], np.empty(self._count, np.uint32)
        pixels = np.lib.format.open_memmap(self._folder / f"{self._split}.npy", "w+", np.uint8, shape)
        with self._spool_path.open("rb") as spool:
            for index, (height, width) in enumerate(sizes.tolist()):
                row, image = pixels[index], np.frombuffer(spool.read(height * width * 3), np.uint8)
                row[:height, :width] = image.reshape(height, width, 3)
                checksums[index] = checksum(int(labels[index]), height, width, row)
        pixels.flush()
        self._spool_path.unlink()
        np.save(self._folder / checksum_file(self._split), checksums)
        np.save(self._folder / f"{self._split}-labels.npy", labels)
        np.save(self._folder / f"{self._split}-sizes.npy", sizes)


def file_names(split: str, present: Iterable[str]) -> set[str]:
    """The files of a split; they do not depend on ``present``."""
    return {f"{split}.npy", f"{split}-labels.npy", f"{split}-sizes.npy", checksum_file(split)}


def open_arrays(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels uint8 [N, H, W, 3] (a read-only map of the file), labels int64 [N], sizes int32 [N, 2].

    Raises:
        UserError: a file is cut off, of another type or shape, or an image is larger than the canvas.
    """
    pixels = open_array(folder / f"{split}.npy", np.uint8, (None, None, None, 3))
    labels = open_array(folder / f"{split}-labels.npy", np.int64, (len(pixels),))
    sizes = open_array(folder / f"{split}-sizes.npy", np.int32, (len(pixels), 2))
    if not ((sizes >= 1) & (sizes <= pixels.shape[1:3])).all():
        raise UserError(f"{folder / f'{split}-sizes.npy'}: an image is empty or larger than the canvas")
    return pixels, np.array(labels), np.array(sizes)


def read_labels_and_sizes(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 [N] and sizes int32 [N, 2] of a split, after the checks of ``open_arrays``."""
    return open_arrays(folder, split)[1:]


def iter_samples(folder: Path, split: str, start: int, stop: int) -> Iterator[Sample]:
    """Samples ``start`` to ``stop`` as they are stored. Raises ``UserError`` if one does not match its checksum."""
    pixels, labels, sizes = open_arrays(folder, split)
    checksums = Checksums(folder, split, labels, sizes)
    for index in range(start, stop):
        checksums.check(index, pixels[index], folder / f"{split}.npy")
        height, width = sizes[index].tolist()
        yield Sample(height, width, False, pixels[index, :height, :width].tobytes())
