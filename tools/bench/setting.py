"""The setting that is the same for every compared loader."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.config import SMALL_IMAGE, AugmentConfig, DataConfig
from tools.bench.images import Photographs, Pixels

__all__ = ["Epoch", "Setting"]

Epoch = Callable[[], int]  # loads every image once and returns their number


@dataclass(frozen=True)
class Setting:
    images: Photographs | Pixels
    data: DataConfig  # image_size, batch_size and workers are the same for all
    closing: contextlib.ExitStack

    @property
    def photographs(self) -> Photographs:
        """The images, for loaders that read only photographs."""
        assert isinstance(self.images, Photographs)
        return self.images

    @property
    def recipe(self) -> AugmentConfig:
        """BYOL's recipe (arXiv 2006.07733, appendix B); without blur for small images."""
        return AugmentConfig(blur=(0.0, 0.0) if self.data.image_size <= SMALL_IMAGE else (1.0, 0.1))
