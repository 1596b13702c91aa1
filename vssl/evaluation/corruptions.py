"""Images damaged at five strengths, as in CIFAR-10-C and ImageNet-C.

Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, arXiv
1903.12261; four of their corruptions, with the constants of their code.
"""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from pipelines.config import SMALL_IMAGE

__all__ = ["CORRUPTIONS", "STRENGTHS", "corrupt"]

STRENGTHS = 5
# By name: the constant of each strength for small images (CIFAR-10-C), then for larger ones (ImageNet-C).
CORRUPTIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "noise": ((0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38)),  # standard deviation
    "blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),  # sigma in pixels
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),  # factor
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),  # quality
}


def corrupt(images: Tensor, name: str, strength: int) -> Tensor:
    """Damage images.

    Args:
        images: float32 [N, 3, S, S] in [0, 1].
        name: one of ``CORRUPTIONS``.
        strength: 1 (least) to 5; 0 changes nothing.

    Returns:
        float32 [N, 3, S, S] in [0, 1]; the noise is the same at every call.
    """
    if strength == 0:
        return images
    amount = CORRUPTIONS[name][images.shape[-1] > SMALL_IMAGE][strength - 1]
    if name == "noise":
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return (images + amount * noise.to(images.device)).clamp(0, 1)
    if name == "blur":
        radius = min(int(4 * amount + 0.5), images.shape[-1] - 1)  # the border is reflected
        return gaussian_blur(images, [2 * radius + 1] * 2, [amount] * 2)
    if name == "contrast":
        mean = images.mean(dim=(2, 3), keepdim=True)
        return (mean + amount * (images - mean)).clamp(0, 1)
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = torch.from_numpy(np.stack([_as_jpeg(image, int(amount)) for image in pixels]))
    return decoded.permute(0, 3, 1, 2).to(images.device).float() / 255


def _as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """uint8 [H, W, 3], written as a JPEG and read again."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
