"""What holds for every loader that is compared."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.config import SMALL_IMAGE, AugmentConfig, DataConfig
from tools.bench.images import Photographs, Pixels

__all__ = ["Epoch", "Setting"]

Epoch = Callable[[], int]  # load every image once; returns how many


@dataclass(frozen=True)
class Setting:
    images: Photographs | Pixels
    data: DataConfig  # image_size, batch_size and workers hold for everybody
    closing: contextlib.ExitStack

    @property
    def photographs(self) -> Photographs:
        """The images, for those who read no others."""
        assert isinstance(self.images, Photographs)
        return self.images

    @property
    def recipe(self) -> AugmentConfig:
        """BYOL's (arXiv 2006.07733, appendix B)."""
        return AugmentConfig(blur=(0.0, 0.0) if self.data.image_size <= SMALL_IMAGE else (1.0, 0.1))
