"""Colour operations on whole batches, each with parameters of its own for every image.

Images are three planes (red, green, blue), float32 [N, H, W] in [0, 1], so that a compiler can fuse a chain of
operations into one pass over the pixels. Parameters have the shape [N, 1, 1]. With equal parameters every operation
gives what its namesake in ``torchvision.transforms.v2.functional`` gives for float images.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "Planes",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "colour_jitter",
    "gaussian_blur",
    "rgb_to_grayscale",
    "solarize",
]

Planes = tuple[Tensor, Tensor, Tensor]

_SOLARIZE_THRESHOLD = 128 / 255


def rgb_to_grayscale(planes: Planes) -> Tensor:
    """Luma, float32 [N, H, W]."""
    red, green, blue = planes
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _blend(planes: Planes, other: Tensor, factor: Tensor) -> Planes:
    rest = (1 - factor) * other
    return tuple((factor * plane + rest).clamp(0, 1) for plane in planes)


def adjust_brightness(planes: Planes, factor: Tensor) -> Planes:
    return tuple((factor * plane).clamp(0, 1) for plane in planes)


def adjust_contrast(planes: Planes, factor: Tensor) -> Planes:
    """Blend with the mean of the gray image."""
    return _blend(planes, rgb_to_grayscale(planes).mean(dim=(1, 2), keepdim=True), factor)


def adjust_saturation(planes: Planes, factor: Tensor) -> Planes:
    """Blend with the gray image."""
    return _blend(planes, rgb_to_grayscale(planes), factor)


def adjust_hue(planes: Planes, shift: Tensor) -> Planes:
    """Turn the hue of HSV by ``shift`` turns of the colour circle, in [-0.5, 0.5].

    HSV to RGB in its closed form: channel = V - C + C clamp(|(6 H + n) mod 6 - 3| - 1, 0, 1), n = 0, 4, 2,
    with chroma C = V S. A gray pixel (C = 0) has no hue and stays.
    """
    red, green, blue = planes
    value = red.maximum(green).maximum(blue)
    chroma = value - red.minimum(green).minimum(blue)
    scale = 1 / torch.where(chroma == 0, 1.0, chroma)
    sector = torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale)
    sector = torch.where(value == red, (green - blue) * scale, sector) + 6 * shift

    def channel(offset: int) -> Tensor:
        angle = sector + offset
        angle = angle - 6 * (angle / 6).floor()
        return value - chroma + chroma * ((angle - 3).abs() - 1).clamp(0, 1)

    return channel(0), channel(4), channel(2)


def colour_jitter(
    planes: Planes,
    order: Tensor,
    brightness: Tensor | None,
    contrast: Tensor | None,
    saturation: Tensor | None,
    hue: Tensor | None,
) -> Planes:
    """Torchvision's ``ColorJitter``, every image in an order of its own. Factors of 1 and a shift of 0 change nothing.

    All images pass through one fixed sequence that contains every order, around the two costly operations (contrast
    needs a mean over the image, hue much arithmetic): on either side of hue, and there on either side of contrast,
    brightness, saturation and brightness again. An image takes each operation in one of its places.

    Args:
        order: int64 [N, 1, 1, 4], the place (0 to 3) of brightness, contrast, saturation and hue.
        brightness, contrast, saturation, hue: [N, 1, 1], or None for an operation that no image takes.
    """
    b, c, s, h = order.unbind(dim=-1)
    last = 4
    c, h = (last if contrast is None else c), (last if hue is None else h)
    for before_hue in (True, False) if hue is not None else (True,):
        for before_contrast in (True, False) if contrast is not None else (True,):
            b_here, s_here = (((x < h) == before_hue) & ((x < c) == before_contrast) for x in (b, s))
            if brightness is not None:
                planes = adjust_brightness(planes, torch.where(b_here & (b < s), brightness, 1.0))
            if saturation is not None:
                planes = adjust_saturation(planes, torch.where(s_here, saturation, 1.0))
            if brightness is not None:
                planes = adjust_brightness(planes, torch.where(b_here & (b > s), brightness, 1.0))
            if contrast is not None and before_contrast:
                planes = adjust_contrast(planes, torch.where((c < h) == before_hue, contrast, 1.0))
        if hue is not None and before_hue:
            planes = adjust_hue(planes, hue)
    return planes


def solarize(planes: Planes, chosen: Tensor) -> Planes:
    """Invert what is at least 128/255 in the images where ``chosen`` (bool [N, 1, 1])."""
    return tuple(torch.where(chosen & (plane >= _SOLARIZE_THRESHOLD), 1 - plane, plane) for plane in planes)


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float = math.inf) -> Tensor:
    """Blur with a kernel of about a tenth of the side (23 pixels at 224, 3 at 32), the borders reflected.

    Args:
        images: float32 [N, C, S, S].
        sigma: [N] in pixels; images with 0 stay as they are.
        largest: that sigma may be. The kernel is no wider than four of it to each side: all but 6e-5 of its weight.

    Returns:
        float32 [N, C, S, S].
    """
    side = images.shape[-1]
    radius = min(max(1, math.ceil(min(side // 20, 4 * largest))), side - 1)
    offset = torch.arange(-radius, radius + 1, device=images.device)
    # Of a sigma this small the kernel is exactly 1 in the middle and 0 elsewhere.
    kernel = torch.softmax(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2, dim=1)
    for axis in (3, 2):
        left, right = images.narrow(axis, 1, radius), images.narrow(axis, side - 1 - radius, radius)
        images = _convolve(torch.cat([left.flip(axis), images, right.flip(axis)], dim=axis), kernel, axis)
    return images


def _convolve(images: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Filter [N, C, H, W] along an axis, without padding, with a symmetric kernel [N, K], K odd, for every image."""
    count, taps = kernel.shape
    if torch.compiler.is_compiling():  # fused into one pass over the pixels; without a compiler this takes K passes
        length = images.shape[axis] - taps + 1
        shifted = [images.narrow(axis, k, length) for k in range(taps)]
        weights, middle = kernel[:, :, None, None, None].unbind(dim=1), taps // 2
        # Taps at the same distance share a weight, and a multiplication.
        pairs = (weights[k] * (shifted[k] + shifted[-1 - k]) for k in range(middle))
        return functools.reduce(torch.add, pairs, weights[middle] * shifted[middle])
    channels = images.shape[1]
    shape = (1, taps) if axis == 3 else (taps, 1)
    kernel = kernel[:, None].expand(-1, channels, -1).reshape(count * channels, 1, *shape)
    filtered = functional.conv2d(images.flatten(0, 1)[None], kernel, groups=count * channels)
    return filtered.reshape(count, channels, *filtered.shape[2:])
