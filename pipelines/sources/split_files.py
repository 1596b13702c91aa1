"""Data sets of a few large files whose names tell the split: Parquet files, WebDataset shards."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.errors import UserError
from pipelines.sources.base import Image, Source, SourceSplit
from pipelines.sources.image_folders import first_of

__all__ = ["Listed", "Value", "find_shards", "number_labels", "split_shards"]

logger = logging.getLogger(__name__)

_VAL = ("validation", "val", "valid", "test")  # the first that is there is used
_SPLITS = ("train", *_VAL)

Value = int | str | None  # a label as it is stored; None or -1: none


class Listed(NamedTuple):
    """The images of a split, and their labels as they are stored."""

    images: Iterable[Image]  # N
    names: list[str]  # N
    values: list[Value]  # N
    unusable: dict[str, str]  # see SourceSplit


def find_shards(root: Path, suffix: str) -> list[Path]:
    """The files with a suffix in a folder or, if it has none, in its folders; sorted."""
    return sorted(root.glob(f"*{suffix}")) or sorted(root.glob(f"*/*{suffix}"))


def split_shards(root: Path, suffix: str) -> dict[str, list[Path]]:
    """The files of ``find_shards`` for train and, if there are any, for val.

    The first of the words train, validation, val, valid and test in a file's name tells its split; if no name has one,
    all are train. Files that are not used are named in a note.

    Raises:
        UserError: there are no files, they lie in several folders, one is not a regular file, or none is for train.
    """
    paths = find_shards(root, suffix)
    if not paths:
        raise UserError(f"{root}: holds no {suffix} file")
    folders = sorted({path.parent.name for path in paths})
    if len(folders) > 1:
        raise UserError(f"{root}: has {suffix} files in {first_of(folders)}; name one of these folders with --source")
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: is not a regular file")
    by_word: dict[str, list[Path]] = {}
    for path in paths:
        words = re.split("[^a-z]+", path.stem.lower())
        by_word.setdefault(next((word for word in words if word in _SPLITS), ""), []).append(path)
    if list(by_word) == [""]:
        return {"train": paths}
    if "train" not in by_word:
        raise UserError(f"{root}: no {suffix} file is named train, the first is {paths[0].name}")
    used = ["train", *[word for word in _VAL if word in by_word][:1]]
    unused = [path.name for word, files in by_word.items() if word not in used for path in files]
    if unused:
        logger.warning(
            "note: %s: reading only the files of %s; ignored: %s", root, " and ".join(used), first_of(unused)
        )
    return dict(zip(("train", "val"), (by_word[word] for word in used), strict=False))


def number_labels(splits: dict[str, Listed], names: Sequence[str] | None) -> Source:
    """A source whose labels are places in ``names``; without names, in the sorted labels that occur.

    A name that occurs twice gets its number behind it. If only a part of a split's images has labels, the others are
    unusable.

    Raises:
        UserError: a label has no name.
    """
    if names is None:
        found = {value for listed in splits.values() for value in listed.values if value is not None and value != -1}
        numbers = sorted(value for value in found if isinstance(value, int))
        text = len(numbers) < len(found)
        classes = tuple(sorted({str(value) for value in found}) if text else map(str, numbers))
        order = {name: index for index, name in enumerate(classes)}
        place: dict[Value, int] = {value: order[str(value)] for value in found}
    else:
        place = {index: index for index in range(len(names))}
        counts = Counter(names)
        classes = tuple(f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names))
    place |= {None: -1, -1: -1}
    return Source(classes, {split: _numbered(listed, place) for split, listed in splits.items()})


def _numbered(listed: Listed, place: dict[Value, int]) -> SourceSplit:
    for name, value in zip(listed.names, listed.values, strict=True):
        if value not in place:
            raise UserError(f"{name}: has label {value}, which has no name")
    labels = np.array([place[value] for value in listed.values], np.int64)
    whole = SourceSplit(listed.images, listed.names, labels, listed.unusable)
    has_label = labels >= 0
    if has_label.all() or not has_label.any():
        return whole
    without = dict.fromkeys(whole.select(~has_label).names, "has no label")
    return replace(whole.select(has_label), unusable=listed.unusable | without)
