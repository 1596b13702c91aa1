"""Our own threads over ffcv's file and decoder: each image is decoded once, and a damaged one is an error."""

import contextlib
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.augment.views import pixel_boxes
from pipelines.batch import Batch
from pipelines.formats.arrays import unaligned
from pipelines.formats.ffcv.reader import BetonReader
from pipelines.loading.base import BaseLoader, each_sample, fit_canvas
from pipelines.loading.prefetch import BufferPool, run_ahead
from pipelines.loading.threads import single_thread, worker_count

__all__ = ["FfcvLoader"]

_LARGEST_PART = 16  # samples per task of a thread; an epoch's end and closing a loader wait for running tasks

# In an image decoded at a reduced scale, a crop must still be this many times larger than its view, because its box is
# rounded to coarser pixels. 2 keeps the median PSNR against full decoding above 35 dB, 1 does not (photographs, 32 to
# 128 px).
_SPARE = 2


class _Plan(NamedTuple):
    """The work of a batch: arrays with one row per sample, cut into parts for the threads."""

    sample: np.ndarray  # int64 [B], position in the split
    denominator: np.ndarray  # int64 [B], of the scale to decode at
    boxes: np.ndarray  # int64 [B, C, 4], top, left, height, width in the decoded image
    size: np.ndarray  # int64 [B, C, 2], height and width of the resized box
    pixels: np.ndarray  # uint8 [B, C, H, W, 3], the result


class FfcvLoader(BaseLoader):
    """Depending on ``data.crops``, both crops from one decode (C = 2) or whole images on a canvas (C = 1).

    ``dct_scaling``: decode at 1/2, 1/4 or 1/8 of the scale where that leaves enough pixels. If False, the pixels are
    exactly those of the reference loader.
    """

    _reader: BetonReader
    dct_scaling = True

    def _prepare(self) -> None:
        self._crops = self._cuts_crops()
        shape = (self._data.image_size,) * 2 if self._crops else self._canvas()
        rows = -(-self.sampler.batch_size // self.sampler.world_size)
        self._shape = (rows, 2 if self._crops else 1, *shape, 3)
        self._buffers = BufferPool(self._shape)
        self._interpolation = self._augment.config.interpolation if self._crops else "bilinear"
        self._gather = not self._crops and self._reader.uniform and self._reader.sizes.max() <= self._data.canvas
        self._workers = worker_count(self._data)
        self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")

    def _batches(self) -> Generator[Batch]:
        with contextlib.closing(run_ahead(self._start, self.sampler.remaining(), self._data.prefetch)) as batches:
            for batch in batches:
                yield self._to_device(batch)
                del batch  # free it while waiting for the next

    def _start(self, index: np.ndarray) -> tuple[Batch, list[Future]]:
        """Hand a batch's parts to the threads, which never call CUDA: that could break a graph's capture."""
        pixels = self._buffer()[: len(index)]
        plan = self._plan(index, pixels)
        step = max(1, min(_LARGEST_PART, -(-len(index) // self._workers)))
        parts = [_Plan(*(rows[at : at + step] for rows in plan)) for at in range(0, len(index), step)]
        size, labels = torch.from_numpy(plan.size[:, 0].astype(np.int32)), torch.from_numpy(self._reader.labels[index])
        batch = Batch(pixels, size, labels, torch.tensor(index))
        return batch, [self._threads.submit(self._fill, part) for part in parts]

    def _buffer(self) -> Tensor:
        if self._copy_stream is None:
            return self._buffers.take()
        return torch.empty(self._shape, dtype=torch.uint8, pin_memory=True)

    @single_thread()
    def _plan(self, index: np.ndarray, pixels: Tensor) -> _Plan:
        size = torch.from_numpy(self._reader.sizes[index])
        if self._crops:
            seed, epoch = self.sampler.seed, self.sampler.epoch
            crop = self._augment.sample_crops(seed, epoch, torch.from_numpy(index), size)
            target, spare = np.full((len(index), 2, 2), self._data.image_size), _SPARE
        else:
            crop = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(len(index), 1, 4)
            target, spare = fit_canvas(size.numpy(), self._data.canvas)[:, None], 1
        room = (pixel_boxes(crop, size)[..., 2:].numpy() // (spare * target)).min(axis=(1, 2))
        room[~self._reader.jpeg[index] | (not self.dct_scaling)] = 1
        denominator = np.select([room >= 8, room >= 4, room >= 2], [8, 4, 2], 1)
        decoded = -(-size // torch.from_numpy(denominator)[:, None])
        return _Plan(index, denominator, pixel_boxes(crop, decoded).numpy(), target, pixels.numpy())

    def denominators(self, index: np.ndarray) -> np.ndarray:
        return self._plan(index, torch.empty(0, dtype=torch.uint8)).denominator

    def _fill(self, plan: _Plan) -> None:
        if self._gather:
            plan.pixels[:, 0] = self._reader.gather(plan.sample)
            return
        scratch = unaligned((3 * int(self._reader.sizes[plan.sample].prod(axis=1).max()),))

        # Made into lists once per part: Python's work on each sample holds the GIL, and other threads wait.
        denominators, boxes, sizes = plan.denominator.tolist(), plan.boxes.tolist(), plan.size.tolist()

        def draw(place: int, sample: int) -> None:
            image = self._reader.decode(sample, scratch, denominators[place])
            views = zip(plan.pixels[place], boxes[place], sizes[place], strict=True)
            for view, (top, left, height, width), (rows, columns) in views:
                crop = image[top : top + height, left : left + width]
                _resize(crop, view[:rows, :columns], self._interpolation)

        each_sample(plan.sample, draw)

    def close(self) -> None:
        super().close()
        self._threads.shutdown()
        self._buffers.clear()


def _resize(image: np.ndarray, out: np.ndarray, interpolation: str) -> None:
    """Resize uint8 [h, w, 3] into ``out`` [H, W, 3], antialiased, exactly as torchvision does."""
    if image.shape != out.shape:
        # With the strides of a channels_last batch: otherwise torch takes a path that is half as fast.
        source = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)
        resized = functional.interpolate(source, out.shape[:2], mode=interpolation, antialias=True)
        image = resized[0].permute(1, 2, 0).numpy()
    out[:] = image
