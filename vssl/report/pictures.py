"""Images as programs show them."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.config import AugmentConfig

__all__ = ["fit", "to_pixels"]


def to_pixels(views: Tensor, config: AugmentConfig) -> Tensor:
    """Undo the normalisation: float32 [N, 3, S, S] to uint8 [N, S, S, 3]."""
    images = views.permute(0, 2, 3, 1) * torch.tensor(config.std) + torch.tensor(config.mean)
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def fit(pixels: np.ndarray, cell: int) -> Image.Image:
    """Resize uint8 [H, W, 3] to a longest side of ``cell``; enlarged images keep visible pixels."""
    image = Image.fromarray(pixels)
    scale = cell / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
