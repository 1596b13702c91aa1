"""Shared by all loaders: order and state, the canvas, the copy to the device."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch

from pipelines.augment.views import Augment
from pipelines.batch import Batch
from pipelines.config import DataConfig
from pipelines.errors import UserError
from pipelines.formats.packed import Packed
from pipelines.formats.protocol import Reader
from pipelines.loading.sampler import Sampler

__all__ = ["BaseLoader", "each_sample", "fit_canvas"]


class BaseLoader(ABC):
    """The ``Loader`` protocol; subclasses add ``_prepare`` and ``_batches``. The sampler keeps order and state.

    Args:
        packed, split: the images to load.
        reader: reads them; the loader closes it.
        sampler: gives the order; its state advances when a batch is handed out.
        data, augment, device, train: as for ``build_loader``.

    Attributes:
        copies_pixels: whether pixels are copied from host memory to a GPU's memory.
        whole_for_gpus: whether ``data.crops=auto`` means whole images if the device is a GPU.
    """

    copies_pixels = True
    whole_for_gpus = True

    def __init__(
        self,
        packed: Packed,
        split: str,
        reader: Reader,
        sampler: Sampler,
        data: DataConfig,
        augment: Augment,
        device: torch.device,
        *,
        train: bool,
    ) -> None:
        self.sampler, self.device = sampler, device
        self._packed, self._split, self._data, self._augment, self._train = packed, split, data, augment, train
        self._reader = reader
        self._running: Generator[Batch] | None = None
        self._closed = False
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """The rest of the constructor."""

    @abstractmethod
    def _batches(self) -> Generator[Batch]:
        """Yield a batch for each of ``sampler.remaining()``. Once closed, it leaves no work running."""

    def denominators(self, index: np.ndarray) -> np.ndarray:
        """int64 [B]: in the current epoch, sample ``index[i]`` is decoded at 1/denominator of its scale."""
        return np.ones_like(index)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        self._stop()
        if self._closed:
            raise RuntimeError("the loader is closed")
        self._running = self._run()
        return self._running

    def _run(self) -> Generator[Batch]:
        with contextlib.closing(self._batches()) as batches:
            for batch in batches:
                self.sampler.advance()
                yield batch
                del batch  # free it while waiting for the next

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def set_epoch(self, epoch: int) -> None:
        self._stop()
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._stop()
        self.sampler.load_state_dict(state)

    def close(self) -> None:
        self._stop()
        self._reader.close()
        self._closed = True

    def _cuts_crops(self) -> bool:
        """Whether this loader hands over the two crops (C = 2) and not whole images (C = 1).

        Raises:
            UserError: it should, but the recipe has other views than two full ones.
        """
        crops, whole = self._data.crops, self._augment.needs_whole_images
        if self._train and crops == "loader" and whole:
            raise UserError(
                "data.crops=loader: loaders cut two full views only; set data.crops=auto, or augment.views=2 "
                "and augment.local_views=0"
            )
        if crops == "auto" and not whole and (self.device.type == "cpu" or not self.whole_for_gpus):
            crops = "loader"
        return self._train and crops == "loader"

    def _canvas(self) -> tuple[int, int]:
        """Height and width into which every image of the split fits, after ``fit_canvas``."""
        split = self._packed.splits[self._split]
        return min(split.max_height, self._data.canvas), min(split.max_width, self._data.canvas)

    def _to_device(self, batch: Batch) -> Batch:
        """Copy tensors to the device on a separate stream: the current step goes on, the next one waits.

        No memory is overwritten too early. Torch's caching allocator reuses pinned memory only after the non-blocking
        copy from it has finished, and device memory marked by ``record_stream`` only after the step has used it.
        """
        if self._copy_stream is None:
            return batch
        with torch.cuda.stream(self._copy_stream):
            batch = Batch(
                *(part if part.is_cuda else part.pin_memory().to(self.device, non_blocking=True) for part in batch)
            )
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._copy_stream)
        for tensor in batch:
            tensor.record_stream(current)
        return batch


def fit_canvas(sizes: np.ndarray, canvas: int) -> np.ndarray:
    """Sizes int32 [B, 2]; if the longer side exceeds ``canvas`` pixels, scaled down so that it equals ``canvas``."""
    scale = np.minimum(1.0, canvas / sizes.max(axis=1, keepdims=True, initial=1))
    return np.maximum(np.rint(sizes * scale), 1).astype(np.int32)


def each_sample(index: np.ndarray, work: Callable[[int, int], None]) -> None:
    """Call ``work(position in the batch, sample)`` for each sample; an exception other than ``UserError`` names the
    sample."""
    for position, sample in enumerate(index.tolist()):
        try:
            work(position, sample)
        except UserError:
            raise
        except Exception as error:
            raise RuntimeError(f"sample {sample}: {error}") from error
