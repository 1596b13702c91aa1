"""WebDataset shards: tar files in which files of one name and several suffixes are a sample."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tarfile import TarInfo
from typing import NamedTuple

from pipelines.errors import UserError
from pipelines.formats.packed import holds_packed
from pipelines.sources.archive import read_members
from pipelines.sources.base import FileSlice, Source, existing_folder
from pipelines.sources.image_folders import tell_ignored
from pipelines.sources.split_files import Listed, Value, number_labels, split_shards

__all__ = ["load"]

_SUFFIX = ".tar"
_IMAGES = ("jpg", "jpeg", "png", "webp")
_LABELS = ("cls", "json")  # the first that is there is used


def load(dataset: str, source: Path | None) -> Source:
    """See ``base.SourceModule``. The label is the text of ``.cls``, or ``label`` in ``.json``."""
    root = existing_folder(dataset, source)
    if holds_packed(root):
        raise UserError(f"{root}: is a packed data set, ready for training")
    return number_labels({split: _list(paths) for split, paths in split_shards(root, _SUFFIX).items()}, None)


class _File(NamedTuple):
    suffix: str  # in lower case
    member: TarInfo
    content: bytes | None  # of files with a label


def _list(paths: list[Path]) -> Listed:
    images: list[FileSlice] = []
    names: list[str] = []
    values: list[Value] = []
    unusable: dict[str, str] = {}
    for path in paths:
        ignored: list[str] = []
        for files in _samples(path):
            found = [file.member for file in files if file.suffix in _IMAGES]
            if not found:
                ignored += [file.member.name for file in files]
                continue
            name = f"{path.name}/{found[0].name}"
            value, reason = _label({file.suffix: file.content for file in files if file.content is not None})
            if len(found) > 1:
                reason = f"is one of {len(found)} images of its sample"
            if reason is not None:
                unusable[name] = reason
                continue
            images.append(FileSlice(str(path), found[0].offset_data, found[0].size))
            names.append(name)
            values.append(value)
        tell_ignored(path, ignored)
    if not names:
        raise UserError(f"{paths[0]}: holds no usable image ({' '.join(f'.{suffix}' for suffix in _IMAGES)})")
    return Listed(images, names, values, unusable)


def _samples(path: Path) -> Iterator[list[_File]]:
    """The files of each sample: those that follow each other and have one name."""
    members = read_members(path, lambda member: _split_name(member)[1] in _LABELS, "r:")
    for _, group in itertools.groupby(members, lambda pair: _split_name(pair[0])[0]):
        yield [_File(_split_name(member)[1], member, content) for member, content in group]


def _split_name(member: TarInfo) -> tuple[str, str]:
    """A sample's name, which ends at the first dot of the file's name, and the suffix in lower case."""
    path = PurePosixPath(member.name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem)) if stem else member.name, suffix.lower()


def _label(contents: dict[str, bytes]) -> tuple[Value, str | None]:
    """The label that label files hold, by suffix (None: there are none), and why it cannot be used."""
    try:
        if "cls" in contents:
            text = contents["cls"].decode().strip()
            if text:
                return (int(text) if text.removeprefix("-").isdecimal() else text), None
            raise ValueError("empty")
        value = json.loads(contents["json"])["label"] if "json" in contents else None
        if value is None or isinstance(value, (int, str)):
            return value, None
    except (ValueError, KeyError, TypeError):
        pass
    return None, "has a label that cannot be read"
