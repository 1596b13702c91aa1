"""WebDataset shards: tar files in which files of one name and several suffixes are a sample."""

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tarfile import TarInfo
from typing import NamedTuple

from pipelines.errors import UserError
from pipelines.formats.packed import holds_packed
from pipelines.sources.archive import read_members
from pipelines.sources.base import FileSlice, Source, existing_folder
from pipelines.sources.image_folders import SUFFIXES, is_leftover, is_unsupported, tell_ignored
from pipelines.sources.split_files import Listed, Value, number_labels, split_shards

__all__ = ["load"]

_SUFFIX = ".tar"
_IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
_LABELS = ("cls", "json")  # the first that is there is used
_LABEL_ENDS = tuple(f".{suffix}" for suffix in _LABELS)


def load(dataset: str, source: Path | None) -> Source:
    """See ``base.SourceModule``. The label is the text of ``.cls``, or ``label`` in ``.json``."""
    root = existing_folder(dataset, source)
    if holds_packed(root):
        raise UserError(f"{root}: is a packed data set, ready for training")
    return number_labels({split: _list(paths) for split, paths in split_shards(root, _SUFFIX).items()}, None)


@dataclass
class _Sample:
    """The files of one name, by what follows its first dot, in lower case."""

    members: dict[str, TarInfo] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)  # of files with a label


class _Found(NamedTuple):
    """An image of a sample."""

    member: TarInfo
    value: Value
    reason: str | None  # why it cannot be used


def _list(paths: list[Path]) -> Listed:
    images: list[FileSlice] = []
    names: list[str] = []
    values: list[Value] = []
    unusable: dict[str, str] = {}
    for path in paths:
        ignored: list[str] = []
        for sample in _samples(path, ignored):
            found = _images(sample)
            if not found:
                others = [member.name for member in sample.members.values()]
                if "cls" in sample.members and not any(is_unsupported(name) for name in others):
                    unusable[f"{path.name}/{sample.members['cls'].name}"] = "is a label without an image"
                else:
                    ignored += others
            for member, value, reason in found:
                name = f"{path.name}/{member.name}"
                if reason is not None:
                    unusable[name] = reason
                    continue
                images.append(FileSlice(str(path), member.offset_data, member.size))
                names.append(name)
                values.append(value)
        tell_ignored(path, ignored)
    if not names:
        first = next((f"; the first: {name} {reason}" for name, reason in unusable.items()), "")
        raise UserError(f"{paths[0]}: holds no usable image ({' '.join(f'.{suffix}' for suffix in _IMAGES)}){first}")
    return Listed(images, names, values, unusable)


def _samples(path: Path, ignored: list[str]) -> list[_Sample]:
    """The samples of a shard, in the order of their first files.

    Files of one name belong together wherever they lie. A suffix that a sample has already begins another one. What
    macOS adds is appended to ``ignored``.
    """
    samples: list[_Sample] = []
    latest: dict[str, _Sample] = {}
    for member, content in read_members(path, lambda member: member.name.lower().endswith(_LABEL_ENDS), "r:"):
        if is_leftover(PurePosixPath(member.name)):
            ignored.append(member.name)
            continue
        name, suffix = _split_name(member)
        sample = latest.get(name)
        if sample is None or suffix in sample.members:
            sample = latest[name] = _Sample()
            samples.append(sample)
        sample.members[suffix] = member
        if content is not None:
            sample.contents[suffix] = content
    return samples


def _images(sample: _Sample) -> list[_Found]:
    """The images of a sample. With several dots in the names, the last suffix counts if no image has only one."""
    value, reason = _label(sample.contents)
    plain = [member for suffix, member in sample.members.items() if suffix in _IMAGES]
    if plain:
        more = f"is one of {len(plain)} images of its sample" if len(plain) > 1 else None
        return [_Found(plain[0], value, more or reason)]
    dotted = {suffix: member for suffix, member in sample.members.items() if suffix.rpartition(".")[2] in _IMAGES}
    are_numbers = all(suffix.rpartition(".")[0].replace(".", "").isdecimal() for suffix in dotted)
    found = []
    for suffix, member in dotted.items():
        own = {
            kind: sample.contents[key]
            for kind in _LABELS
            if (key := f"{suffix.rpartition('.')[0]}.{kind}") in sample.contents
        }
        label = _label(own) if own else (value, reason)
        if len(dotted) > 1 and not own and (sample.contents or not are_numbers):
            label = None, f"is one of {len(dotted)} images of its sample"
        found.append(_Found(member, *label))
    return found


def _split_name(member: TarInfo) -> tuple[str, str]:
    """A sample's name, which ends at the first dot of the file's name, and the suffix in lower case."""
    path = PurePosixPath(member.name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem)) if stem else member.name, suffix.lower()


def _label(contents: dict[str, bytes]) -> tuple[Value, str | None]:
    """The label that label files hold, by suffix (None: there is none), and why it cannot be used."""
    try:
        if "cls" in contents:
            text = contents["cls"].decode().strip()
            if text:
                return (int(text) if text.removeprefix("-").isdecimal() else text), None
            raise ValueError("empty")
        facts = json.loads(contents["json"]) if "json" in contents else None
        value = facts.get("label") if isinstance(facts, dict) else None
        if value is None or isinstance(value, (int, str)):
            return value, None
    except ValueError:
        pass
    return None, "has a label that cannot be read"
