"""Image files in folders, in sorted order."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.errors import UserError
from pipelines.sources.base import SourceSplit

__all__ = ["SUFFIXES", "class_folders", "first_of", "from_files", "is_image", "list_folder", "tell_ignored"]

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


def class_folders(root: Path, folder: Path, names: Sequence[str], classes: Sequence[str]) -> SourceSplit:
    """The images of the class folders ``names``, at any depth, labelled by their place in ``classes``.

    Args:
        root: images are named by their path below it.
        folder: holds the class folders; files that are not images are ignored with a note.

    Raises:
        UserError: a class folder holds no image.
    """
    paths: list[str] = []
    labels: list[int] = []
    ignored: list[str] = []
    place = {name: index for index, name in enumerate(classes)}
    for name in names:
        before = len(paths)
        _walk(folder / name, paths, ignored, set())
        if len(paths) == before:
            raise UserError(f"{folder / name}: holds no image ({' '.join(SUFFIXES)})")
        labels += [place[name]] * (len(paths) - before)
    tell_ignored(folder, ignored)
    return from_files(root, paths, labels)


def _walk(folder: Path, paths: list[str], ignored: list[str], above: set[tuple[int, int]]) -> None:
    """Collect images in sorted order; links are followed, but never in a loop."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    folders, files = list_folder(folder)
    for file in files:
        if is_image(file):
            paths.append(f"{folder}/{file}")
        else:
            ignored.append(file)
    for name in folders:
        _walk(folder / name, paths, ignored, above | {here})


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders (hidden ones left out) and of the files in ``folder``, sorted.

    Raises:
        UserError: it cannot be read.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir():
                    files.append(entry.name)
                elif not entry.name.startswith("."):
                    folders.append(entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
    return sorted(folders), sorted(files)


def is_image(file: str) -> bool:
    """Whether a file's name is that of an image."""
    return not file.startswith(".") and file.lower().endswith(SUFFIXES)


def from_files(root: Path, paths: list[str], labels: list[int]) -> SourceSplit:
    """A split of image files, named by their path below ``root``."""
    names = [Path(path).relative_to(root).as_posix() for path in paths]
    return SourceSplit(paths, names, np.array(labels, np.int64))


def tell_ignored(folder: Path, ignored: list[str]) -> None:
    """Log how many files in ``folder`` are left out, if any are."""
    if ignored:
        logger.warning("note: %s: ignored %d files that are not images: %s", folder, len(ignored), first_of(ignored))


def first_of(names: Sequence[str]) -> str:
    """At most three names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
