"""Gaussian blur of whole batches; every image has its own sigma."""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.augment.operation import Operation, Planes, choose, flatten_views
from pipelines.inductor_hints import materialised, materialised_as_half
from pipelines.rng import Draws

__all__ = ["GaussianBlur", "blur_planes", "gaussian_blur", "most_chosen"]


class GaussianBlur(Operation):
    """Parameters: float32 [B, V], sigma in pixels of the view; 0 for views that stay sharp."""

    name = "blur"

    @property
    def active(self) -> bool:
        return max(self._probabilities) > 0

    @property
    def _probabilities(self) -> tuple[float, ...]:
        return self.in_group(self.config.blur, self.config.local_blur or 0.0)

    def sample(self, draws: Draws) -> Tensor:
        low, high = self.config.blur_sigma
        sigma = low + (high - low) * draws.uniform("blur sigma").squeeze(-1)
        return torch.where(choose(draws, "blur", self._probabilities), sigma, 0.0).to(torch.float32)

    def apply(self, planes: Planes, sigma: Tensor) -> Planes:
        if torch.compiler.is_compiling() and sigma.is_cuda:
            return blur_planes(planes, flatten_views(sigma).flatten(), self.config.blur_sigma[1])
        images = torch.stack(planes, dim=1).chunk(self.group.count)
        views = zip(images, sigma.unbind(dim=1), self._probabilities, strict=True)
        return torch.cat([self._blur_view(*view) for view in views]).unbind(dim=1)

    def _blur_view(self, images: Tensor, sigma: Tensor, probability: float) -> Tensor:
        """Blur the images, of [B, 3, S, S], whose sigma [B] is not 0.

        Only ``most_chosen`` images pass through the filter: those with the largest sigma. If more were chosen, the rest
        would stay sharp.
        """
        if probability == 0:
            return images
        count, largest = most_chosen(len(images), probability), self.config.blur_sigma[1]
        if count == len(images):
            return gaussian_blur(images, sigma, largest)
        order = sigma.argsort(descending=True)
        place, chosen = order.argsort(), order[:count]
        blurred = gaussian_blur(images[chosen], sigma[chosen], largest)
        return torch.where((place < count)[:, None, None, None], blurred[place.clamp(max=count - 1)], images)


def most_chosen(count: int, probability: float) -> int:
    """An upper bound on how many of ``count`` images are chosen, each independently with this probability.

    The number chosen exceeds it with a probability of less than 1e-12, by Bernstein's inequality:
    P(X >= mean + t) <= exp(-t^2 / (2 variance + 2 t / 3)).
    """
    bound = math.log(1e12)
    excess = bound / 3 + math.sqrt(bound**2 / 9 + 2 * bound * count * probability * (1 - probability))
    return min(count, math.ceil(count * probability + excess))


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float = math.inf) -> Tensor:
    """Blur with a kernel of about a tenth of the side (23 pixels at 224, 3 at 32), with reflected borders.

    Args:
        images: float32 [N, C, S, S].
        sigma: [N] in pixels; images with 0 stay as they are.
        largest: upper bound of sigma. The kernel reaches at most 4 * largest to each side: all but 6e-5 of its weight.

    Returns:
        float32 [N, C, S, S].
    """
    side, kernel = images.shape[-1], _kernel(sigma, images.shape[-1], largest)
    radius = kernel.shape[1] // 2
    for axis in (3, 2):
        left, right = images.narrow(axis, 1, radius), images.narrow(axis, side - 1 - radius, radius)
        images = _convolve(torch.cat([left.flip(axis), images, right.flip(axis)], dim=axis), kernel, axis)
    return images


def blur_planes(planes: Planes, sigma: Tensor, largest: float = math.inf) -> Planes:
    """``gaussian_blur`` of planes [N, S, S], written to move the fewest bytes when compiled for a GPU.

    All images are filtered: sorting out those that stay sharp would move more bytes than it saves.
    """
    kernel = materialised(_kernel(sigma, planes[0].shape[-1], largest))
    planes = tuple(materialised_as_half(plane) for plane in planes)
    for axis in (2, 1):
        planes = tuple(materialised_as_half(_filter(plane, kernel, axis)) for plane in planes)
    return planes


def _filter(plane: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Filter [N, H, W] along an axis, with reflected borders. Every image has its own symmetric kernel, [N, K]."""
    last, middle = plane.shape[axis] - 1, kernel.shape[1] // 2
    place = torch.arange(last + 1, device=plane.device)

    def shifted(distance: int) -> Tensor:
        return plane.index_select(axis, last - (last - (place + distance).abs()).abs())

    weights = kernel[:, :, None, None].unbind(dim=1)
    pairs = (weights[middle + k] * (shifted(-k) + shifted(k)) for k in range(middle, 0, -1))
    return functools.reduce(torch.add, pairs, weights[middle] * plane)


def _kernel(sigma: Tensor, side: int, largest: float) -> Tensor:
    """The filter of every image, [N, K], K odd; arguments as for ``gaussian_blur``."""
    radius = min(max(1, math.ceil(min(side // 20, 4 * largest))), side - 1)
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    # With a sigma this small the kernel is exactly 1 in the middle and 0 elsewhere.
    return torch.softmax(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2, dim=1)


def _convolve(images: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Filter [N, C, H, W] along an axis, without padding. Every image has its own symmetric kernel, [N, K], K odd."""
    count, taps = kernel.shape
    if torch.compiler.is_compiling():  # fused into one pass over the pixels; without a compiler it takes K passes
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
