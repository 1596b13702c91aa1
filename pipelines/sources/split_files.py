"""Data sets of a few large files whose names tell the split: Parquet files, WebDataset shards."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from pipelines.errors import UserError
from pipelines.sources.base import Image, Source, SourceSplit
from pipelines.sources.image_folders import first_of, is_leftover
from pipelines.sources.splits import split_of

__all__ = ["Listed", "Value", "find_shards", "number_labels", "split_shards"]

logger = logging.getLogger(__name__)

Value = int | str | None  # a label as it is stored; None or -1: none


class Listed(NamedTuple):
    """The images of a split, and their labels as they are stored."""

    images: Iterable[Image]  # N
    names: list[str]  # N
    values: list[Value]  # N
    unusable: dict[str, str]  # see SourceSplit


def find_shards(root: Path, suffix: str, depth: int = 3) -> list[Path]:
    """The files with a suffix, in any case, in a folder or, if it has none, in those up to ``depth`` below; sorted.

    Hidden files and what systems add (``._x``, ``__MACOSX``) are left out.
    """
    for level in range(depth + 1):
        found = [path for path in root.glob("*/" * level + "*") if path.name.lower().endswith(suffix)]
        paths = [path for path in found if not _is_hidden(path.relative_to(root))]
        if paths:
            return sorted(paths)
    return []


def _is_hidden(path: Path) -> bool:
    return is_leftover(PurePosixPath(path)) or any(part.startswith(".") for part in path.parts)


def split_shards(root: Path, suffix: str) -> dict[str, list[Path]]:
    """The files of ``find_shards`` for train and, if there are any, for val.

    The first word in a file's name, or in those of its folders below ``root``, that means a split (``split_of``) tells
    it; if no name has one, all are train. Files that are not used are named in a note.

    Raises:
        UserError: there are no files, they lie in several folders that are not splits, one is not a regular file, or
            none is for train.
    """
    paths = find_shards(root, suffix)
    if not paths:
        raise UserError(f"{root}: {_what_instead(root, suffix)}")
    folders = sorted({_without_splits(path.parent.relative_to(root)) for path in paths})
    if len(folders) > 1:
        raise UserError(f"{root}: has {suffix} files in {first_of(folders)}; name one of these folders with --source")
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: is not a regular file")
    by_split: dict[str, list[Path]] = {}
    for path in paths:
        parts = [*reversed(path.parent.relative_to(root).parts), path.stem]
        by_split.setdefault(next((word for part in parts if (word := split_of(part))), ""), []).append(path)
    if list(by_split) == [""]:
        return {"train": paths}
    if "train" not in by_split:
        raise UserError(f"{root}: no {suffix} file is named train, the first is {paths[0].name}")
    used = ["train", *[split for split in ("val", "test") if split in by_split][:1]]
    unused = [path.name for split, files in by_split.items() if split not in used for path in files]
    if unused:
        logger.warning(
            "note: %s: reading only the files of %s; ignored: %s", root, " and ".join(used), first_of(unused)
        )
    return dict(zip(("train", "val"), (by_split[split] for split in used), strict=False))


def _without_splits(folder: Path) -> str:
    return "/".join(part for part in folder.parts if split_of(part) is None)


def _what_instead(root: Path, suffix: str) -> str:
    """Why a folder without files of the suffix cannot be read."""
    names = sorted(path.name for pattern in ("*", "*/*", "*/*/*") for path in root.glob(pattern))
    if suffix == ".parquet" and any(name.endswith(".arrow") for name in names):
        return "was written by save_to_disk, not as Parquet: datasets.load_from_disk(DIR)['train'].to_parquet(FILE)"
    compressed = [name for name in names if name.lower().endswith((f"{suffix}.gz", f"{suffix}.zst", ".tgz"))]
    if compressed:
        return f"holds no {suffix} file, but {first_of(compressed)}: decompress it first"
    return f"holds no {suffix} file"


def number_labels(splits: dict[str, Listed], names: Sequence[str] | None) -> Source:
    """A source whose labels are places in ``names``; without names, in the sorted labels that occur.

    A name that occurs twice gets its number behind it. If only a part of a split's images has labels, the others are
    unusable.

    Raises:
        UserError: a label has no name; without names, val has a label that train does not have, or the labels are -1
            and 1.
    """
    if names is None:
        _refuse_odd_labels(splits)
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


def _refuse_odd_labels(splits: dict[str, Listed]) -> None:
    known = set(splits["train"].values)
    if known == {-1, 1}:
        raise UserError(f"{splits['train'].names[0]}: the labels are -1 and 1, but -1 means no label: use 0 and 1")
    for split, listed in splits.items():
        for name, value in zip(listed.names, listed.values, strict=True):
            if value not in known and value not in (None, -1) and known - {None, -1}:
                raise UserError(f"{name}: has label {value}, which no image of train has ({split})")


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
