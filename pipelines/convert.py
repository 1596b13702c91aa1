"""From a source to a packed data set, on all cores."""

import functools
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipelines.errors import UserError
from pipelines.formats import find_format
from pipelines.formats.packed import MANIFEST, Packed, holds_packed, measure_split, open_packed, write_manifest
from pipelines.formats.protocol import Writer
from pipelines.formats.staging import staged
from pipelines.images import ImageError, PackingRecipe, Sample, decode, pillow_silenced, prepare_counted
from pipelines.sources import load_source
from pipelines.sources.base import Image, Source, SourceSplit, file_size, read_file, without_labels
from pipelines.sources.held_out import hold_out
from pipelines.summary import Summary, draw_sheet

__all__ = ["DIGITS_DIR", "Report", "convert", "examine", "pack_digits_if_absent", "verify"]

DIGITS_DIR = Path("data/digits-resident")  # where the programs expect the digits, and pack them when they are absent

_SKIP_HINT = "--on-error skip leaves it out"
_CHUNK = 16  # images per task of a worker; stopping waits for the tasks in progress
_CHUNK_BYTES = 4 * 2**20  # of their files at most, unless one is larger; some chunks per worker wait in memory
_VERIFY_CHUNK = 2048  # samples per task of a worker; each task reads the split's table


@dataclass(frozen=True)
class Report:
    packed: Packed
    skipped: list[dict[str, str]]  # split, file, reason
    seconds: float  # for the images, without listing and checksums
    summary: Summary


def convert(
    dataset: str,
    source: Path | Source | None,
    out: Path,
    *,
    format: str = "ffcv",
    max_resolution: int | None = None,
    quality: int | None = None,
    workers: int = 0,
    on_error: str = "fail",
    val_fraction: float | None = None,
    no_labels: bool = False,
    force: bool = False,
    preview: Path | None = None,
) -> Report:
    """Pack a data set. The same images give the same bytes, whatever the number of workers.

    Args:
        dataset: one of ``sources.SOURCES``, or the name of the source given.
        source: folder or archive, see ``sources.load_source``; or a source that is loaded already.
        out: folder that appears when the data set is complete. Must be absent or empty; with ``force`` it may hold a
            packed data set, which is replaced.
        format: one of ``formats.FORMATS``.
        max_resolution: longest side in pixels; larger images are scaled down, antialiased, none is enlarged.
        quality: encode every image as a JPEG of this quality. None: JPEG files that need no change keep their
            bytes (in the ffcv format only those of more than 64 x 64 pixels), other images of at most 64 x 64 pixels
            are stored without loss, the rest is encoded at quality 90; a format that stores only pixels keeps all.
        workers: processes; 0: one per core.
        on_error: what to do about an unusable image or an empty class folder: ``fail`` or ``skip``.
        val_fraction: part of train that becomes val, for a source without val; see ``held_out.hold_out``.
        no_labels: folders or labels mean nothing; all images are packed without.
        preview: a PNG that becomes the contact sheet, see ``summary.draw_sheet``.

    Raises:
        UserError: the source, ``out`` or an image cannot be used. Nothing is left behind then.
    """
    writer = find_format(format).Writer
    if quality is not None and not writer.stores_jpegs:
        raise UserError(f"--quality cannot be used with --format {format}, which stores pixels")

    def may_replace(folder: Path) -> bool:
        replaceable = holds_packed(folder)
        if replaceable and not force:
            raise UserError(f"{folder}: already holds a packed data set; --force replaces it")
        return replaceable

    try:
        with staged(out, may_replace) as folder:
            loaded = source if isinstance(source, Source) else load_source(dataset, source)
            loaded = without_labels(loaded) if no_labels else loaded
            if on_error == "fail":
                _refuse_unusable(loaded)
            if val_fraction is not None:
                loaded = hold_out(loaded, val_fraction)
            recipe = PackingRecipe(max_resolution, quality, writer.raw_pixels, writer.max_side, writer.keep_small_jpegs)
            summary = Summary(loaded.classes, preview is not None)
            skipped, started = [], time.perf_counter()
            for name, split in loaded.splits.items():
                opened = writer(folder, name, len(split.names))
                skipped += _pack_split(split, opened, name, recipe, workers, on_error, summary)
            seconds = time.perf_counter() - started
            splits = {name: measure_split(folder, format, name) for name in loaded.splits}
            options: dict[str, float | None] = {"max_resolution": max_resolution, "quality": quality}
            if val_fraction is not None:
                options["val_fraction"] = val_fraction
            write_manifest(Packed(folder, format, dataset, loaded.classes, splits, options), skipped)
            open_packed(folder)
    except OSError as error:
        raise UserError(f"cannot pack {dataset} into {out}: {error}") from error
    if preview is not None:
        draw_sheet(summary, preview)
    return Report(open_packed(out), skipped, seconds, summary)


def examine(
    dataset: str,
    source: Path | Source | None,
    *,
    format: str = "ffcv",
    max_resolution: int | None = None,
    quality: int | None = None,
    workers: int = 0,
    val_fraction: float | None = None,
    no_labels: bool = False,
    preview: Path | None = None,
) -> Summary:
    """Read and decode a data set as ``convert`` would, and pack nothing. What cannot be used is counted.

    Raises:
        UserError: the source cannot be used, or no image of a split.
    """
    writer = find_format(format).Writer
    loaded = source if isinstance(source, Source) else load_source(dataset, source)
    loaded = without_labels(loaded) if no_labels else loaded
    if val_fraction is not None:
        loaded = hold_out(loaded, val_fraction)
    recipe = PackingRecipe(max_resolution, quality, writer.raw_pixels, writer.max_side, writer.keep_small_jpegs)
    summary = Summary(loaded.classes, preview is not None)
    for name, split in loaded.splits.items():
        _pack_split(split, None, name, recipe, workers, "skip", summary)
    if preview is not None:
        draw_sheet(summary, preview)
    return summary


def pack_digits_if_absent(dir: Path) -> None:
    """Pack scikit-learn's digits in the resident format, unless ``dir`` already holds a packed data set."""
    if not (dir / MANIFEST).exists():
        convert("digits", None, dir, format="resident", workers=1)


def verify(dir: Path, workers: int = 0) -> Packed:
    """Read a packed data set completely: compare every checksum and decode every sample.

    Raises:
        UserError: a check fails; the message names the file, and the sample's position in the split.
    """
    packed = open_packed(dir, verify=True)
    for name, split in packed.splits.items():
        check = functools.partial(_verify_chunk, packed.dir, packed.format, name)
        chunks = [range(i, min(i + _VERIFY_CHUNK, split.count)) for i in range(0, split.count, _VERIFY_CHUNK)]
        checked = _map_in_order(check, chunks, min(_cores(workers), len(chunks)))
        with closing(checked), _progress(split.count, f"verify {name}") as progress:
            for chunk, reason in zip(chunks, checked, strict=True):
                if reason is not None:
                    raise UserError(f"{packed.dir}: {reason}")
                progress.update(len(chunk))
    return packed


def _refuse_unusable(source: Source) -> None:
    """Before anything is packed: what a source could not list."""
    for split in source.splits.values():
        for name, reason in split.unusable.items():
            raise UserError(f"{name}: {reason} ({_SKIP_HINT})")


def _pack_split(
    split: SourceSplit,
    writer: Writer | None,
    name: str,
    recipe: PackingRecipe,
    workers: int,
    on_error: str,
    summary: Summary,
) -> list[dict[str, str]]:
    """Write a split's files (none without a writer) and fill the summary; returns what was skipped."""
    skipped = [{"split": name, "file": file, "reason": reason} for file, reason in split.unusable.items()]
    chunks = _chunked(split.images)
    # Pixels that are only copied gain nothing from a second process.
    workers = 1 if isinstance(split.images, np.ndarray) and recipe.quality is None else _cores(workers)
    workers = min(workers, -(-len(split.names) // _CHUNK))
    prepared = _map_in_order(functools.partial(_prepare_chunk, recipe), chunks, workers)
    with closing(prepared), _progress(len(split.names), name) as progress:
        samples = itertools.chain.from_iterable(prepared)
        for (sample, changes), file, label in zip(samples, split.names, split.labels.tolist(), strict=True):
            if isinstance(sample, Sample):
                if writer is not None:
                    writer.add(sample, label)
                summary.add(name, file, sample, label, changes)
            elif on_error == "skip":
                skipped.append({"split": name, "file": file, "reason": sample})
            else:
                raise UserError(f"{file}: {sample} ({_SKIP_HINT})")
            progress.update()
    if len(skipped) == len(split.names) + len(split.unusable):
        first = f"{skipped[-len(split.names)]['file']} {skipped[-len(split.names)]['reason']}"
        raise UserError(f"none of the {len(split.names)} images of {name} can be used; the first: {first}")
    if writer is not None:
        writer.close()
    for entry in skipped:
        summary.leave_out(entry["reason"])
    return skipped


def _chunked(images: Iterable[Image]) -> Generator[list[Image]]:
    chunk: list[Image] = []
    size = 0
    for image in images:
        size += file_size(image)
        if chunk and (len(chunk) == _CHUNK or size > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], file_size(image)
        chunk.append(image)
    if chunk:
        yield chunk


def _prepare_chunk(recipe: PackingRecipe, images: Iterable[Image]) -> list[tuple[Sample | str, list[str]]]:
    """Each image's sample, or why there is none; and how it differs from its file."""
    with pillow_silenced():
        return [_prepare(image, recipe) for image in images]


def _prepare(image: Image, recipe: PackingRecipe) -> tuple[Sample | str, list[str]]:
    try:
        return prepare_counted(image if isinstance(image, (bytes, np.ndarray)) else read_file(image), recipe)
    except ImageError as error:
        return str(error), []


def _verify_chunk(folder: Path, format: str, split: str, rows: range) -> str | None:
    """A message about the first wrong sample of a range; None: all are right."""
    samples = find_format(format).iter_samples(folder, split, rows.start, rows.stop)
    for index, sample in zip(rows, samples, strict=True):
        if sample.jpeg:
            try:
                image, _ = decode(sample.data)
            except ImageError as error:
                return f"sample {index} of {split} {error}"
            if image.size != (sample.width, sample.height):
                return f"sample {index} of {split} is a JPEG whose size differs from the table"
    return None


def _progress(total: int, what: str) -> tqdm:
    return tqdm(total=total, desc=what, unit=" images", disable=None)


def _cores(workers: int) -> int:
    return workers or len(os.sched_getaffinity(0))


def _map_in_order(function: Callable, arguments: Iterable, workers: int) -> Generator:
    """``map`` over processes (in this one for one worker) that runs only a little ahead of the results taken."""
    if workers == 1:
        yield from map(function, arguments)
        return
    context = multiprocessing.get_context("forkserver")  # forking a process that has threads is unsafe
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        ahead: deque = deque()
        try:
            for argument in arguments:
                ahead.append(pool.submit(function, argument))
                if len(ahead) > 4 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            raise UserError("a worker was killed, perhaps because memory ran out: give fewer --workers") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and exit when it exits, for whatever reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
