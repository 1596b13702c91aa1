"""CIFAR-10 and CIFAR-100 from their official Python archives (Krizhevsky: Learning Multiple Layers of Features, 2009),
or from Parquet files.

The batches in the archives are pickles. Every archive is read by an unpickler that can rebuild numpy arrays and call
nothing else; a download must also have the published checksum before it is opened.
"""

import functools
import hashlib
import http.client
import io
import pickle
import tarfile
import urllib.request
from pathlib import Path
from typing import NamedTuple, TypeGuard

import numpy as np
from tqdm import tqdm

from pipelines.errors import UserError
from pipelines.files import write_atomically
from pipelines.sources import parquet
from pipelines.sources.archive import read_members
from pipelines.sources.base import Source, from_arrays

__all__ = ["ARCHIVES", "DOWNLOADS", "URL", "Archive", "load"]

DOWNLOADS = Path("data/downloads")  # below the working directory
URL = "https://www.cs.toronto.edu/~kriz/"


class Archive(NamedTuple):
    """An official archive, and how its content is laid out."""

    file: str
    md5: str
    folder: str  # in the archive, with all files named below
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str  # key in a batch
    names: str  # key in the meta file
    classes: int


ARCHIVES = {
    "cifar10": Archive(
        file="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        meta="batches.meta",
        labels="labels",
        names="label_names",
        classes=10,
    ),
    "cifar100": Archive(
        file="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        meta="meta",
        labels="fine_labels",
        names="fine_label_names",
        classes=100,
    ),
}


def load(dataset: str, source: Path | None) -> Source:
    """Read CIFAR, whose test set becomes val; pixels are uint8 [N, 32, 32, 3], image files in Parquet files.

    Args:
        dataset: cifar10 or cifar100.
        source: the archive, a folder that holds it, the unpacked folder, or a folder of Parquet files; None:
            ``data/downloads``, downloaded if it is not there.

    Raises:
        UserError: nothing found, no network, a wrong checksum, or a layout that is not CIFAR's.
    """
    archive = ARCHIVES[dataset]
    if source is not None and parquet.is_snapshot(source):
        return parquet.read_snapshot(source, archive.classes)
    names = (*archive.train, archive.test, archive.meta)
    place = _download(archive) if source is None else _find(archive, source)
    read = _read_folder if place.is_dir() else _read_archive
    content = {name: _unpickle(data, place / name) for name, data in read(archive, place, names).items()}
    classes = content[archive.meta].get(archive.names)
    if not _is_names(classes, archive.classes):
        raise UserError(f"{place / archive.meta}: {archive.names} is not a list of {archive.classes} names")
    splits = {}
    for split, batches in {"train": archive.train, "val": (archive.test,)}.items():
        parts = [_batch(content[name], archive, place / name) for name in batches]
        pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        splits[split] = from_arrays(split, pixels, labels)
    return Source(tuple(name.decode() if isinstance(name, bytes) else name for name in classes), splits)


def _is_names(value: object, count: int) -> TypeGuard[list[bytes | str]]:
    return isinstance(value, list) and len(value) == count and all(isinstance(name, (bytes, str)) for name in value)


def _batch(content: dict, archive: Archive, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N, 32, 32, 3] and labels int64 [N]."""
    pixels, labels = content.get("data"), content.get(archive.labels)
    if not (
        isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 2 and pixels.shape[1] == 3072
    ):
        raise UserError(f"{path}: data is not a uint8 array of 3072 columns")
    if not (isinstance(labels, list) and len(labels) == len(pixels)):
        raise UserError(f"{path}: {archive.labels} is not a list of {len(pixels)} labels")
    if not all(isinstance(label, (int, np.integer)) and 0 <= label < archive.classes for label in labels):
        raise UserError(f"{path}: {archive.labels} must be class indices below {archive.classes}")
    planes = pixels.reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.array(labels, np.int64)


def _find(archive: Archive, source: Path) -> Path:
    """The archive, or the folder that holds the batches."""
    if source.is_file():
        return source
    for candidate in (source / archive.folder, source):
        if (candidate / archive.meta).is_file():
            return candidate
    if (source / archive.file).is_file():
        return source / archive.file
    raise UserError(f"{source}: holds neither {archive.file} nor {archive.folder}/{archive.meta}")


def _read_folder(archive: Archive, folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}, which {archive.file} has")
    return {name: (folder / name).read_bytes() for name in names}


def _read_archive(archive: Archive, path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Read the wanted members into memory."""

    def wanted(member: tarfile.TarInfo) -> bool:
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        return folder == archive.folder and name in names

    found: dict[str, bytes] = {}
    for member, content in read_members(path, wanted):
        if content is not None:
            name = member.name.rpartition("/")[2]
            if name in found:
                raise UserError(f"{path}: refused, its member {member.name!r} is there twice")
            found[name] = content
    for name in names:
        if name not in found:
            raise UserError(f"{path}: no {archive.folder}/{name} in it")
    return found


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for ``_codecs.encode``, which pickle calls only to rebuild Python 3's bytes in protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding}")
    return text.encode("latin1")


# What rebuilds numpy's arrays. The first two come from live arrays: their modules' names depend on numpy's version.
_NUMPY = {
    "_reconstruct": np.empty(0).__reduce_ex__(2)[0],
    "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds containers, numbers, text and numpy arrays."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(data: bytes, path: Path) -> dict:
    """A batch's dictionary with text keys (Python 2 wrote them as bytes)."""
    try:
        content = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # on other data the unpickler can raise any error
        raise UserError(f"{path}: refused, not a CIFAR batch: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: refused, not a CIFAR batch: not a dictionary")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}


def _download(archive: Archive) -> Path:
    """The archive with the published checksum, downloaded if it is not there."""
    path = DOWNLOADS / archive.file
    if path.is_file():
        with path.open("rb") as file:
            if hashlib.file_digest(file, "md5").hexdigest() == archive.md5:
                return path
        raise UserError(
            f"{path}: not the published file (its MD5 is not {archive.md5}); delete it to download it again"
        )
    write_atomically(path, functools.partial(_fetch, archive))
    return path


def _fetch(archive: Archive, path: Path) -> None:
    """Download the archive to ``path``, and compare its checksum."""
    digest = hashlib.md5()
    try:
        with urllib.request.urlopen(URL + archive.file, timeout=30) as response, path.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc=archive.file, disable=None) as progress:
                while block := response.read(2**20):
                    file.write(block)
                    digest.update(block)
                    progress.update(len(block))
    except (OSError, http.client.HTTPException) as error:
        hint = f"fetch it elsewhere and put it at {DOWNLOADS / archive.file}, or name it with --source"
        raise UserError(f"cannot download {URL}{archive.file} ({error}); {hint}") from error
    if digest.hexdigest() != archive.md5:
        raise UserError(f"{URL}{archive.file}: the download does not have the published MD5 {archive.md5}; try again")
