"""NVIDIA DALI (https://github.com/NVIDIA/DALI): its decoders and resizing, in our order and with our crops.

DALI's own readers support neither our order nor our crops. So an external source hands DALI the encoded files, in
place in the mapped shards, together with the crop boxes.
"""

from collections import deque
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.augment.views import pixel_boxes
from pipelines.batch import Batch
from pipelines.errors import UserError
from pipelines.formats.dali.reader import ShardReader
from pipelines.loading.base import BaseLoader, fit_canvas
from pipelines.loading.threads import single_thread, worker_count

__all__ = ["DaliLoader"]


class DaliLoader(BaseLoader):
    """Depending on ``data.crops``, both crops from one decode (C = 2) or whole images on a canvas (C = 1).

    For a GPU, everything except reading happens on the GPU, and batches need no copy.

    Raises:
        UserError: DALI is not installed.
    """

    _reader: ShardReader

    copies_pixels = False

    def _prepare(self) -> None:
        self._crops = self._cuts_crops()
        shape = (self._data.image_size,) * 2 if self._crops else self._canvas()
        self._shape = (2 if self._crops else 1, *shape, 3)
        self._shrinks = not self._crops and bool(self._reader.sizes.max() > self._data.canvas)
        self._waiting: deque[np.ndarray] = deque()  # batches that DALI has not started
        self._inputs: deque[tuple] = deque()  # of the batches that it has started and reads in place
        self._failure = ""  # why the first waiting batch cannot be started
        self._pipeline: Any = self._build()  # None after an error

    def _batches(self) -> Generator[Batch]:
        if self._pipeline is None:
            self._pipeline = self._build()
        batches = list(self.sampler.remaining())
        self._waiting.extend(filter(len, batches))
        try:
            self._pipeline.schedule_run()  # starts data.prefetch batches
            for index in batches:
                size = torch.from_numpy(self._sizes(index))
                labels = torch.from_numpy(self._reader.labels[index])
                yield self._to_device(Batch(self._receive(index), size, labels, torch.tensor(index)))
        finally:
            self._waiting.clear()
            self._drain()

    def _receive(self, index: np.ndarray) -> Tensor:
        """The pixels of the oldest started batch, on the current stream; another batch is started."""
        if len(index) == 0:  # this process's share of a small last batch
            return torch.empty((0, *self._shape), dtype=torch.uint8, device=self.device)
        if not self._inputs:
            raise UserError(self._failure)
        stream = None if self._copy_stream is None else torch.cuda.current_stream(self.device)
        problem = None
        try:
            pixels, shapes = self._pipeline.outputs(stream)
            pixels = torch.from_dlpack(pixels.as_tensor()).view(len(index), *self._shape)
        except RuntimeError as error:
            problem = str(error)  # not the error itself: its traceback would keep the pipeline alive
        if problem is not None:
            self._pipeline = None  # DALI cannot go on after an error
            raise self._explain(index, problem)
        if (shapes.as_array()[:, :2] != self._reader.sizes[index]).any():
            raise self._explain(index, "an image's size differs from the table")
        self._inputs.popleft()
        self._pipeline.schedule_run()
        return pixels

    def _explain(self, index: np.ndarray, problem: str) -> Exception:
        """An error that names the sample that cannot be decoded or, if none is found, all samples of the batch."""
        for sample in index.tolist():
            try:
                self._reader.image(sample)
            except UserError as error:
                return error
        return RuntimeError(f"one of the samples {index.tolist()}: {problem}")

    def _drain(self) -> None:
        """Make DALI ready for another epoch: nothing is left running."""
        try:
            if self._pipeline is not None:
                self._pipeline.schedule_run()  # no batch is waiting, so none is started
                while not self._pipeline.empty():
                    self._pipeline.outputs()
                self._pipeline.reset()
        except (RuntimeError, AttributeError):  # a discarded batch failed; or Python is exiting and has unloaded DALI
            self._pipeline = None
        self._inputs.clear()

    def _feed(self) -> tuple:
        """The next batch for DALI: encoded files, and the arrays of ``_geometry``."""
        if not self._waiting:
            raise StopIteration
        index = self._waiting[0]
        try:
            encoded = [self._reader.encoded(sample) for sample in index.tolist()]
        except UserError as error:
            self._failure = str(error)  # to be raised when its batch is due, after those before it
            raise StopIteration from None
        self._waiting.popleft()
        self._inputs.append((encoded, *self._geometry(index)))
        return self._inputs[-1]

    @single_thread()
    def _geometry(self, index: np.ndarray) -> list[np.ndarray]:
        """int32 [B, 2] each: corner and size of the crop of view 1 and of view 2; or, if any image of the split must be
        scaled down, the new sizes of whole images."""
        if not self._crops:
            return [self._sizes(index)] if self._shrinks else []
        size = torch.from_numpy(self._reader.sizes[index])
        crop = self._augment.sample_crops(self.sampler.seed, self.sampler.epoch, torch.from_numpy(index), size)
        boxes = pixel_boxes(crop, size).int()
        return [part.contiguous().numpy() for view in (0, 1) for part in boxes[:, view].split(2, dim=1)]

    def _sizes(self, index: np.ndarray) -> np.ndarray:
        """int32 [B, 2], height and width of the images handed over."""
        if self._crops:
            return np.full((len(index), 2), self._data.image_size, np.int32)
        return fit_canvas(self._reader.sizes[index], self._data.canvas)

    def _build(self) -> Any:
        """A DALI pipeline, ready to run."""
        try:
            from nvidia.dali import Pipeline, fn, types
        except (ImportError, OSError) as error:
            raise UserError(
                f"data.loader=dali needs NVIDIA DALI, which cannot be imported ({error}): install the requirements, "
                "or set data.loader=torch"
            ) from error
        on_gpu = self.device.type == "cuda"
        pipeline = Pipeline(
            batch_size=-(-self.sampler.batch_size // self.sampler.world_size),
            num_threads=worker_count(self._data),
            device_id=torch.empty(0, device=self.device).device.index if on_gpu else None,
            prefetch_queue_depth=self._data.prefetch,
        )
        arrays = 4 if self._crops else int(self._shrinks)
        with pipeline:
            encoded, *geometry = fn.external_source(
                self._feed,
                num_outputs=1 + arrays,
                dtype=[types.UINT8] + [types.INT32] * arrays,
                ndim=1,
                no_copy=True,
            )
            images = fn.decoders.image(
                encoded,
                device="mixed" if on_gpu else "cpu",
                hw_decoder_load=self._data.hw_decoder_load,
                jpeg_fancy_upsampling=True,  # as decoders on a CPU do
            )
            if self._crops:
                cubic = self._augment.config.interpolation == "bicubic"
                interpolation = types.INTERP_CUBIC if cubic else types.INTERP_LINEAR
                # Not resize's own region of interest, which mixes in pixels from outside it.
                crops = [fn.slice(images, *box, axes=(0, 1)) for box in (geometry[:2], geometry[2:])]
                pixels = fn.stack(*fn.resize(crops, size=self._shape[1:3], interp_type=interpolation))
            else:
                whole = fn.resize(images, size=fn.cast(geometry[0], dtype=types.FLOAT)) if self._shrinks else images
                pixels = fn.pad(whole, axes=(0, 1), shape=self._shape[1:3])
            pipeline.set_outputs(pixels, images.shape())
        pipeline.build()
        return pipeline

    def close(self) -> None:
        super().close()
        self._pipeline = None  # ends its threads and frees its memory, except for batches still in use
