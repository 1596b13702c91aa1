"""Colour operations on whole batches; every image has its own parameters.

Images are three planes (red, green, blue), float32 [N, H, W] in [0, 1], which lets a compiler fuse a chain of
operations into one pass over the pixels. Parameters have the shape [N, 1, 1]. Given the same parameters, every
operation equals the function of the same name in ``torchvision.transforms.v2.functional`` on float images.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.augment.operation import Operation, Planes, choose, flatten_views
from pipelines.inductor_hints import materialised_as_half
from pipelines.rng import Draws

__all__ = [
    "ColourJitter",
    "Grayscale",
    "Jitter",
    "Solarize",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "colour_jitter",
    "jitter_with_one_mean",
    "rgb_to_grayscale",
    "solarize",
]

_SOLARIZE_THRESHOLD = 128 / 255


class Jitter(NamedTuple):
    """Parameters of the colour jitter. None: the recipe does not vary it. A view not chosen gets neutral values."""

    order: Tensor  # int64 [B, V, 4], the position (0 to 3) of brightness, contrast, saturation and hue
    brightness: Tensor | None  # float32 [B, V], factor; neutral: 1
    contrast: Tensor | None  # float32 [B, V], factor; neutral: 1
    saturation: Tensor | None  # float32 [B, V], factor; neutral: 1
    hue: Tensor | None  # float32 [B, V], shift in turns; neutral: 0


class ColourJitter(Operation):
    """Parameters: ``Jitter``."""

    name = "jitter"

    @property
    def active(self) -> bool:
        config = self.config
        return config.jitter > 0 and max(config.brightness, config.contrast, config.saturation, config.hue) > 0

    def sample(self, draws: Draws) -> Jitter:
        config = self.config
        jittered = choose(draws, "jitter", (config.jitter,))
        numbers = draws.uniform("jitter amounts", 4).unbind(dim=-1)
        ranges = [(max(0.0, 1 - x), 1.0, 1 + x) for x in (config.brightness, config.contrast, config.saturation)]
        ranges.append((-config.hue, 0.0, config.hue))
        amounts = (
            torch.where(jittered, low + (high - low) * number, neutral).to(torch.float32) if high > neutral else None
            for number, (low, neutral, high) in zip(numbers, ranges, strict=True)
        )
        order = draws.uniform("jitter order", 4)
        return Jitter((order[..., None] > order[..., None, :]).sum(dim=-1), *amounts)

    def apply(self, planes: Planes, params: Jitter) -> Planes:
        return colour_jitter(planes, *(None if value is None else flatten_views(value) for value in params))


class Grayscale(Operation):
    """Parameters: bool [B, V], which views become gray."""

    name = "gray"

    @property
    def active(self) -> bool:
        return self.config.gray > 0

    def sample(self, draws: Draws) -> Tensor:
        return choose(draws, "gray", (self.config.gray,))

    def apply(self, planes: Planes, chosen: Tensor) -> Planes:
        gray, chosen = rgb_to_grayscale(planes), flatten_views(chosen)
        return tuple(torch.where(chosen, gray, plane) for plane in planes)


class Solarize(Operation):
    """Parameters: bool [B, V], which views are solarized."""

    name = "solarize"

    @property
    def active(self) -> bool:
        return max(self._probabilities) > 0

    @property
    def _probabilities(self) -> tuple[float, ...]:
        return self.in_group(self.config.solarize, self.config.local_solarize)

    def sample(self, draws: Draws) -> Tensor:
        return choose(draws, "solarize", self._probabilities)

    def apply(self, planes: Planes, chosen: Tensor) -> Planes:
        return solarize(planes, flatten_views(chosen))


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
    with chroma C = V S. A gray pixel (C = 0) has no hue and does not change.
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
    """Torchvision's ``ColorJitter``; every image has its own order. Factors of 1 and a shift of 0 change nothing.

    All images pass through one fixed sequence that contains every order: brightness, saturation and brightness again,
    once before and once after contrast, and all of that once before and once after hue. Each operation changes an image
    at only one of its positions; at the others its factor is 1. Hue is computed once and contrast at most twice,
    because they are costly (hue needs much arithmetic, contrast a mean over the image).

    Args:
        order: int64 [N, 1, 1, 4], the position (0 to 3) of brightness, contrast, saturation and hue.
        brightness, contrast, saturation, hue: [N, 1, 1], or None for an operation that no image takes.
    """
    if contrast is None:
        return _sequence(planes, order, brightness, saturation, hue, None)
    if torch.compiler.is_compiling() and order.is_cuda:
        return jitter_with_one_mean(planes, order, brightness, contrast, saturation, hue)

    def adjust(planes: Planes, here: Tensor) -> Planes:
        return adjust_contrast(planes, torch.where(here, contrast, 1.0))

    return _sequence(planes, order, brightness, saturation, hue, adjust)


def jitter_with_one_mean(
    planes: Planes,
    order: Tensor,
    brightness: Tensor | None,
    contrast: Tensor,
    saturation: Tensor | None,
    hue: Tensor | None,
) -> Planes:
    """``colour_jitter``, written to move the fewest bytes when compiled for a GPU: means first, then the result.

    Each image's contrast is adjusted at only one of the two positions, so the first pass can compute both means.
    """
    grays: list[Tensor] = []

    def note(planes: Planes, here: Tensor) -> Planes:
        grays.append(torch.where(here, rgb_to_grayscale(planes), 0.0))
        return planes

    def adjust(planes: Planes, here: Tensor) -> Planes:
        return _blend(planes, mean, torch.where(here, contrast, 1.0))

    _sequence(planes, order, brightness, saturation, hue, note)
    mean = sum(grays).mean(dim=(1, 2), keepdim=True)
    # Read the planes again: keeping what the first pass computed would move more bytes.
    planes = tuple(materialised_as_half(plane) for plane in planes)
    return _sequence(planes, order, brightness, saturation, hue, adjust)


def _sequence(
    planes: Planes,
    order: Tensor,
    brightness: Tensor | None,
    saturation: Tensor | None,
    hue: Tensor | None,
    contrast: Callable[[Planes, Tensor], Planes] | None,
) -> Planes:
    """The sequence of ``colour_jitter``. ``contrast`` gets the planes and a mask of the images adjusted here, bool [N,
    1, 1]."""
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
                planes = contrast(planes, (c < h) == before_hue)
        if hue is not None and before_hue:
            planes = adjust_hue(planes, hue)
    return planes


def solarize(planes: Planes, chosen: Tensor) -> Planes:
    """Invert values of at least 128/255 in the images where ``chosen`` (bool [N, 1, 1])."""
    return tuple(torch.where(chosen & (plane >= _SOLARIZE_THRESHOLD), 1 - plane, plane) for plane in planes)
