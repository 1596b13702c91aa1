"""WebDataset shards: tar files in which files of one name and several suffixes are a sample."""

import itertools
import json
from pathlib import Path, PurePosixPath
from tarfile import TarInfo

from pipelines.errors import UserError
from pipelines.formats.packed import holds_packed
from pipelines.sources.archive import read_members
from pipelines.sources.base import FileSlice, Source, existing_folder
from pipelines.sources.listing import tell_ignored
from pipelines.sources.shards import Listed, Value, number_labels, split_shards

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


def _list(paths: list[Path]) -> Listed:
    images: list[FileSlice] = []
    names: list[str] = []
    values: list[Value] = []
    unusable: dict[str, str] = {}
    for path in paths:
        ignored: list[str] = []
        members = read_members(path, lambda member: _split_name(member)[1] in _LABELS, "r:")
        for _, group in itertools.groupby(members, lambda pair: _split_name(pair[0])[0]):
            files = list(group)
            found = [member for member, _ in files if _split_name(member)[1] in _IMAGES]
            if not found:
                ignored += [member.name for member, _ in files]
                continue
            name = f"{path.name}/{found[0].name}"
            try:
                value = _label({_split_name(member)[1]: content for member, content in files if content is not None})
            except (ValueError, KeyError, TypeError):
                unusable[name] = "has a label that cannot be read"
                continue
            if len(found) > 1:
                unusable[name] = f"is one of {len(found)} images of its sample"
                continue
            images.append(FileSlice(str(path), found[0].offset_data, found[0].size))
            names.append(name)
            values.append(value)
        tell_ignored(path, ignored)
    if not names:
        raise UserError(f"{paths[0]}: holds no image ({' '.join(f'.{suffix}' for suffix in _IMAGES)})")
    return Listed(images, names, values, unusable)


def _split_name(member: TarInfo) -> tuple[str, str]:
    """A sample's name, which ends at the first dot of the file's name, and the suffix in lower case."""
    path = PurePosixPath(member.name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem)) if stem else member.name, suffix.lower()


def _label(contents: dict[str, bytes]) -> Value:
    """The label in the content of label files, by suffix; None: there are none."""
    if "cls" in contents:
        text = contents["cls"].decode().strip()
        return int(text) if text.removeprefix("-").isdecimal() else text
    if "json" in contents:
        value = json.loads(contents["json"])["label"]
        if not isinstance(value, (int, str)):
            raise TypeError(value)
        return value
    return None
