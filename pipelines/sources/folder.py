"""A folder of the user's images: ``train/`` and optionally ``val/`` or ``test/``, under these or other usual names,
with class folders; or only class folders; or images without labels. Tiny ImageNet's ``val/``, whose labels are in a
file, is read too.
"""

import logging
from pathlib import Path

from pipelines.errors import UserError
from pipelines.sources import tiny_imagenet
from pipelines.sources.base import Source, SourceSplit, existing_folder
from pipelines.sources.image_folders import (
    NO_IMAGE,
    class_folders,
    composed,
    first_of,
    from_files,
    is_image,
    list_folder,
    tell_ignored,
)
from pipelines.sources.splits import bare_split_of, split_of, without_split

__all__ = ["load"]

logger = logging.getLogger(__name__)

_MAX_DEPTH = 4  # of folders around the splits


def load(dataset: str, source: Path | None) -> Source:
    """See ``base.SourceModule``."""
    root = _unwrapped(existing_folder(dataset, source))
    names = list_folder(root)[0]
    places = _splits(root, names)
    if not places:
        classes, split = _images(root, root, None)
        return Source(classes, {"train": split})
    classes, train = _images(root, _inner(root / places["train"], "train"), None)
    splits, used = {"train": train}, [places["train"]]
    held_out = next((split for split in ("val", "test") if split in places), None)
    if held_out is not None:
        folder = _inner(root / places[held_out], held_out)
        splits["val"] = _held_out(root, folder, classes)
        used.append(places[held_out])
        if classes and not (splits["val"].labels >= 0).any():
            logger.warning(
                "warning: %s: has no class folders, so the images of val have no labels and nothing can be evaluated: "
                "sort them into folders by class, as in train",
                folder,
            )
    if used not in (["train"], ["train", "val"], ["train", "test"]):
        logger.warning("note: %s: read as %s", root, " and ".join(map("{}/ for {}".format, used, splits)))
    unused = [name for name in names if name not in used]
    if unused:
        logger.warning("note: %s: reading only %s; ignored: %s", root, "/ and ".join(used) + "/", first_of(unused))
    return Source(classes, splits)


def _splits(root: Path, names: list[str]) -> dict[str, str]:
    """The folders in ``root`` that are splits, by split; empty: all are class folders.

    A folder is a split by its name alone (train, Validation, test2017), or if train and another split share what
    remains of their names (seg_train, seg_test).

    Raises:
        UserError: there is a split but no train; or a folder may be a class as well as a split.
    """
    found = {name: split for name in names if (split := bare_split_of(name))}
    for name in names:
        rest = without_split(name)
        alike = {split_of(other) for other in names if split_of(other) and without_split(other) == rest}
        if name not in found and split_of(name) and "train" in alike and len(alike) > 1:
            found[name] = str(split_of(name))
    sisters = [name for name in names if name not in found]
    flat = [name for name in found if _holds_images(root / name)]
    if flat and any(_holds_images(root / name) for name in sisters):
        if len(flat) == len(found) and not {"train", "val"} <= {*found.values()}:
            kind = "a class" if len(flat) == 1 else "classes"
            logger.warning("note: %s: %s/ read as %s, like %s", root, "/ and ".join(flat), kind, first_of(sisters))
            return {}
        if "train" in (found[name] for name in flat):
            raise UserError(
                f"{root}: {first_of(flat)} hold images, as {first_of(sisters)} do, so they may be classes or splits: "
                "move the classes into train/, or the other folders away"
            )
    by_split = {split: name for name, split in sorted(found.items(), key=_preference, reverse=True)}
    if by_split and "train" not in by_split:
        raise UserError(f"{root}: has {min(found)}/ but no train/")
    return by_split


def _preference(item: tuple[str, str]) -> tuple[bool, int, str]:
    """Of two folders of a split the exact name first, then the shorter one."""
    name, split = item
    return name != split, len(name), name


def _holds_images(folder: Path) -> bool:
    return any(is_image(file) for file in list_folder(folder)[1])


def _unwrapped(root: Path) -> Path:
    """The folder that holds the splits, if all that is in ``root`` is a folder around them; else ``root``."""
    folder = root
    for _ in range(_MAX_DEPTH):
        folders, files = list_folder(folder)
        if any(bare_split_of(name) for name in folders):
            if folder != root:
                logger.warning("note: %s: reading %s in it", root, folder.relative_to(root))
            return folder
        if len(folders) != 1 or any(is_image(file) for file in files):
            return root
        folder = folder / folders[0]
    return root


def _inner(folder: Path, split: str) -> Path:
    """The folder of a split; within it the only one, if it has a name of the same split (seg_train/seg_train)."""
    folders, files = list_folder(folder)
    is_wrapper = len(folders) == 1 and not any(is_image(file) for file in files) and split_of(folders[0]) == split
    return folder / folders[0] if is_wrapper else folder


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
        strange = [name for name in folders if composed(name) not in set(map(composed, classes))]
        if strange:
            raise UserError(f"{folder}: {len(strange)} of its classes are not in train/, the first is {strange[0]!r}")
        return classes, class_folders(root, [folder], classes)
    tell_ignored(folder, [file for file in files if not is_image(file)])
    if not images:
        raise UserError(f"{folder}: {NO_IMAGE}")
    return (), from_files(root, [str(folder / file) for file in images], [-1] * len(images))
