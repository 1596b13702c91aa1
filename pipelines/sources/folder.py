"""A folder of the user's images: ``train/`` and optionally ``val/`` or ``test/``, with class folders; or only class
folders; or images without labels. Tiny ImageNet's ``val/``, whose labels are in a file, is read too.
"""

import logging
from pathlib import Path

from pipelines.errors import UserError
from pipelines.sources import tiny_imagenet
from pipelines.sources.base import Source, SourceSplit, existing_folder
from pipelines.sources.image_folders import (
    NO_IMAGE,
    class_folders,
    first_of,
    from_files,
    is_image,
    list_folder,
    tell_ignored,
)

__all__ = ["load"]

logger = logging.getLogger(__name__)


def load(dataset: str, source: Path | None) -> Source:
    """See ``base.SourceModule``."""
    root = existing_folder(dataset, source)
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
        splits["val"] = _held_out(root, places[held_out], classes)
        used.append(held_out)
    unused = [name for name in list_folder(root)[0] if name not in used]
    if unused:
        logger.warning("note: %s: reading only %s; ignored: %s", root, "/ and ".join(used) + "/", first_of(unused))
    return Source(classes, splits)


def _held_out(root: Path, folder: Path, classes: tuple[str, ...]) -> SourceSplit:
    if (folder / tiny_imagenet.ANNOTATIONS).is_file():
        return tiny_imagenet.annotated(root, folder, classes)
    return _images(root, folder, classes)[1]


def _images(root: Path, folder: Path, train_classes: tuple[str, ...] | None) -> tuple[tuple[str, ...], SourceSplit]:
    """A folder of class folders, or one of unlabelled images (no classes). ``train_classes``: the only ones allowed."""
    folders, files = list_folder(folder)
    images = [file for file in files if is_image(file)]
    if folders and images:
        raise UserError(f"{folder}: holds class folders and loose images ({images[0]}); it must be one or the other")
    if folders:
        classes = tuple(folders) if train_classes is None else train_classes
        strange = [name for name in folders if name not in classes]
        if strange:
            raise UserError(f"{folder}: {len(strange)} of its classes are not in train/, the first is {strange[0]!r}")
        return classes, class_folders(root, [folder], classes)
    tell_ignored(folder, [file for file in files if not is_image(file)])
    if not images:
        raise UserError(f"{folder}: {NO_IMAGE}")
    return (), from_files(root, [str(folder / file) for file in images], [-1] * len(images))
