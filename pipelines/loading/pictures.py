"""Pictures that are not packed, of any kind and size, decoded ahead on threads."""

import contextlib
import itertools
import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.config import DataConfig
from pipelines.images import ImageError, decode, pillow_silenced, upright_rgb
from pipelines.loading.base import fit_canvas
from pipelines.loading.prefetch import run_ahead
from pipelines.loading.threads import worker_count
from pipelines.sources.base import read_file
from pipelines.sources.image_folders import all_images

__all__ = ["Picture", "decode_ahead", "each_picture", "to_canvas"]

_AHEAD = 2  # batches


class Picture(NamedTuple):
    """A picture before it is decoded."""

    name: str  # for messages
    content: str | Image.Image | np.ndarray  # the path of a file, an image of any mode, or RGB uint8 [H, W, 3]


def each_picture(images: Any) -> Iterator[Picture]:
    """The pictures that ``images`` stands for, in order; none is opened yet.

    Args:
        images: the path of a picture or of a folder (``sources.listing.all_images`` gives the order), a PIL image,
            uint8 [H, W, 3] or [N, H, W, 3] (array or tensor), or an iterable of any of these.

    Raises:
        UserError: a folder cannot be listed or holds no picture.
        ValueError: anything else.
    """
    for position, content in enumerate(_flatten(images)):
        name = content if isinstance(content, str) else getattr(content, "filename", "")
        yield Picture(name or f"images[{position}]", content)


def _flatten(images: Any) -> Iterator[Any]:
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        yield from all_images(path) if path.is_dir() else [str(path)]
    elif isinstance(images, Image.Image):
        yield images
    elif isinstance(images, Tensor | np.ndarray):
        pixels = images.numpy(force=True) if isinstance(images, Tensor) else images
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3 or 0 in pixels.shape[-3:]:
            raise ValueError(f"images must be uint8 [H, W, 3] or [N, H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
        yield from pixels if pixels.ndim == 4 else [pixels]
    elif isinstance(images, Iterable) and not isinstance(images, bytes | dict):
        for part in images:
            yield from _flatten(part)
    else:
        raise ValueError(f"an image must be a path, a PIL image or an array, not {type(images).__name__}")


def decode_ahead(
    pictures: Iterable[Picture], batch_size: int, data: DataConfig
) -> Generator[list[tuple[str, np.ndarray | ImageError]]]:
    """Decode pictures on threads while the caller works on earlier ones; only a few batches are in memory at a time.

    Args:
        pictures: an iterator's next picture is taken only when its decoding starts.
        batch_size: pictures per batch; the last has the rest.
        data: ``data.workers`` threads; larger pictures are scaled down to a longest side of ``data.canvas`` pixels.

    Yields:
        For each picture of a batch its name, and its pixels uint8 [H, W, 3] or why it cannot be used.
    """
    with ThreadPoolExecutor(worker_count(data), thread_name_prefix="decode") as threads, pillow_silenced():

        def start(batch: list[Picture]) -> tuple[list, list[Future]]:
            results: list[Any] = [None] * len(batch)

            def work(position: int) -> None:
                results[position] = batch[position].name, _pixels(batch[position].content, data.canvas)

            futures = []
            for position, picture in enumerate(batch):
                if isinstance(picture.content, str):
                    futures.append(threads.submit(work, position))
                else:
                    work(position)  # an array costs less than a task; two threads must not load the same PIL image
            return results, futures

        pictures = iter(pictures)
        batches = iter(lambda: list(itertools.islice(pictures, batch_size)), [])
        with contextlib.closing(run_ahead(start, batches, _AHEAD)) as done:
            yield from done


def _pixels(content: str | Image.Image | np.ndarray, canvas: int) -> np.ndarray | ImageError:
    if isinstance(content, np.ndarray) and max(content.shape) <= canvas:
        return content
    try:
        if isinstance(content, str):
            image, _ = decode(read_file(content))
        else:
            image = upright_rgb(content) if isinstance(content, Image.Image) else Image.fromarray(content)
    except ImageError as error:
        return error
    height, width = fit_canvas(np.array([(image.height, image.width)]), canvas)[0].tolist()
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def to_canvas(pictures: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Pictures uint8 [H, W, 3] of any sizes, padded to one size.

    Returns:
        Pixels uint8 [N, 1, H, W, 3] and true sizes int32 [N, 2].
    """
    size = np.array([picture.shape[:2] for picture in pictures], np.int32)
    pixels = np.zeros((len(pictures), 1, *size.max(axis=0), 3), np.uint8)
    for canvas, picture in zip(pixels[:, 0], pictures, strict=True):
        canvas[: picture.shape[0], : picture.shape[1]] = picture
    return torch.from_numpy(pixels), torch.from_numpy(size)
