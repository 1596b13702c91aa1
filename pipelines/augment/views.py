"""Two views of every image: what is random is drawn first, by counter; applying it is a pure function of tensors."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.augment.colour import Planes, colour_jitter, gaussian_blur, rgb_to_grayscale, solarize
from pipelines.augment.crop import CROP_DRAWS, centre_boxes, crop_resize, pixel_boxes, sample_crops
from pipelines.config import AugmentConfig
from pipelines.errors import UserError
from pipelines.rng import uniform

__all__ = ["Augment", "ViewParams", "pixel_boxes"]


class ViewParams(NamedTuple):
    """What makes the two views of each of B images. An operation that a view does not undergo has a neutral value."""

    size: Tensor  # int32 [B, 2], height and width of the images
    crop: Tensor  # float32 [B, 2, 4], top, left, height, width as fractions of the image
    flip: Tensor  # bool [B, 2]
    order: Tensor  # int64 [B, 2, 4], the place (0 to 3) of brightness, contrast, saturation, hue in the colour jitter
    brightness: Tensor  # float32 [B, 2], factor; neutral: 1
    contrast: Tensor  # float32 [B, 2], factor; neutral: 1
    saturation: Tensor  # float32 [B, 2], factor; neutral: 1
    hue: Tensor  # float32 [B, 2], shift in turns; neutral: 0
    gray: Tensor  # bool [B, 2]
    blur: Tensor  # float32 [B, 2], sigma in pixels of the view; neutral: 0
    solarize: Tensor  # bool [B, 2]


# Uniform numbers a view: the crop; the amounts of the colour jitter; its order; one each for whether to flip, jitter,
# turn gray, blur and solarize, and for sigma.
_DRAWS = (CROP_DRAWS, 4, 4, 6)


class Augment:
    """The two-view augmentation, and the transform for evaluation.

    Operations whose probability or strength is 0 for both views cost nothing. Everything may be called under
    ``torch.compile(fullgraph=True)``, and nothing waits for the device.

    Args:
        config: the recipe.
        image_size: side S of a view in pixels.

    Raises:
        UserError: an interpolation that does not exist, or a range that ends before it begins.
    """

    def __init__(self, config: AugmentConfig, image_size: int) -> None:
        if config.interpolation not in ("bilinear", "bicubic"):
            raise UserError(f"augment.interpolation={config.interpolation} must be bilinear or bicubic")
        for key in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(config, key)
            if low > high:
                raise UserError(f"augment.{key}=[{low}, {high}] must be given as [least, largest]")
        self.config = config
        self.image_size = image_size

    def sample_params(self, seed: Tensor | int, epoch: Tensor | int, index: Tensor, size: Tensor) -> ViewParams:
        """Draw the parameters of both views; those of an image depend on nothing but its own arguments.

        Args:
            seed, epoch: integers, or int64 scalars on the device of ``index``.
            index: int64 [B], positions in the packed split.
            size: int32 [B, 2], heights and widths.
        """
        config = self.config
        numbers = torch.stack([uniform(seed, epoch, index, view, sum(_DRAWS)) for view in (0, 1)], dim=1)
        crop, amounts, order, others = numbers.split(_DRAWS, dim=-1)
        flip, jitter, gray, blur, solarize, sigma = others.unbind(dim=-1)
        ranges = [(max(0.0, 1 - x), 1.0, 1 + x) for x in (config.brightness, config.contrast, config.saturation)]
        ranges.append((-config.hue, 0.0, config.hue))
        brightness, contrast, saturation, hue = (
            torch.where(jitter < config.jitter, low + (high - low) * amount, neutral).to(torch.float32)
            for amount, (low, neutral, high) in zip(amounts.unbind(dim=-1), ranges, strict=True)
        )
        low, high = config.blur_sigma
        return ViewParams(
            size=size,
            crop=sample_crops(crop, size, config.scale, config.ratio),
            flip=flip < config.flip,
            order=(order[..., None] > order[..., None, :]).sum(dim=-1),
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            gray=gray < config.gray,
            blur=torch.where(_below(blur, config.blur), low + (high - low) * sigma, 0.0).to(torch.float32),
            solarize=_below(solarize, config.solarize),
        )

    def apply(self, pixels: Tensor, params: ViewParams) -> Tensor:
        """Make both views: crop, flip, colour jitter, gray, blur, solarize, normalise, in this order.

        Args:
            pixels: uint8 [B, V, H, W, 3]. V = 1: whole images, to be cropped here. V = 2: the crops, H = W = S.
            params: of ``sample_params`` for these images.

        Returns:
            float32 [2B, 3, S, S], channels_last: the B first views, then the B second ones.
        """
        config = self.config
        flip = params.flip if config.flip > 0 else None
        if pixels.shape[1] == 1:
            boxes = pixel_boxes(params.crop, params.size)
            images = crop_resize(pixels[:, 0], boxes, self.image_size, config.interpolation, flip)
            planes = images.unbind(dim=1)
        else:
            planes = self._drawn_crops(pixels, flip)
        if config.jitter > 0:
            strengths = (config.brightness, config.contrast, config.saturation, config.hue)
            amounts = (params.brightness, params.contrast, params.saturation, params.hue)
            used = (_flat(a) if x > 0 else None for a, x in zip(amounts, strengths, strict=True))
            planes = colour_jitter(planes, _flat(params.order), *used)
        if config.gray > 0:
            gray, chosen = rgb_to_grayscale(planes), _flat(params.gray)
            planes = tuple(torch.where(chosen, gray, plane) for plane in planes)
        if max(config.blur) > 0:
            planes = self._blur(planes, params.blur)
        if max(config.solarize) > 0:
            planes = solarize(planes, _flat(params.solarize))
        return self._normalise(planes)

    def evaluate(self, pixels: Tensor, size: Tensor) -> Tensor:
        """Centre square of side ``eval_crop`` times the shorter side, resized; nothing random.

        An image whose square has S pixels a side already comes out unchanged but for the normalisation.

        Args:
            pixels: uint8 [B, 1, H, W, 3].
            size: int32 [B, 2], the valid heights and widths.

        Returns:
            float32 [B, 3, S, S], channels_last.
        """
        boxes = centre_boxes(size, self.config.eval_crop)
        images = crop_resize(pixels[:, 0], boxes, self.image_size, self.config.interpolation)
        return self._normalise(images.unbind(dim=1))

    def _drawn_crops(self, pixels: Tensor, flip: Tensor | None) -> Planes:
        if pixels.shape[2:4] != (self.image_size, self.image_size):
            raise ValueError(f"two crops an image must have {self.image_size} pixels a side, not {pixels.shape[2:4]}")
        planes = (pixels.transpose(0, 1).flatten(0, 1) / 255).unbind(dim=-1)
        if flip is None:
            return planes
        return tuple(torch.where(_flat(flip), plane.flip(-1), plane) for plane in planes)

    def _blur(self, planes: Planes, sigma: Tensor) -> Planes:
        """Blur the views that the recipe blurs at all."""
        views = zip(torch.stack(planes, dim=1).chunk(2), sigma.unbind(dim=1), self.config.blur, strict=True)
        return torch.cat([self._blur_view(*view) if view[2] > 0 else view[0] for view in views]).unbind(dim=1)

    def _blur_view(self, images: Tensor, sigma: Tensor, share: float) -> Tensor:
        """Blur those of images [B, 3, S, S] whose sigma [B] is not 0, a ``share`` of them on the average.

        As many are blurred as suffice but once in 1e12 batches; then those of the least sigma would stay as they are.
        """
        room, largest = _room(len(images), share), self.config.blur_sigma[1]
        if room == len(images):
            return gaussian_blur(images, sigma, largest)
        order = sigma.argsort(descending=True)
        place, chosen = order.argsort(), order[:room]
        blurred = gaussian_blur(images[chosen], sigma[chosen], largest)
        return torch.where((place < room)[:, None, None, None], blurred[place.clamp(max=room - 1)], images)

    def _normalise(self, planes: Planes) -> Tensor:
        scaled = zip(planes, self.config.mean, self.config.std, strict=True)
        return torch.stack([(plane - mean) / std for plane, mean, std in scaled], dim=-1).permute(0, 3, 1, 2)


def _flat(value: Tensor) -> Tensor:
    """[B, 2, ...] to [2B, 1, 1, ...], in the order of the views, to go with planes."""
    return value.transpose(0, 1).flatten(0, 1)[:, None, None]


def _below(numbers: Tensor, shares: tuple[float, float]) -> Tensor:
    """bool [B, 2]: the numbers [B, 2] against a share for each view."""
    return torch.stack([number < share for number, share in zip(numbers.unbind(1), shares, strict=True)], dim=1)


def _room(count: int, share: float) -> int:
    """How many of ``count`` independent draws of probability ``share`` come true at most, but once in 1e12 times:
    Bernstein's inequality, P(X >= mean + t) <= exp(-t^2 / (2 variance + 2 t / 3))."""
    bound = math.log(1e12)
    excess = bound / 3 + math.sqrt(bound**2 / 9 + 2 * bound * count * share * (1 - share))
    return min(count, math.ceil(count * share + excess))
