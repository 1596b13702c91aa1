"""WebDataset shards with DALI's index files: plain tar files, which any WebDataset reader reads.

``{split}-000000.tar``, ...: for each sample ``NNNNNNNNN.jpg`` or ``.png`` and, if there are labels, ``NNNNNNNNN.cls``,
the label as text; NNNNNNNNN counts through all shards. ``{split}-000000.idx``, ...: where in its shard each file's
content lies, as DALI's own ``wds2idx`` writes it. ``{split}-labels.npy`` and ``{split}-sizes.npy`` are those of the
resident format; without them, labels and image sizes could be known only by reading all shards completely. The
checksums are of the image files.
"""

import io
import itertools
import re
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipelines.errors import UserError
from pipelines.formats.arrays import open_array
from pipelines.formats.checksums import Checksums, checksum, checksum_file
from pipelines.images import ImageError, Sample, decode

__all__ = ["Table", "Writer", "file_names", "iter_samples", "read_labels_and_sizes", "read_table", "shard_path"]

_VERSION = "v1.2"  # of the index files
_BLOCK = tarfile.BLOCKSIZE
_OVERHEAD = 4 * _BLOCK  # per sample, at most: two headers, a label, and the padding of the image's last block


class Table(NamedTuple):
    """Labels, sizes and locations of a split's samples; arrays of N."""

    labels: np.ndarray  # int64, -1: none
    sizes: np.ndarray  # int32 [N, 2], height and width
    shards: np.ndarray  # int64, number of the tar file, ascending from 0
    starts: np.ndarray  # int64, offset of the image file in it
    lengths: np.ndarray  # int64, bytes of the image file


class Writer:
    """Writes a split's samples in the order in which they are added.

    Args:
        folder: where the files are made.
        split: train or val.
        capacity: the most samples that may be added.

    ``shard_bytes``: maximum size of a shard, unless a single sample is larger. ``at_once``: how many shards are written
    at the same time; until then they are held in memory.
    """

    raw_pixels = 64 * 64  # as in the ffcv format; stored as PNG here
    stores_jpegs = True
    keep_small_jpegs = True  # a PNG of their pixels would gain nothing
    max_side = 65_500  # libjpeg's limit
    shard_bytes = 2**27
    at_once = 4

    def __init__(self, folder: Path, split: str, capacity: int) -> None:
        self._folder, self._split = folder, split
        self._labels = np.empty(capacity, np.int64)
        self._sizes = np.empty((capacity, 2), np.int32)
        self._checksums = np.empty(capacity, np.uint32)
        self._count = 0
        self._shards: list[list[tuple[int, Sample, int]]] = []  # not yet written; the last is being filled
        self._written = 0
        self._room = 0  # bytes left in the last shard

    def add(self, sample: Sample, label: int) -> None:
        size = len(sample.data) + _OVERHEAD
        if size > self._room:
            if len(self._shards) == self.at_once:
                self._write()
            self._shards.append([])
            self._room = self.shard_bytes
        self._shards[-1].append((self._count, sample, label))
        self._room -= size
        self._labels[self._count], self._sizes[self._count] = label, (sample.height, sample.width)
        self._count += 1

    def close(self) -> None:
        """Write what is left; only then are the files complete."""
        self._write()
        np.save(self._folder / f"{self._split}-labels.npy", self._labels[: self._count])
        np.save(self._folder / f"{self._split}-sizes.npy", self._sizes[: self._count])
        np.save(self._folder / checksum_file(self._split), self._checksums[: self._count])

    def _write(self) -> None:
        paths = [shard_path(self._folder, self._split, self._written + i) for i in range(len(self._shards))]
        with ThreadPoolExecutor(self.at_once) as threads:
            for samples, checksums in zip(self._shards, threads.map(_write_shard, paths, self._shards), strict=True):
                first = samples[0][0]
                self._checksums[first : first + len(samples)] = checksums
        self._written += len(paths)
        self._shards.clear()


def shard_path(folder: Path, split: str, number: int) -> Path:
    """A shard's tar file; its index has the suffix .idx."""
    return folder / f"{split}-{number:06}.tar"


def file_names(split: str, present: Iterable[str]) -> set[str]:
    """The files that a split must have if it has as many shards as ``present``: numbered from 0, without a gap."""
    count = sum(re.fullmatch(rf"{split}-\d{{6}}\.tar", name) is not None for name in present)
    shards = [shard_path(Path(), split, number) for number in range(max(1, count))]
    indexes = [shard.with_suffix(".idx") for shard in shards]
    arrays = {f"{split}-labels.npy", f"{split}-sizes.npy", checksum_file(split)}
    return arrays | {path.name for path in (*shards, *indexes)}


def read_labels_and_sizes(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 [N] and sizes int32 [N, 2] of a split, after the checks of ``read_table``."""
    table = read_table(folder, split)
    return table.labels, table.sizes


def read_table(folder: Path, split: str) -> Table:
    """Read the indexes and arrays, and check that they agree; of each shard only the first header is read.

    Raises:
        UserError: a file is cut off or damaged, or an index points outside its shard.
    """
    labels = np.array(open_array(folder / f"{split}-labels.npy", np.int64, (None,)))
    sizes = np.array(open_array(folder / f"{split}-sizes.npy", np.int32, (len(labels), 2)))
    if not (sizes >= 1).all():
        raise UserError(f"{folder / f'{split}-sizes.npy'}: an image is empty")
    starts, lengths = [], []
    counts: list[int] = []
    for shard in _shards(folder, split):
        entries = _read_index(shard, sum(counts))
        starts.append(entries.starts[:, 0])
        lengths.append(entries.lengths[:, 0])
        counts.append(len(entries.starts))
        labelled = labels[sum(counts[:-1]) : sum(counts)] >= 0
        if not (labelled == (entries.starts.shape[1] == 2)).all():
            raise UserError(f"{shard}: its labelled samples are not those of {split}-labels.npy")
    if sum(counts) != len(labels):
        raise UserError(
            f"{shard_path(folder, split, 0)}: the shards hold {sum(counts):,} samples, "
            f"{split}-labels.npy has {len(labels):,}"
        )
    return Table(labels, sizes, np.repeat(np.arange(len(counts)), counts), *map(np.concatenate, (starts, lengths)))


def iter_samples(folder: Path, split: str, start: int, stop: int) -> Iterator[Sample]:
    """Samples ``start`` to ``stop`` as they are stored, PNG files as the pixels they were made of.

    Raises:
        UserError: a header, a label or a PNG file contradicts the tables, or a sample does not match its checksum.
    """
    labels = open_array(folder / f"{split}-labels.npy", np.int64, (None,))
    sizes = open_array(folder / f"{split}-sizes.npy", np.int32, (len(labels), 2))
    checksums = Checksums(folder, split, labels, sizes)
    first = 0
    for shard in _shards(folder, split):
        count = _read_count(shard)
        inside = range(max(start, first), min(stop, first + count))
        if inside:
            entries = _read_index(shard, first)
            with shard.open("rb") as file:
                for index in inside:
                    label = b"%d" % labels[index] if labels[index] >= 0 else None
                    data = _read_image(file, entries, index - first, label, f"sample {index}")
                    checksums.check(index, data, shard)
                    height, width = size = sizes[index].tolist()
                    jpeg = entries.names[index - first, 0].endswith(".jpg")
                    stored = data if jpeg else _pixels(shard, data, size, f"sample {index}")
                    yield Sample(height, width, jpeg, stored)
        first += count


class _Index(NamedTuple):
    """An index file: arrays with a row per sample and a column per file (the image and, if there is one, the label)."""

    names: np.ndarray  # text
    starts: np.ndarray  # int64
    lengths: np.ndarray  # int64


def _write_shard(path: Path, samples: list[tuple[int, Sample, int]]) -> list[int]:
    """Write a tar file and its index; returns the samples' checksums."""
    lines, checksums = [f"{_VERSION} {len(samples)}"], []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:

        def add(number: int, extension: str, data: bytes) -> str:
            member = tarfile.TarInfo(f"{number:09}.{extension}")  # no date, no owner: the same bytes every time
            member.size = len(data)
            entry = f"{extension} {tar.offset + _BLOCK} {member.size} {member.name}"
            tar.addfile(member, io.BytesIO(data))
            return entry

        for number, sample, label in samples:
            extension, data = ("jpg", sample.data) if sample.jpeg else ("png", _to_png(sample))
            checksums.append(checksum(label, sample.height, sample.width, data))
            entries = [add(number, extension, data)]
            if label >= 0:
                entries.append(add(number, "cls", b"%d" % label))
            lines.append(" ".join(entries))
    path.with_suffix(".idx").write_text("\n".join(lines) + "\n")
    return checksums


def _to_png(sample: Sample) -> bytes:
    encoded = io.BytesIO()
    Image.frombytes("RGB", (sample.width, sample.height), sample.data).save(encoded, "PNG")
    return encoded.getvalue()


def _shards(folder: Path, split: str) -> Iterator[Path]:
    """The tar files that exist, and in any case the first, which must exist."""
    yield shard_path(folder, split, 0)
    yield from itertools.takewhile(Path.exists, (shard_path(folder, split, number) for number in itertools.count(1)))


def _damaged(path: Path, what: object) -> UserError:
    return UserError(f"{path}: damaged or not a shard of this data set: {what}")


def _read_count(shard: Path) -> int:
    """The number of samples that an index file states."""
    path = shard.with_suffix(".idx")
    try:
        with path.open(encoding="ascii") as file:
            version, count = file.readline().split()
        if version != _VERSION:
            raise _damaged(path, f"version {version} instead of {_VERSION}")
        return int(count)
    except ValueError as error:
        raise _damaged(path, error) from error


def _read_index(shard: Path, first: int) -> _Index:
    """Read and check the index of a shard whose first sample is number ``first``."""
    path, count = shard.with_suffix(".idx"), _read_count(shard)
    try:
        fields = np.array([line.split() for line in path.read_text("ascii").splitlines()[1:]])
        extensions, starts, lengths, names = (fields[:, column::4] for column in range(4))
        starts, lengths = starts.astype(np.int64), lengths.astype(np.int64)
    except (ValueError, IndexError, OverflowError) as error:  # also if lines have different lengths
        raise _damaged(path, error) from error

    def check(condition: bool, what: str) -> None:
        if not condition:
            raise _damaged(path, what)

    check(fields.shape in ((count, 4), (count, 8)), f"it does not list {count} samples of an image and a label")
    check(set(extensions[:, 0]) <= {"jpg", "png"} and set(extensions[:, 1:].flat) <= {"cls"}, "files of another kind")
    keys = np.array([[f"{number:09}."] for number in range(first, first + count)])
    check((names == np.char.add(keys, extensions)).all(), f"its samples are not numbered from {first:09}")
    size = shard.stat().st_size
    check(bool(((lengths > 0) & (lengths <= size)).all()), "a file is empty or longer than the shard")
    # Every file's content comes one header after the last block of the file before.
    expected = -(-(starts + lengths) // _BLOCK).ravel() * _BLOCK + _BLOCK
    check(starts[0, 0] == _BLOCK and (starts.ravel()[1:] == expected[:-1]).all(), "its files do not follow each other")
    check(expected[-1] <= size, "a file lies outside the shard")
    with shard.open("rb") as file:
        _check_header(file, names[0, 0], int(starts[0, 0]), int(lengths[0, 0]))
    return _Index(names, starts, lengths)


def _check_header(file: io.BufferedReader, name: str, start: int, length: int) -> None:
    """Check the tar header before a file's content, and leave the position at the start of that content."""
    file.seek(start - _BLOCK)
    try:
        member = tarfile.TarInfo.frombuf(file.read(_BLOCK), "ascii", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise _damaged(Path(file.name), f"no header of {name}: {error}") from error
    if (member.name, member.size) != (name, length):
        raise _damaged(Path(file.name), f"{member.name} of {member.size:,} bytes where its index has {name}")


def _read_image(file: io.BufferedReader, entries: _Index, row: int, label: bytes | None, what: str) -> bytes:
    """A sample's image file, after a check of the headers and of the label that follows it."""
    files = []
    for name, start, length in zip(*(column[row].tolist() for column in entries), strict=True):
        _check_header(file, name, start, length)
        files.append(file.read(length))
    data, *stored = files
    if stored != ([] if label is None else [label]):
        raise _damaged(Path(file.name), f"{what} is labelled {stored}, the table says {label!r}")
    return data


def _pixels(shard: Path, png: bytes, size: list[int], what: str) -> bytes:
    """The pixels of a PNG file."""
    try:
        image, _ = decode(png)
    except ImageError as error:
        raise _damaged(shard, f"{what} {error}") from error
    if [image.height, image.width] != size:
        raise _damaged(shard, f"{what} has {image.height} x {image.width} pixels, the table says {size}")
    return image.tobytes()
