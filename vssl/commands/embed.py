"""Write the embedding of every image of a folder to a Parquet file: path, mean and variance.

Examples:
  vssl embed runs/photos photos --out photos.parquet
  vssl embed runs/photos/backbone.safetensors photos --out photos.parquet --features
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from pipelines.errors import UserError
from pipelines.files import check_writable, write_atomically
from pipelines.images import ImageError
from pipelines.loading.pictures import Picture, decode_ahead
from pipelines.sources.image_folders import all_images
from vssl.commands.arguments import exit_on_signals, whole
from vssl.inference import Pretrained, load

Columns = dict[str, Tensor]  # [N, D] each


def main(words: Sequence[str] | None = None, prog: str | None = None) -> None:
    arguments = _parse(words, prog)
    exit_on_signals()
    _check_out(arguments.out, arguments.force)
    model = load(arguments.source, device=arguments.device, config=arguments.config, teacher=arguments.teacher)
    batch_size = arguments.batch_size or model.config.data.batch_size
    compute = _computation(model, batch_size, arguments.features)
    pictures = _list_pictures(arguments.images)
    skipped: list[str] = []

    def write(temporary: Path) -> None:
        try:
            skipped.extend(_write(temporary, pictures, model, batch_size, compute, arguments.on_error))
        except SystemExit:  # by a signal
            print(f"stopped: {arguments.out} was not written", file=sys.stderr)
            raise

    write_atomically(arguments.out, write)
    print(f"{arguments.out}: {len(pictures) - len(skipped):,} images")
    if skipped:
        print(f"skipped {len(skipped)}:", *skipped, sep="\n  ")


def _parse(words: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="RUN_OR_CHECKPOINT",
        help="a run directory (its newest checkpoint), a checkpoint, or an exported backbone",
    )
    parser.add_argument(
        "images", type=Path, metavar="SOURCE", help="a folder, whose images are found at any depth, or a picture"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    parser.add_argument(
        "--features",
        action="store_true",
        help="write the backbone's features instead of mean and variance; for methods without a variance and for "
        "exported backbones",
    )
    parser.add_argument(
        "--on-error", choices=("fail", "skip"), default="fail", help="what to do with an unusable image; default: fail"
    )
    parser.add_argument("--batch-size", type=whole(1), metavar="N", help="images per forward pass; default: the run's")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: the run's config.yaml")
    parser.add_argument("--teacher", action="store_true", help="the teacher's weights, as in DINO's paper")
    parser.add_argument("--force", action="store_true", help="replace the file at --out")
    return parser.parse_args(words)


def _check_out(out: Path, force: bool) -> None:
    check_writable(out)
    if out.exists() and not force:
        raise UserError(f"{out}: already exists; --force replaces it")
    try:
        import pyarrow.parquet  # noqa: F401 (at use: nothing else here needs it)
    except ImportError as error:
        raise UserError("Parquet files need pyarrow, which is not installed: pip install pyarrow") from error


def _computation(model: Pretrained, batch_size: int, features: bool) -> Callable[[list[np.ndarray]], Columns]:
    """What is computed for a batch of pictures, tried on a black one: whether there is a variance must be known first.

    Raises:
        UserError: the model has no variance.
    """

    def embed(pictures: list[np.ndarray]) -> Columns:
        return model.embed(pictures, batch_size=batch_size)._asdict()

    def extract(pictures: list[np.ndarray]) -> Columns:
        return {"features": model.features(pictures, batch_size=batch_size)}

    if features:
        return extract
    try:
        embed([np.zeros((1, 1, 3), np.uint8)])
    except UserError as error:
        raise UserError(f"{error}; --features writes the backbone's features instead") from error
    return embed


def _list_pictures(source: Path) -> list[Picture]:
    """The pictures of a folder, named by their path below it, or the one that ``source`` is."""
    if source.is_dir():
        pictures = [Picture(Path(path).relative_to(source).as_posix(), path) for path in all_images(source)]
    elif source.exists():
        pictures = [Picture(source.name, str(source))]
    else:
        raise UserError(f"{source}: no such folder or picture")
    for name, _ in pictures:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{name!a}: the name is not UTF-8, as a Parquet file needs it: rename it") from error
    return pictures


def _write(
    path: Path,
    pictures: list[Picture],
    model: Pretrained,
    batch_size: int,
    compute: Callable[[list[np.ndarray]], Columns],
    on_error: str,
) -> list[str]:
    """Write the file, a row group per batch; returns what was skipped, and why."""
    import pyarrow.parquet as pq

    skipped: list[str] = []
    with contextlib.ExitStack() as closing:
        progress = closing.enter_context(tqdm(total=len(pictures), desc="embed", unit=" images", disable=None))
        batches = closing.enter_context(contextlib.closing(decode_ahead(pictures, batch_size, model.config.data)))
        writer = None
        for batch in batches:
            usable = {name: pixels for name, pixels in batch if not isinstance(pixels, ImageError)}
            failed = [f"{name}: {reason}" for name, reason in batch if isinstance(reason, ImageError)]
            if failed and on_error == "fail":
                raise UserError(f"{failed[0]} (--on-error skip leaves it out)")
            skipped += failed
            if usable:
                table = _table(list(usable), compute(list(usable.values())))
                if writer is None:
                    writer = closing.enter_context(pq.ParquetWriter(path, table.schema, use_dictionary=False))
                writer.write_table(table)
            progress.update(len(batch))
        if writer is None:
            raise UserError(f"none of the {len(skipped)} images can be used; the first: {skipped[0]}")
    return skipped


def _table(names: list[str], columns: Columns) -> Any:
    """A ``pyarrow.Table``: path, and a list of fixed length for each row of each column."""
    import pyarrow as pa

    lists = {
        name: pa.FixedSizeListArray.from_arrays(values.flatten().numpy(force=True), values.shape[1])
        for name, values in columns.items()
    }
    return pa.table({"path": names, **lists})
