"""Image files in folders, in sorted order."""

import logging
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pipelines.errors import UserError
from pipelines.sources.base import SourceSplit

__all__ = [
    "NO_IMAGE",
    "SUFFIXES",
    "all_images",
    "class_folders",
    "composed",
    "first_of",
    "from_files",
    "is_image",
    "is_leftover",
    "is_unsupported",
    "list_folder",
    "tell_ignored",
]

logger = logging.getLogger(__name__)

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"),
    *(".jfif", ".jpe", ".mpo", ".pnm", ".pbm"),
)
_UNSUPPORTED = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".svg", ".tga", ".psd", ".ico", ".exr", ".hdr"),
    *(".dcm", ".dicom", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".nii", ".npy", ".mat"),
)
# What systems and NAS put beside the user's files: thumbnails, deleted files, snapshots. In lower case.
_LEFTOVERS = frozenset(
    (
        *("@eadir", "@recycle", "@recently-snapshot", "@__thumb", "#recycle", "#snapshot", "$recycle.bin", "recycler"),
        *("lost+found", "system volume information", "__macosx", "_thumbs"),
    )
)
NO_IMAGE = f"holds no image ({' '.join(SUFFIXES)})"


def class_folders(root: Path, folders: Sequence[Path], classes: Sequence[str]) -> SourceSplit:
    """The images of class folders, at any depth, labelled by their place in ``classes``.

    Links are followed, but every folder is read once in a split: a link to a folder that is read anyway, or to one
    around it, is left out with a note. A class folder without an image is among the split's ``unusable``.

    Args:
        root: images are named by their path below it.
        folders: hold the class folders; a class may have one in each, or none. Files that are not images are ignored
            with a note.
        classes: the names of the class folders; others are not read.

    Raises:
        UserError: a folder cannot be listed, or none of the class folders holds an image.
    """
    walk = _Walk(folders)
    labels: list[int] = []
    unusable: dict[str, str] = {}
    # macOS writes é as two characters, other systems as one.
    present = [(folder, {composed(name): name for name in list_folder(folder)[0]}) for folder in folders]
    for label, name in enumerate(classes):
        for place in (folder / names[composed(name)] for folder, names in present if composed(name) in names):
            before = len(walk.images)
            walk.enter(place)
            labels += [label] * (len(walk.images) - before)
            if len(walk.images) == before:
                unusable[place.relative_to(root).as_posix()] = NO_IMAGE
    walk.tell()
    if not walk.images:
        raise UserError(f"{root / min(unusable)}: {NO_IMAGE}")
    return from_files(root, walk.images, labels, unusable)


def all_images(root: Path) -> list[str]:
    """The paths of the images below a folder, at any depth; links and other files as in ``class_folders``.

    Raises:
        UserError: a folder cannot be listed, or there is no image.
    """
    walk = _Walk([root])
    walk.enter(root)
    walk.tell()
    if not walk.images:
        raise UserError(f"{root}: {NO_IMAGE}")
    return walk.images


def composed(name: str) -> str:
    """A name in Unicode's composed form, in which names that look the same are equal."""
    return unicodedata.normalize("NFC", name)


class _Walk:
    """Collects the images below folders of a split, in sorted order."""

    def __init__(self, tops: Sequence[Path]) -> None:
        """``tops``: the folders of the split; what lies in them is read at its own place, whatever links to it."""
        self.images: list[str] = []
        self._tops = tops
        self._real_tops = [top.resolve() for top in tops]
        self._seen: set[tuple[int, int]] = set()
        self._ignored: list[str] = []
        self._left_out: list[str] = []  # links
        self._leftovers: list[str] = []
        self._only_folders: list[tuple[str, list[str]]] = []  # class folders without images of their own

    def enter(self, folder: Path) -> None:
        """Collect the images of a folder, unless it is or will be read at another place."""
        is_link = folder.is_symlink() and folder not in self._tops
        if (is_link and self._leads_back(folder)) or not self._is_new(folder):
            self._left_out.append(folder.name)
            return
        folders, files, leftovers = _scan(folder)
        self._leftovers += leftovers
        if folder.parent in self._tops and len(folders) > 1 and not any(map(is_image, files)):
            self._only_folders.append((folder.name, folders))
        for file in files:
            if is_image(file):
                self.images.append(f"{folder}/{file}")
            else:
                self._ignored.append(file)
        for name in folders:
            self.enter(folder / name)

    def tell(self) -> None:
        """Log what was left out."""
        tell_ignored(self._tops[0], self._ignored)
        self._leftovers += [name for top in self._tops for name in _scan(top)[2]]
        if self._leftovers:
            logger.warning(
                "note: %s: left out %d folders of thumbnails, deleted files and the like: %s",
                self._tops[0],
                len(self._leftovers),
                first_of(sorted(set(self._leftovers))),
            )
        if self._only_folders:
            name, folders = self._only_folders[0]
            logger.warning(
                "note: %s: %d class folders hold only folders, the first is %s with %s; the outer level is "
                "the class (--no-labels: none is)",
                self._tops[0],
                len(self._only_folders),
                name,
                first_of(folders),
            )
        if self._left_out:
            logger.warning(
                "note: %s: left out %d links to folders that are read elsewhere: %s",
                self._tops[0],
                len(self._left_out),
                first_of(self._left_out),
            )

    def _leads_back(self, link: Path) -> bool:
        """Whether a link's target lies in the split's folders, or around them or the link."""
        target = link.resolve()
        inside = any(target.is_relative_to(top) for top in self._real_tops)
        return inside or any(place.is_relative_to(target) for place in (link.parent.resolve(), *self._real_tops))

    def _is_new(self, folder: Path) -> bool:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in self._seen:
            return False
        self._seen.add(identity)
        return True


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders (hidden ones and those of ``is_leftover`` left out) and of everything else, sorted.

    Raises:
        UserError: it cannot be read.
    """
    folders, files, _ = _scan(folder)
    return folders, files


def _scan(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """``list_folder``, and the names of the folders that it leaves out although they are not hidden."""
    folders, files, leftovers = [], [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _is_folder(entry):
                    files.append(entry.name)
                elif entry.name.lower() in _LEFTOVERS:
                    leftovers.append(entry.name)
                elif not entry.name.startswith("."):
                    folders.append(entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
    return sorted(folders), sorted(files), sorted(leftovers)


def _is_folder(entry: os.DirEntry) -> bool:
    # is_dir() raises an error for a link that leads to itself; os.path.isdir() does not, but is slow for many files.
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def is_image(file: str) -> bool:
    """Whether a file's name is that of an image that can be read."""
    return not file.startswith(".") and file.lower().endswith(SUFFIXES)


def is_leftover(path: PurePosixPath) -> bool:
    """Whether a path leads to what a system has put there: thumbnails, deleted files, macOS's ``._`` files."""
    return path.name.startswith("._") or any(part.lower() in _LEFTOVERS for part in path.parts)


def is_unsupported(file: str) -> bool:
    """Whether a file's name is that of an image that cannot be read."""
    return not file.startswith(".") and file.lower().endswith(_UNSUPPORTED)


def from_files(root: Path, paths: list[str], labels: list[int], unusable: dict[str, str] | None = None) -> SourceSplit:
    """A split of image files, named by their path below ``root``."""
    names = [Path(path).relative_to(root).as_posix() for path in paths]
    return SourceSplit(paths, names, np.array(labels, np.int64), unusable or {})


def tell_ignored(folder: Path, ignored: list[str]) -> None:
    """Log which files in ``folder`` are left out, if any are: images of unsupported kinds, and other files."""
    unsupported = [file for file in ignored if is_unsupported(file)]
    others = [file for file in ignored if not is_unsupported(file)]
    misnamed = [file for file in others if _may_be_image(file)]
    if misnamed:
        logger.warning(
            "warning: %s: left out %d files that may be images but have no such suffix, rename them: %s",
            folder,
            len(misnamed),
            first_of(misnamed),
        )
        others = [file for file in others if not _may_be_image(file)]
    if unsupported:
        kinds = " ".join(sorted({Path(file).suffix.lower() for file in unsupported}))
        logger.warning(
            "warning: %s: left out %d images of unsupported kinds (%s), convert them to PNG first: %s",
            folder,
            len(unsupported),
            kinds,
            first_of(unsupported),
        )
    if others:
        logger.warning("note: %s: ignored %d files that are not images: %s", folder, len(others), first_of(others))


def _may_be_image(file: str) -> bool:
    """Whether a name has no suffix, or the suffix of an image before another one (``a.jpg.1``)."""
    parts = file.lower().split(".")
    return not is_leftover(PurePosixPath(file)) and (
        len(parts) == 1 or any(f".{part}" in SUFFIXES for part in parts[1:-1])
    )


def first_of(names: Sequence[str]) -> str:
    """At most three names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
