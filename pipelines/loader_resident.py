"""The whole split in device memory: a batch is one gather there."""

from collections.abc import Generator

import numpy as np
import torch

from pipelines.augment import Augment
from pipelines.errors import UserError
from pipelines.loader_base import BaseLoader
from pipelines.packed import Packed
from pipelines.readers import open_reader
from pipelines.sampler import Sampler
from pipelines.types import Batch, DataConfig

__all__ = ["ResidentLoader"]

_CHUNK = 1024  # images copied to the device at once
_HEADROOM = 0.9  # share of the free device memory that the images may take; the model needs the rest and more


class ResidentLoader(BaseLoader):
    """Whole images (V = 1) out of device memory, for training and evaluation. Arguments as ``build_loader``.

    Raises:
        UserError: the images are larger than ``data.canvas``, or do not fit into the device's free memory.
    """

    def __init__(
        self,
        packed: Packed,
        split: str,
        sampler: Sampler,
        data: DataConfig,
        augment: Augment,
        device: torch.device,
        *,
        train: bool,
    ) -> None:
        super().__init__(sampler, device)
        reader = open_reader(packed, split)
        side = max(reader.pixels.shape[1:3])
        if side > data.canvas:
            raise UserError(
                f"{packed.dir}: images are {side} pixels long, more than data.canvas={data.canvas}: "
                f"set data.canvas={side} or pack again with --max-resolution {data.canvas}"
            )
        if device.type == "cuda":
            _check_memory(packed, split, reader.pixels.nbytes, device)
        self._pixels = torch.empty(reader.pixels.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(reader.pixels), _CHUNK):
            part = slice(start, start + _CHUNK)
            self._pixels[part] = torch.from_numpy(np.array(reader.pixels[part]))  # torch wants a writable array
        self._sizes = torch.from_numpy(reader.sizes).to(device)
        self._labels = torch.from_numpy(reader.labels).to(device)
        reader.close()

    def _batches(self) -> Generator[Batch]:
        batches = list(self.sampler.remaining())
        # One copy an epoch; a small blocking copy for every batch would make the host wait for the device.
        order = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *batches])).to(self.device)
        for index in order.split([len(batch) for batch in batches]):
            pixels, size, labels = (table.index_select(0, index) for table in (self._pixels, self._sizes, self._labels))
            yield Batch(pixels[:, None], size, labels, index)

    def close(self) -> None:
        super().close()
        self._pixels = self._sizes = self._labels = None


def _check_memory(packed: Packed, split: str, needed: int, device: torch.device) -> None:
    free, _ = torch.cuda.mem_get_info(device)
    if needed > _HEADROOM * free:
        raise UserError(
            f"{packed.dir}: the {split} images take {needed / 2**30:.1f} GiB, {device} has {free / 2**30:.1f} free: "
            "pack the data with --format ffcv, or set data.loader=torch"
        )
