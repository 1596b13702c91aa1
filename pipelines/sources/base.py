"""What every source gives: the images of its splits, in their final order, with labels and class names."""

import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from pipelines.errors import UserError
from pipelines.images import ImageError

__all__ = [
    "FileSlice",
    "Image",
    "Source",
    "SourceModule",
    "SourceSplit",
    "existing_folder",
    "file_size",
    "from_arrays",
    "read_file",
    "without_labels",
]


class FileSlice(NamedTuple):
    """An image file that is stored within another file."""

    path: str
    start: int  # bytes
    length: int


Image = (
    str | FileSlice | bytes | np.ndarray
)  # the path of a file, a part of a file, a file's content, or pixels uint8 [H, W, 3]


@dataclass(frozen=True)
class SourceSplit:
    """Images in their final order.

    ``images`` can be iterated over several times, and need not hold them all in memory.
    """

    images: Iterable[Image] | np.ndarray  # N; an array is uint8 [N, H, W, 3]
    names: list[str]  # N, for messages and the manifest: a file's path below the source
    labels: np.ndarray  # int64 [N], place in the classes; -1: none
    unusable: dict[str, str] = field(default_factory=dict)  # what could not even be listed, by name: the reason

    def select(self, mask: np.ndarray) -> "SourceSplit":
        """The images at which ``mask``, bool [N], is true."""
        images = self.images[mask] if isinstance(self.images, np.ndarray) else _Selected(self.images, mask)
        return replace(self, images=images, names=list(itertools.compress(self.names, mask)), labels=self.labels[mask])


@dataclass(frozen=True)
class _Selected:
    """Some of a split's images; the others are passed over."""

    images: Iterable[Image]
    mask: np.ndarray

    def __iter__(self) -> Iterator:
        return itertools.compress(self.images, self.mask)


@dataclass(frozen=True)
class Source:
    """A data set that can be packed."""

    classes: tuple[str, ...]  # their order gives the labels
    splits: dict[str, SourceSplit]  # train, and val if there is one


def without_labels(source: Source) -> Source:
    """The same images in the same order, without labels and classes."""
    splits = {name: replace(split, labels=np.full_like(split.labels, -1)) for name, split in source.splits.items()}
    return Source((), splits)


class SourceModule(Protocol):
    """What the module of a source offers."""

    def load(self, dataset: str, source: Path | None) -> Source:
        """List the images of a data set; image files are not opened yet.

        Args:
            dataset: its name in ``sources.SOURCES``, for messages, and for modules that have several.
            source: the value of ``--source``, a folder or an archive; None: not given.

        Raises:
            UserError: the source is missing, empty, or has the wrong layout.
        """


def existing_folder(dataset: str, source: Path | None) -> Path:
    """``source``, for data sets that are read from a folder. Raises ``UserError`` if there is none."""
    if source is None:
        raise UserError(f"--dataset {dataset} needs --source DIR")
    if not source.is_dir():
        raise UserError(f"{source}: {'not a' if source.exists() else 'no such'} folder")
    return source


def from_arrays(split: str, pixels: np.ndarray, labels: np.ndarray) -> SourceSplit:
    """A split of pixels uint8 [N, H, W, 3] and labels int64 [N], whose images are named by their position."""
    return SourceSplit(pixels, [f"{split}[{index}]" for index in range(len(pixels))], labels)


def file_size(image: Image) -> int:
    """Bytes of an image as the source has it; 0 if its file cannot be found."""
    if isinstance(image, np.ndarray):
        return image.nbytes
    if isinstance(image, FileSlice):
        return image.length
    try:
        return os.stat(image).st_size if isinstance(image, str) else len(image)
    except OSError:
        return 0


def read_file(file: str | FileSlice) -> bytes:
    """The content of an image file, or of an image within a file. Raises ``ImageError`` if it cannot be read."""
    path, start, length = file if isinstance(file, FileSlice) else (file, 0, -1)
    try:
        # Opening anything but a regular file could wait for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError("is not a regular file")
        with open(path, "rb") as opened:
            opened.seek(start)
            return opened.read(length)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
