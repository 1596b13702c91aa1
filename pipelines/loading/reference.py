"""The reference: torch's DataLoader and torchvision's crops over any packed format. The others must match it."""

import os
import shutil
import signal
import traceback
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from pipelines.augment.views import Augment, pixel_boxes
from pipelines.batch import Batch
from pipelines.errors import UserError
from pipelines.formats.protocol import Reader
from pipelines.loading.base import BaseLoader, each_sample, fit_canvas
from pipelines.loading.sampler import Sampler
from pipelines.loading.threads import worker_count

__all__ = ["TorchLoader"]


class TorchLoader(BaseLoader):
    """Depending on ``data.crops``, two crops of each image (C = 2) or whole images (C = 1), from worker processes."""

    whole_for_gpus = False  # whole images on a canvas would fill the shared memory through which workers send them

    def _prepare(self) -> None:
        data = self._data
        if self._cuts_crops():
            dataset: _Batches = _Crops(self._reader, self._augment, data.image_size, self.sampler.seed)
        else:
            dataset = _WholeImages(self._reader, self._canvas(), data.canvas)
        workers = worker_count(data)
        ahead = -(-data.prefetch // workers)
        _check_shared_memory(self._batch_bytes(), workers * ahead + 1)
        self._loader = DataLoader(
            dataset,
            batch_size=None,  # each request of the sampler is for a whole batch
            sampler=_Requests(self.sampler),
            num_workers=workers,
            prefetch_factor=ahead,
            worker_init_fn=_leave_signals_to_parent,
            generator=torch.Generator(),  # otherwise every epoch draws from the global generator
        )

    def _batch_bytes(self) -> int:
        """How much the pixels of a batch of this process take."""
        side = self._data.image_size
        height, width = self._canvas()
        image = 2 * side * side if self._cuts_crops() else height * width
        return 3 * image * -(-self.sampler.batch_size // self.sampler.world_size)

    def _batches(self) -> Generator[Batch]:
        batches = iter(self._loader)
        try:
            for batch in batches:
                if isinstance(batch, Exception):
                    raise batch
                yield self._to_device(batch)
        finally:
            del batches  # which ends the workers


class _Requests:
    """Requests to workers: the indices of a batch, and the epoch, because a worker's copy of the loader has none."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return ((self._sampler.epoch, index) for index in self._sampler.remaining())


class _Batches(Dataset, ABC):
    """Answers a request with a batch, or with the exception for the main process to raise."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __getitem__(self, request: tuple[int, np.ndarray]) -> Batch | Exception:
        epoch, index = request
        try:
            pixels, size = self._draw(epoch, index)
        except Exception as error:
            error.add_note("".join(traceback.format_exception(error)))  # with its cause, which pickling loses
            return error
        return Batch(pixels, size, torch.from_numpy(self._reader.labels[index]), torch.from_numpy(index))

    @abstractmethod
    def _draw(self, epoch: int, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """A batch's pixels and sizes."""

    def _image(self, sample: int) -> Tensor:
        return torch.from_numpy(self._reader.image(sample)).permute(2, 0, 1)


class _Crops(_Batches):
    """Two resized crops of each image."""

    def __init__(self, reader: Reader, augment: Augment, side: int, seed: int) -> None:
        super().__init__(reader)
        self._augment, self._side, self._seed = augment, side, seed
        self._interpolation = InterpolationMode(augment.config.interpolation)

    def _draw(self, epoch: int, index: np.ndarray) -> tuple[Tensor, Tensor]:
        size = torch.from_numpy(self._reader.sizes[index])
        crop = self._augment.sample_crops(self._seed, epoch, torch.from_numpy(index), size)
        boxes = pixel_boxes(crop, size).tolist()
        side = [self._side, self._side]
        pixels = torch.empty((len(index), 2, *side, 3), dtype=torch.uint8)

        def draw(position: int, sample: int) -> None:
            image = self._image(sample)
            for view, box in zip(pixels[position], boxes[position], strict=True):
                crop = functional.resized_crop(image, *box, side, interpolation=self._interpolation, antialias=True)
                view.copy_(crop.permute(1, 2, 0))

        each_sample(index, draw)
        return pixels, torch.full((len(index), 2), self._side, dtype=torch.int32)


class _WholeImages(_Batches):
    """Whole images on a canvas [H, W]; those longer than ``longest`` are scaled down."""

    def __init__(self, reader: Reader, shape: tuple[int, int], longest: int) -> None:
        super().__init__(reader)
        self._shape, self._longest = shape, longest

    def _draw(self, epoch: int, index: np.ndarray) -> tuple[Tensor, Tensor]:
        size = fit_canvas(self._reader.sizes[index], self._longest)
        pixels = torch.zeros((len(index), 1, *self._shape, 3), dtype=torch.uint8)

        def draw(position: int, sample: int) -> None:
            height, width = size[position].tolist()
            image = functional.resize(self._image(sample), [height, width], antialias=True)
            pixels[position, 0, :height, :width] = image.permute(1, 2, 0)

        each_sample(index, draw)
        return pixels, torch.from_numpy(size)


def _check_shared_memory(batch: int, count: int, place: Path = Path("/dev/shm")) -> None:
    """Workers hand over batches in shared memory; where it is full, they would wait for ever.

    Raises:
        UserError: there is no room for ``count`` batches of so many bytes.
    """
    if not place.is_dir():
        return
    count *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun's processes on this machine
    free = shutil.disk_usage(place).free
    if free < count * batch:
        raise UserError(
            f"{place} has {free / 1e6:,.1f} MB free, and data.loader=torch keeps {count} batches of "
            f"{batch / 1e6:,.1f} MB there: give it more (docker run --shm-size), lower data.prefetch, "
            "data.workers or data.batch_size, or set another data.loader"
        )


def _leave_signals_to_parent(worker: int) -> None:
    """Ignore signals, which reach workers too if they are sent to a group: the parent ends its workers after it has
    saved. One that does not end within half a minute of SIGTERM is killed."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))
