"""Parquet files as Hugging Face's ``datasets`` writes them: a column of image files, and one of labels."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.sources.base import Source, existing_folder
from pipelines.sources.split_files import Listed, Value, find_shards, number_labels, split_shards

__all__ = ["is_snapshot", "load", "read_snapshot"]

logger = logging.getLogger(__name__)

_SUFFIX = ".parquet"
_BATCH = 64  # images in memory at a time
_STREAMED = {"pre_buffer": False, "buffer_size": 2**20}  # otherwise pyarrow reads far ahead, in the end the whole file


def load(dataset: str, source: Path | None) -> Source:
    """See ``base.SourceModule``."""
    return read_snapshot(existing_folder(dataset, source))


def is_snapshot(folder: Path) -> bool:
    """Whether a folder holds Parquet files, or one of its folders does."""
    return bool(find_shards(folder, _SUFFIX, depth=1))  # it may be an ImageNet tree, whose class folders are large


def read_snapshot(root: Path, classes: int | None = None) -> Source:
    """Read the labels of a folder of Parquet files; the images are read batch by batch when they are iterated over.

    Args:
        root: the files lie in it, in its only folder that has any, or in folders named by split; names tell the split.
        classes: how many classes there must be; None: any number.

    Raises:
        UserError: pyarrow is missing, a file cannot be read, there is no column of images, or files name classes
            differently.
    """
    splits = split_shards(root, _SUFFIX)
    columns = _columns(splits["train"][0])
    if classes is not None and len(columns.classes or ()) != classes:
        found = "no" if columns.classes is None else len(columns.classes)
        raise UserError(f"{splits['train'][0]}: names {found} classes, not {classes}")
    return number_labels({split: _list(paths, columns) for split, paths in splits.items()}, columns.classes)


@dataclass(frozen=True)
class _Columns:
    image: str  # of image files, or of structs with the member bytes
    label: str | None
    classes: list[str] | None  # names of the labels 0, 1, ...


@dataclass(frozen=True)
class _Images:
    """The content of image files, or their paths where only these are stored; b"" where there is neither."""

    paths: list[Path]
    column: str

    def __iter__(self) -> Iterator[bytes | str]:
        for path in self.paths:
            with _opened(path) as file:
                for batch in file.iter_batches(_BATCH, columns=_leaves(path, file.schema_arrow, self.column)):
                    for image in batch.column(0):
                        value = image.as_py() or b""
                        if isinstance(value, dict):
                            place = value.get("path") if value["bytes"] is None else None
                            value = str(path.parent / place) if place else value["bytes"] or b""
                        yield value


def _list(paths: list[Path], columns: _Columns) -> Listed:
    names: list[str] = []
    values: list[Value] = []
    for path in paths:
        with _opened(path) as file:
            _leaves(path, file.schema_arrow, columns.image)
            count = file.metadata.num_rows
            names += [f"{path.name}[{row}]" for row in range(count)]
            if columns.label not in file.schema_arrow.names:
                values += [None] * count
                continue
            if _class_names(file.schema_arrow, columns.label) != columns.classes:
                raise UserError(f"{path}: its class names are not those of the first file of train")
            values += [_whole(value) for value in file.read([columns.label]).column(0).to_pylist()]
        if not all(value is None or isinstance(value, (int, str)) for value in values):
            raise UserError(f"{path}: its column {columns.label} holds neither whole numbers nor text")
    return Listed(_Images(paths, columns.image), names, values, {})


def _whole(value: Any) -> Any:
    """Whole numbers as pandas writes them where some are missing: floats, and NaN for none."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else int(value) if value.is_integer() else value


def _columns(path: Path) -> _Columns:
    with _opened(path) as file:
        schema = file.schema_arrow
    features = _features(schema)
    kinds = {name: features.get(name, {}).get("_type") for name in schema.names}
    pictures = [name for name, kind in kinds.items() if kind == "Image"]
    labels = ["label", "fine_label", *(name for name, kind in kinds.items() if kind == "ClassLabel")]
    image = next((name for name in ("image", "img", *pictures) if name in schema.names), None)
    label = next((name for name in labels if name in schema.names), None)
    if image is None:
        raise UserError(f"{path}: has no column of images (image or img), only {', '.join(schema.names)}")
    others = [name for name in schema.names if name != image and name in {"image", "img", *pictures}]
    if others and image not in ("image", "img"):
        raise UserError(f"{path}: has several columns of images, {image}, {', '.join(others)}: leave only one in it")
    unused = others if label is not None else [name for name in schema.names if name != image]
    if unused:
        what = "" if label is not None else " and no labels (label or fine_label)"
        logger.warning("note: %s: reading images from %s%s; columns not used: %s", path, image, what, ", ".join(unused))
    return _Columns(image, label, _class_names(schema, label))


def _class_names(schema: Any, label: str | None) -> list[str] | None:
    names = _features(schema).get(label or "", {}).get("names")
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _features(schema: Any) -> dict[str, dict]:
    """What ``datasets`` says of each column; empty if another program wrote the file."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _leaves(path: Path, schema: Any, column: str) -> list[str]:
    """The columns of the image files' content and paths, in the form in which pyarrow reads only these."""
    import pyarrow as pa

    kind = schema.field(column).type if column in schema.names else None
    if kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return [column]
    if kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        leaves = [f"{column}.{part}" for part in ("bytes", "path") if kind.get_field_index(part) >= 0]
        if double := [leaf for leaf in leaves if leaf in schema.names]:
            raise UserError(f"{path}: has a column {double[0]} beside {column}: rename it")
        return leaves
    raise UserError(f"{path}: its column {column} does not hold image files")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile``; pyarrow's errors, also those of later reads, are a ``UserError``."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{path}: Parquet files need pyarrow, which is not installed: pip install pyarrow") from error
    try:
        with pq.ParquetFile(path, **_STREAMED) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as a Parquet file: {error}") from error
