"""A packed data set: a folder with a manifest.json and the files of one format, checked whenever it is opened."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import UserError
from pipelines.formats import FORMATS, find_format
from pipelines.formats.arrays import open_array
from pipelines.formats.checksums import checksum_file
from pipelines.formats.protocol import Reader

__all__ = [
    "MANIFEST",
    "FileEntry",
    "Packed",
    "Split",
    "holds_packed",
    "measure_split",
    "open_packed",
    "open_reader",
    "write_manifest",
]

_VERSION = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    count: int
    labelled: bool
    max_height: int  # pixels
    max_width: int
    files: dict[str, FileEntry]  # by name


@dataclass(frozen=True)
class Packed:
    dir: Path
    format: str  # one of ``formats.FORMATS``
    dataset: str
    classes: tuple[str, ...]  # a class's index is its label; empty: no labels
    splits: dict[str, Split]  # train, and val if there is one
    options: dict[str, float | None]  # max_resolution and quality, as given; val_fraction if it was given

    @property
    def digest(self) -> str:
        """The identity of the data, the same wherever they lie: a SHA-256 of the manifest's hashes, as hexadecimals."""
        hashes = [[name, file, entry.sha256] for name in self.splits for file, entry in self.splits[name].files.items()]
        return hashlib.sha256(json.dumps(sorted(hashes)).encode()).hexdigest()


def open_packed(dir: Path | str, *, verify: bool = False) -> Packed:
    """Open a packed data set after checking it.

    Checks the manifest, the files' existence and sizes, their headers and tables, and that these agree with the
    manifest; no pixels are read. With ``verify`` every file is read and its SHA-256 compared too.

    Raises:
        UserError: no such folder or manifest, another version, or a failed check.
    """
    if dir == "":
        raise UserError("data.dir is not set: give data.dir=PACKED_DIR; tools/convert.py makes packed data sets")
    folder = Path(dir)
    packed = _parse(folder, _read_manifest(folder))
    for name, split in packed.splits.items():
        for file, entry in split.files.items():
            path = folder / file
            if not path.is_file():
                raise UserError(f"{path}: missing, though the manifest lists it")
            size = path.stat().st_size
            if size != entry.bytes:
                raise UserError(f"{path}: has {size:,} bytes, the manifest says {entry.bytes:,}: cut off or replaced")
            if verify and _sha256(path) != entry.sha256:
                raise UserError(f"{path}: its SHA-256 is not the manifest's: damaged or replaced")
        _check_split(packed, name)
    return packed


def open_reader(packed: Packed, split: str) -> Reader:
    """Open a split for random access.

    Raises:
        UserError: the set has no such split, a table is damaged, or a package that decodes the images is missing.
    """
    if split not in packed.splits:
        raise UserError(f"{packed.dir}: has no split {split!r}, only {', '.join(packed.splits)}")
    return find_format(packed.format).open_reader(packed.dir, split)


def measure_split(folder: Path, format: str, name: str) -> Split:
    """The manifest's entry for a split whose files are complete."""
    labels, sizes = find_format(format).read_labels_and_sizes(folder, name)
    height, width = sizes.max(axis=0).tolist()
    files = sorted(find_format(format).file_names(name, [path.name for path in folder.iterdir()]))
    entries = {file: FileEntry((folder / file).stat().st_size, _sha256(folder / file)) for file in files}
    return Split(len(labels), bool((labels >= 0).all()), height, width, entries)


def write_manifest(packed: Packed, skipped: Sequence[dict[str, str]]) -> None:
    """Write ``manifest.json``; ``skipped`` has the split, file and reason of each image left out."""
    content = {"version": _VERSION, **asdict(packed), "skipped": list(skipped)}
    del content["dir"]
    (packed.dir / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def holds_packed(folder: Path) -> bool:
    """Whether a folder holds a packed data set, of any version and in whatever state, and nothing else."""
    try:
        content = json.loads((folder / MANIFEST).read_text())
        files = {file for split in content["splits"].values() for file in split["files"]}
        return all(path.name in files | {MANIFEST} and path.is_file() for path in folder.iterdir())
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_split(packed: Packed, name: str) -> None:
    split = packed.splits[name]
    labels, sizes = find_format(packed.format).read_labels_and_sizes(packed.dir, name)
    where = packed.dir / min(split.files)
    if len(labels) != split.count:
        raise UserError(f"{where}: holds {len(labels):,} samples, the manifest says {split.count:,}")
    open_array(packed.dir / checksum_file(name), np.uint32, (split.count,))
    low, high = (0, len(packed.classes) - 1) if split.labelled else (-1, -1)
    if labels.min() < low or labels.max() > high:
        raise UserError(f"{where}: labels {labels.min()} to {labels.max()}, the manifest allows {low} to {high}")
    largest, stated = tuple(sizes.max(axis=0).tolist()), (split.max_height, split.max_width)
    if largest != stated:
        raise UserError(f"{where}: greatest height and width {largest}, the manifest says {stated}")


def _read_manifest(folder: Path) -> Any:
    path = folder / MANIFEST
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; tools/convert.py makes packed data sets")
    if not path.is_file():
        raise UserError(f"{folder}: no {MANIFEST}: not a packed data set; tools/convert.py makes one")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _parse(folder: Path, content: Any) -> Packed:
    """The manifest's content as dataclasses; every type and range is checked."""

    def check(condition: bool, what: str) -> None:
        if not condition:
            raise UserError(f"{folder / MANIFEST}: {what}")

    def fields(value: Any, names: set[str], what: str) -> dict:
        check(isinstance(value, dict) and set(value) == names, f"{what} must have exactly {', '.join(sorted(names))}")
        return value

    def whole(value: Any, low: int, what: str) -> int:
        check(type(value) is int and low <= value < 2**63, f"{what} must be a whole number of at least {low}")
        return value

    check(isinstance(content, dict), "is not a JSON object")
    version = content.get("version")
    check(
        type(version) is int and version == _VERSION,
        f"version {version!r} instead of {_VERSION}; convert the data set again",
    )
    fields(content, {"version", "format", "dataset", "classes", "options", "splits", "skipped"}, "the manifest")
    format, classes, options, splits = (content[key] for key in ("format", "classes", "options", "splits"))
    check(isinstance(format, str) and format in FORMATS, f"format must be one of {', '.join(FORMATS)}")
    check(isinstance(content["dataset"], str), "dataset must be a string")
    check(
        isinstance(classes, list) and all(isinstance(name, str) for name in classes),
        "classes must be strings",
    )
    check(len(set(classes)) == len(classes), "classes must be different")
    given = {"val_fraction"} & set(options if isinstance(options, dict) else ())
    fields(options, {"max_resolution", "quality"} | given, "options")
    for key in ("max_resolution", "quality"):
        check(options[key] is None or whole(options[key], 1, f"options.{key}") > 0, f"options.{key}")
    for key in given:
        valid = type(options[key]) is float and 0 < options[key] < 1
        check(valid, f"options.{key} must be a number between 0 and 1")
    check(
        isinstance(splits, dict) and set(splits) in ({"train"}, {"train", "val"}),
        "splits must be train, optionally val",
    )
    check(isinstance(content["skipped"], list), "skipped must be a list")
    for entry in content["skipped"]:
        texts = fields(entry, {"split", "file", "reason"}, "an entry of skipped").values()
        check(all(isinstance(text, str) for text in texts), "an entry of skipped must hold strings")

    parsed = {}
    for name, split in splits.items():
        fields(split, {"count", "labelled", "max_height", "max_width", "files"}, f"splits.{name}")
        check(isinstance(split["labelled"], bool), f"splits.{name}.labelled must be true or false")
        check(bool(classes) or not split["labelled"], f"splits.{name} is labelled, but there are no classes")
        numbers = [whole(split[key], 1, f"splits.{name}.{key}") for key in ("count", "max_height", "max_width")]
        entries = {}
        check(isinstance(split["files"], dict), f"splits.{name}.files must be an object")
        files = find_format(format).file_names(name, split["files"])
        for file, entry in fields(split["files"], files, f"splits.{name}.files").items():
            fields(entry, {"bytes", "sha256"}, f"the entry of {file}")
            digest = entry["sha256"]
            valid = isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
            check(valid, f"the sha256 of {file} must be 64 hexadecimal digits")
            entries[file] = FileEntry(whole(entry["bytes"], 1, f"the bytes of {file}"), digest)
        count, height, width = numbers
        parsed[name] = Split(count, split["labelled"], height, width, entries)
    return Packed(folder, format, content["dataset"], tuple(classes), parsed, options)
