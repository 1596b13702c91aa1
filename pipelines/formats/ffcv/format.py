"""The .beton file of ffcv (https://ffcv.io): written so that ffcv reads it, checked before ffcv's C code trusts it.

Layout, little endian: header; two field descriptors (image, label); a table with one row per sample; the images' data,
none of which crosses a page's border; the allocation table, one row per sample, up to the end of the file. ffcv's own
writer stores only what it encoded itself and hangs when a worker fails; this one stores JPEG files unchanged and gives
the same bytes for the same samples.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.errors import UserError
from pipelines.formats.checksums import Checksums, checksum, checksum_file
from pipelines.images import Sample

__all__ = ["Table", "Writer", "file_names", "iter_samples", "read_labels_and_sizes", "read_table"]

_VERSION = 2
_HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("allocations", "<u8")]
)
_DESCRIPTOR = np.dtype([("type", "<u1"), ("name", "S16"), ("arguments", "V1024")])
_RGB_IMAGE, _INT = 2, 1  # ffcv's numbers of RGBImageField and IntField
_FIELDS = np.array([(_RGB_IMAGE, b"image", b""), (_INT, b"label", b"")], _DESCRIPTOR)
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("start", "<u8")])
_ROW = np.dtype([("image", _IMAGE), ("label", "<i8")], align=True)
_ALLOCATION = np.dtype([("sample", "<u8"), ("start", "<u8"), ("bytes", "<u8")])
_JPEG, _RAW = 0, 1
_TABLE_START = _HEADER.itemsize + _FIELDS.nbytes
_MIN_PAGE, _PAGE = 2**21, 2**23  # ffcv's minimum and default


class Table(NamedTuple):
    """The table of a .beton file's samples; arrays of N."""

    labels: np.ndarray  # int64, -1: none
    sizes: np.ndarray  # int32 [N, 2], height and width
    jpeg: np.ndarray  # bool; else RGB pixels, uint8 [height, width, 3]
    starts: np.ndarray  # int64, offset of the data in the file, ascending
    lengths: np.ndarray  # int64, bytes of the data


class Writer:
    """Writes a split's samples in the order in which they are added.

    Args:
        folder: where ``{split}.beton`` and its checksums are made.
        split: train or val.
        capacity: the most samples that may be added.
    """

    raw_pixels = 64 * 64  # smaller images take hardly more space as pixels, and then need no decoding
    stores_jpegs = True
    keep_small_jpegs = False
    max_side = 65_500  # libjpeg's limit; the table could hold 65,535

    def __init__(self, folder: Path, split: str, capacity: int) -> None:
        self._rows = np.zeros(capacity, _ROW)
        self._allocations = np.zeros(capacity, _ALLOCATION)
        self._checksums = np.empty(capacity, np.uint32)
        self._checksum_path = folder / checksum_file(split)
        self._count = 0
        self._page = _PAGE
        self._end = _TABLE_START + self._rows.nbytes
        self._file = (folder / f"{split}.beton").open("wb", buffering=2**20)

    def add(self, sample: Sample, label: int) -> None:
        size = len(sample.data)
        # Data within one page also lie within one page of twice the size.
        while size > self._page:
            self._page *= 2
        if self._end // self._page != (self._end + size - 1) // self._page:
            self._end += -self._end % self._page
        self._file.seek(self._end)
        self._file.write(sample.data)
        mode = _JPEG if sample.jpeg else _RAW
        self._rows[self._count] = ((mode, sample.width, sample.height, self._end), label)
        self._allocations[self._count] = (self._count, self._end, size)
        self._checksums[self._count] = checksum(label, sample.height, sample.width, sample.data)
        self._count += 1
        self._end += size

    def close(self) -> None:
        """Write the tables; only then are the files complete."""
        header = np.array((_VERSION, len(_FIELDS), self._page, self._count, self._end), _HEADER)
        self._file.seek(self._end)
        self._file.write(self._allocations[: self._count].tobytes())
        self._file.seek(0)
        for part in (header, _FIELDS, self._rows[: self._count]):
            self._file.write(part.tobytes())
        self._file.close()
        np.save(self._checksum_path, self._checksums[: self._count])


def file_names(split: str, present: Iterable[str]) -> set[str]:
    """The files of a split; they do not depend on ``present``."""
    return {f"{split}.beton", checksum_file(split)}


def read_labels_and_sizes(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 [N] and sizes int32 [N, 2] of a split, after the checks of ``read_table``."""
    table = read_table(folder / f"{split}.beton")
    return table.labels, table.sizes


def iter_samples(folder: Path, split: str, start: int, stop: int) -> Iterator[Sample]:
    """Samples ``start`` to ``stop`` as they are stored. Raises ``UserError`` if one does not match its checksum."""
    path = folder / f"{split}.beton"
    table = read_table(path)
    checksums = Checksums(folder, split, table.labels, table.sizes)
    with path.open("rb") as file:
        for index in range(start, stop):
            file.seek(table.starts[index])
            data = file.read(table.lengths[index])
            checksums.check(index, data, path)
            height, width = table.sizes[index].tolist()
            yield Sample(height, width, bool(table.jpeg[index]), data)


def read_table(path: Path) -> Table:
    """Read the tables and check all that ffcv's readers rely on; the images' data are not read.

    Raises:
        UserError: the file is cut off, is not a .beton file of images and labels, or a table points outside the file.
    """

    def check(condition: bool, what: str) -> None:
        if not condition:
            raise UserError(f"{path}: damaged or not a .beton file: {what}")

    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        check(total >= _TABLE_START, "it ends within its header")
        header = np.frombuffer(file.read(_HEADER.itemsize), _HEADER)[0]
        check(header["version"] == _VERSION, f"version {header['version']} instead of {_VERSION}")
        fields = np.frombuffer(file.read(_FIELDS.nbytes), _DESCRIPTOR)
        check(header["fields"] == len(_FIELDS), f"{header['fields']} fields instead of {len(_FIELDS)}")
        check((fields[["type", "name"]] == _FIELDS[["type", "name"]]).all(), "its fields are not image and label")
        page, count, end = int(header["page_size"]), int(header["samples"]), int(header["allocations"])
        check(page >= _MIN_PAGE and page & (page - 1) == 0, f"a page size of {page}")
        check(_TABLE_START + count * _ROW.itemsize <= end <= total, "its table lies outside the file")
        check(total - end == count * _ALLOCATION.itemsize, f"its allocation table is not one of {count} samples")
        rows = np.fromfile(file, _ROW, count)
        file.seek(end)
        allocations = np.fromfile(file, _ALLOCATION, count)

    image = rows["image"]
    starts, lengths = allocations["start"], allocations["bytes"]
    sizes = np.stack([image["height"], image["width"]], axis=1).astype(np.int32)
    check((allocations["sample"] == np.arange(count)).all(), "its allocation table is out of order")
    check((image["start"] == starts).all(), "its two tables disagree")
    # The numbers are unsigned; these comparisons cannot overflow.
    inside = (starts <= end) & (lengths <= np.uint64(end) - np.minimum(starts, end)) & (lengths > 0)
    check(bool(inside.all()), "an image's data lie outside the file")
    starts, lengths = starts.astype(np.int64), lengths.astype(np.int64)
    ends = starts + lengths
    check(bool((starts[:1] >= _TABLE_START + rows.nbytes).all()), "an image's data lie inside the table")
    check(bool((ends[:-1] <= starts[1:]).all()), "images' data overlap")
    check(bool((starts // page == (ends - 1) // page).all()), "an image's data cross a page's border")
    check(bool((image["mode"] <= _RAW).all()), "an image is neither JPEG nor raw")
    check(bool((sizes > 0).all()), "an image has no pixels")
    jpeg = image["mode"] == _JPEG
    check(bool((jpeg | (sizes.astype(np.int64).prod(axis=1) * 3 == lengths)).all()), "a raw image has too few pixels")
    return Table(rows["label"].astype(np.int64), sizes, jpeg, starts, lengths)
