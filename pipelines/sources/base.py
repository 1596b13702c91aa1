"""What every source gives: the images of its splits, in their final order, with labels and class names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines.errors import UserError

__all__ = ["Source", "SourceModule", "SourceSplit", "existing_folder", "from_arrays"]


@dataclass(frozen=True)
class SourceSplit:
    """Images in their final order."""

    images: list[str] | np.ndarray  # N paths of files, or pixels uint8 [N, H, W, 3]
    names: list[str]  # N, for messages and the manifest: a file's path below the source
    labels: np.ndarray  # int64 [N], place in the classes; -1: none


@dataclass(frozen=True)
class Source:
    """A data set that can be packed."""

    classes: tuple[str, ...]  # their order gives the labels
    splits: dict[str, SourceSplit]  # train, and val if there is one


class SourceModule(Protocol):
    """What the module of a source offers."""

    def load(self, dataset: str, source: Path | None) -> Source:
        """List the images of a data set; files are not opened yet.

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
        raise UserError(f"{source}: no such folder")
    return source


def from_arrays(split: str, pixels: np.ndarray, labels: np.ndarray) -> SourceSplit:
    """A split of pixels uint8 [N, H, W, 3] and labels int64 [N], whose images are named by their position."""
    return SourceSplit(pixels, [f"{split}[{index}]" for index in range(len(pixels))], labels)
