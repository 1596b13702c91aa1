"""Where images come from: the built-in digits, CIFAR, ImageNet-100, or a folder of one's own."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.errors import UserError
from pipelines.sources.cifar import load_cifar
from pipelines.sources.imagenet100 import IMAGENET100

__all__ = ["DATASETS", "Source", "SourceSplit", "load_source"]

logger = logging.getLogger(__name__)

_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


@dataclass(frozen=True)
class SourceSplit:
    """Images in their final order."""

    images: list[str] | np.ndarray  # N paths of files, or pixels uint8 [N, H, W, 3]
    names: list[str]  # N, for messages and the manifest: a file's path below the source
    labels: np.ndarray  # int64 [N], place in the classes; -1: none


@dataclass(frozen=True)
class Source:
    classes: tuple[str, ...]  # their order gives the labels
    splits: dict[str, SourceSplit]  # train, and val if there is one


def load_source(dataset: str, source: Path | None = None) -> Source:
    """List a data set's images; files are not opened yet.

    Args:
        dataset: one of ``DATASETS``.
        source: folder or archive; cifar10 and cifar100 are downloaded without it, digits takes none.

    Raises:
        UserError: the source is missing, empty, or not laid out as its data set should be.
    """
    return DATASETS[dataset](source)


def _digits(source: Path | None) -> Source:
    """scikit-learn's 1,797 digits of 8 x 8 pixels (UCI ML hand-written digits): 1,500 to train, 297 to validate."""
    if source is not None:
        raise UserError("--dataset digits is built in and takes no --source")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(pixels[..., None], 3, axis=3)
    labels = digits.target.astype(np.int64)
    train, val = train_test_split(np.arange(len(labels)), test_size=297, stratify=labels, random_state=0)
    splits = {"train": np.sort(train), "val": np.sort(val)}
    classes = tuple(str(digit) for digit in range(10))
    return Source(classes, {split: _from_arrays(split, pixels[rows], labels[rows]) for split, rows in splits.items()})


def _cifar10(source: Path | None) -> Source:
    classes, splits = load_cifar("cifar10", source)
    return Source(classes, {split: _from_arrays(split, *arrays) for split, arrays in splits.items()})


def _cifar100(source: Path | None) -> Source:
    classes, splits = load_cifar("cifar100", source)
    return Source(classes, {split: _from_arrays(split, *arrays) for split, arrays in splits.items()})


def _from_arrays(split: str, pixels: np.ndarray, labels: np.ndarray) -> SourceSplit:
    return SourceSplit(pixels, [f"{split}[{index}]" for index in range(len(pixels))], labels)


def _in100(source: Path | None) -> Source:
    """The 100 classes out of an ImageNet-1k tree, ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``."""
    root = _existing(source, "in100")
    if not (root / "train").is_dir():
        raise UserError(f"{root}: no train/ folder in it")
    splits = {}
    for split in ("train", "val"):
        if not (root / split).is_dir():
            logger.warning("warning: %s: no %s/ folder, so there will be no evaluation images", root, split)
            continue
        missing = [wnid for wnid in IMAGENET100 if not (root / split / wnid).is_dir()]
        if missing:
            raise UserError(f"{root / split}: {len(missing)} of the 100 classes are missing, the first is {missing[0]}")
        splits[split] = _class_folders(root, root / split, IMAGENET100, IMAGENET100)
    return Source(IMAGENET100, splits)


def _folder(source: Path | None) -> Source:
    """``train/`` and perhaps ``val/`` or ``test/`` of class folders; or class folders; or images without labels."""
    root = _existing(source, "folder")
    places = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if "train" not in places:
        if places:
            raise UserError(f"{root}: has {min(places)}/ but no train/")
        classes, split = _images(root, root, None)
        return Source(classes, {"train": split})
    classes, train = _images(root, places["train"], None)
    splits = {"train": train}
    used = ["train"]
    held_out = next((name for name in ("val", "test") if name in places), None)
    if held_out is not None:
        splits["val"] = _images(root, places[held_out], classes)[1]
        used.append(held_out)
    unused = [name for name in _listing(root)[0] if name not in used]
    if unused:
        logger.warning("note: %s: beside %s nothing is read: %s", root, "/ and ".join(used) + "/", _some(unused))
    return Source(classes, splits)


DATASETS = {"digits": _digits, "cifar10": _cifar10, "cifar100": _cifar100, "in100": _in100, "folder": _folder}


def _existing(source: Path | None, dataset: str) -> Path:
    if source is None:
        raise UserError(f"--dataset {dataset} needs --source DIR")
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    return source


def _images(root: Path, folder: Path, train_classes: tuple[str, ...] | None) -> tuple[tuple[str, ...], SourceSplit]:
    """A folder of class folders, or one of unlabelled images (no classes). ``train_classes`` are those to belong to."""
    folders, files = _listing(folder)
    images = [file for file in files if _is_image(file)]
    if folders and images:
        raise UserError(f"{folder}: holds class folders and loose images ({images[0]}); it must be one or the other")
    if folders:
        classes = tuple(folders) if train_classes is None else train_classes
        strange = [name for name in folders if name not in classes]
        if strange:
            raise UserError(f"{folder}: {len(strange)} of its classes are not in train/, the first is {strange[0]!r}")
        return classes, _class_folders(root, folder, folders, classes)
    if not images:
        raise UserError(f"{folder}: holds no image ({' '.join(_SUFFIXES)})")
    _tell_ignored(folder, [file for file in files if not _is_image(file)])
    return (), _from_files(root, [str(folder / file) for file in images], [-1] * len(images))


def _class_folders(root: Path, folder: Path, names: Sequence[str], classes: Sequence[str]) -> SourceSplit:
    """The images of the class folders ``names``, at any depth, labelled by their place in ``classes``."""
    paths, labels, ignored = [], [], []
    place = {name: index for index, name in enumerate(classes)}
    for name in names:
        before = len(paths)
        _walk(folder / name, paths, ignored, set())
        if len(paths) == before:
            raise UserError(f"{folder / name}: holds no image ({' '.join(_SUFFIXES)})")
        labels += [place[name]] * (len(paths) - before)
    _tell_ignored(folder, ignored)
    return _from_files(root, paths, labels)


def _walk(folder: Path, paths: list[str], ignored: list[str], above: set[tuple[int, int]]) -> None:
    """Collect images in sorted order; links are followed, but not round in circles."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    folders, files = _listing(folder)
    for file in files:
        if _is_image(file):
            paths.append(f"{folder}/{file}")
        else:
            ignored.append(file)
    for name in folders:
        _walk(folder / name, paths, ignored, above | {here})


def _listing(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders (hidden ones left out) and of the files in ``folder``, sorted."""
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


def _is_image(file: str) -> bool:
    return not file.startswith(".") and file.lower().endswith(_SUFFIXES)


def _from_files(root: Path, paths: list[str], labels: list[int]) -> SourceSplit:
    names = [Path(path).relative_to(root).as_posix() for path in paths]
    return SourceSplit(paths, names, np.array(labels, np.int64))


def _tell_ignored(folder: Path, ignored: list[str]) -> None:
    if ignored:
        logger.warning("note: %s: ignored %d files that are no images: %s", folder, len(ignored), _some(ignored))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
