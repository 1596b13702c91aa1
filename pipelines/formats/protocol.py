"""The interface of a packed format: a module with the members of ``Format``. Importing it loads no torch."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from pipelines.images import Sample

__all__ = ["Format", "Reader", "Writer"]


class Writer(Protocol):
    """Writes the samples of one split in the order they are added. The first four members are class attributes."""

    raw_pixels: int
    """Images of at most this many pixels are stored as pixels, unless a JPEG quality is given."""

    max_side: int
    """Longest side in pixels of an image that the format can hold."""

    stores_jpegs: bool
    """Whether a sample may be a JPEG file. If not, all are pixels, and no JPEG quality can be given."""

    keep_small_jpegs: bool
    """Whether JPEG files of at most ``raw_pixels`` pixels keep their bytes."""

    def __init__(self, folder: Path, split: str, capacity: int) -> None:
        """Begin the files of a split in ``folder``; at most ``capacity`` samples will be added."""

    def add(self, sample: Sample, label: int) -> None:
        """Append a sample; its label is its class index, or -1 if it has none."""

    def close(self) -> None:
        """Finish the files; only then are they complete. Raises ``UserError`` if the disk cannot hold them."""


WriterClass = type[Writer]  # within Format, Writer is the member of that name


class Reader(Protocol):
    """The images of a split by position. Several threads may read; an unpickled copy opens the files again.

    A sample is compared with its checksum when first read: a ``UserError`` names a sample that differs.
    """

    sizes: np.ndarray
    """int32 [N, 2], height and width."""

    labels: np.ndarray
    """int64 [N], -1: no label."""

    def image(self, index: int) -> np.ndarray:
        """uint8 [height, width, 3], RGB, full resolution. Raises ``UserError`` if the stored bytes are damaged."""

    def close(self) -> None:
        """Close the files. May be called twice; nothing can be read afterwards."""


@runtime_checkable
class Format(Protocol):
    """A packed format: writes, checks and reads the files of a split, which all lie in one folder.

    Besides files of its own, every split has the checksums of ``pipelines.formats.checksums``.
    """

    @property
    def Writer(self) -> WriterClass:
        """The class that writes a split."""

    def file_names(self, split: str, present: Iterable[str]) -> set[str]:
        """The names of all files that a split must have; ``present``: the names of the files that exist."""

    def read_labels_and_sizes(self, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Labels int64 [N] (-1: none) and sizes int32 [N, 2] (height, width) of a split, without reading pixels.

        Raises:
            UserError: a header or table is damaged, or contradicts another.
        """

    def iter_samples(self, folder: Path, split: str, start: int, stop: int) -> Iterator[Sample]:
        """The samples ``start`` to ``stop - 1`` as they are stored.

        Raises:
            UserError: a sample does not match its checksum.
        """

    def open_reader(self, folder: Path, split: str) -> Reader:
        """Open a split for random access.

        Raises:
            UserError: a table is damaged, or a package that decodes the images is missing.
        """

    def find_loader(self) -> type | None:
        """The format's own loader for training, a subclass of ``pipelines.loading.base.BaseLoader``, imported when this
        is called. None: there is none, and ``pipelines.loading.reference`` reads the format.
        """
