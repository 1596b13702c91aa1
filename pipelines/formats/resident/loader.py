"""The whole split in device memory: a batch is one gather there."""

import math
from collections.abc import Generator
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from pipelines.batch import Batch
from pipelines.errors import UserError
from pipelines.formats.resident.reader import ArrayReader
from pipelines.loading.base import BaseLoader

__all__ = ["ResidentLoader"]

_CHUNK = 1024  # images copied to the device at once
_HEADROOM = 0.9  # largest share of the free device memory that the images may take; the model needs memory too


# The pixels that open loaders hold, by file and device: evaluation shares the training split with the training.
_pixels: WeakValueDictionary[tuple, Tensor] = WeakValueDictionary()


class ResidentLoader(BaseLoader):
    """Whole images (C = 1) out of device memory, for training and evaluation.

    Raises:
        UserError: the images are larger than ``data.canvas``, or do not fit into the device's free memory.
    """

    _reader: ArrayReader

    copies_pixels = False

    def _prepare(self) -> None:
        reader, canvas = self._reader, self._data.canvas
        side = max(reader.shape[1:3])
        if side > canvas:
            raise UserError(
                f"{self._packed.dir}: images are {side} pixels long, more than data.canvas={canvas}: "
                f"set data.canvas={side} or pack again with --max-resolution {canvas}"
            )
        status = reader.path.stat()
        key = (status.st_dev, status.st_ino, status.st_mtime_ns, str(self.device))
        pixels = _pixels.get(key)
        if pixels is None:
            pixels = _pixels[key] = self._upload(reader)
        self._pixels = pixels
        self._sizes = torch.from_numpy(reader.sizes).to(self.device)
        self._labels = torch.from_numpy(reader.labels).to(self.device)
        reader.close()

    def _upload(self, reader: ArrayReader) -> Tensor:
        if self.device.type == "cuda":
            self._check_memory(math.prod(reader.shape))
        pixels = torch.empty(reader.shape, dtype=torch.uint8, device=self.device)
        for start in range(0, len(pixels), _CHUNK):
            chunk = reader.canvases(start, start + _CHUNK)
            pixels[start : start + len(chunk)] = torch.from_numpy(chunk)
        return pixels

    def _check_memory(self, needed: int) -> None:
        free, _ = torch.cuda.mem_get_info(self.device)
        if needed > _HEADROOM * free:
            raise UserError(
                f"{self._packed.dir}: the {self._split} images take {needed / 2**30:.1f} GiB, {self.device} has "
                f"{free / 2**30:.1f} free: pack the data with --format ffcv, or set data.loader=torch"
            )

    def _batches(self) -> Generator[Batch]:
        batches = list(self.sampler.remaining())
        # One copy per epoch; a small blocking copy for every batch would make the host wait for the device.
        order = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *batches])).to(self.device)
        for index in order.split([len(batch) for batch in batches]):
            pixels, size, labels = (table.index_select(0, index) for table in (self._pixels, self._sizes, self._labels))
            yield Batch(pixels[:, None], size, labels, index)

    def close(self) -> None:
        super().close()
        self._pixels = self._sizes = self._labels = None
