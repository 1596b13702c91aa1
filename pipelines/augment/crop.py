"""Choose a view's box in its image and cut it out: torchvision's random resized crop for a whole batch at once."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.inductor_hints import materialised, materialised_as_half

__all__ = ["CROP_DRAWS", "centre_boxes", "crop_resize", "pixel_boxes", "sample_crops"]

_ATTEMPTS = 10
CROP_DRAWS = 2 * _ATTEMPTS + 2  # uniform numbers per crop: area and aspect of every attempt, top, left


def sample_crops(numbers: Tensor, size: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Draw crops by the same steps as ``torchvision.transforms.RandomResizedCrop.get_params``.

    Args:
        numbers: float64 [B, V, CROP_DRAWS], uniform in [0, 1).
        size: int32 [B, 2], height and width of the images, 1 to 65,535.
        scale: least and largest share of the image's area.
        ratio: least and largest width over height.

    Returns:
        float32 [B, V, 4]: top, left, height, width as fractions of the image; ``pixel_boxes`` gives the pixels.
    """
    area, aspect, top, left = numbers.split([_ATTEMPTS, _ATTEMPTS, 1, 1], dim=-1)
    sides = size.to(torch.float64)
    height, width = sides[:, None, :1], sides[:, None, 1:]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * aspect)
    widths, heights = torch.sqrt(area * aspect).round(), torch.sqrt(area / aspect).round()

    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    found = fits.any(dim=-1, keepdim=True)
    countdown = torch.arange(_ATTEMPTS, 0, -1, device=numbers.device)
    first = (fits * countdown).argmax(dim=-1, keepdim=True)
    # If no attempt fits: the largest centred crop whose ratio is allowed.
    crop_width = torch.where(found, widths.gather(-1, first), (height * ratio[1]).round().clamp(min=1).minimum(width))
    crop_height = torch.where(found, heights.gather(-1, first), (width / ratio[0]).round().clamp(min=1).minimum(height))
    top = torch.where(found, top * (height - crop_height + 1), (height - crop_height) / 2).floor()
    left = torch.where(found, left * (width - crop_width + 1), (width - crop_width) / 2).floor()
    fractions = [top / height, left / width, crop_height / height, crop_width / width]
    return torch.cat(fractions, dim=-1).to(torch.float32)


def pixel_boxes(crop: Tensor, size: Tensor) -> Tensor:
    """Crops in pixels, for images of a given size. For the size they were drawn for, exactly the integers drawn.

    Args:
        crop: float32 [B, V, 4], top, left, height, width as fractions.
        size: int32 [B, 2], height and width.

    Returns:
        int64 [B, V, 4], top, left, height, width: the nearest box of at least one pixel inside the image.
    """
    sides = size[:, None].long()
    origin, extent = (crop * torch.cat([sides, sides], dim=-1)).round().long().split(2, dim=-1)
    extent = extent.clamp(min=1).minimum(sides)
    return torch.cat([origin.clamp(min=0).minimum(sides - extent), extent], dim=-1)


def centre_boxes(size: Tensor, share: float) -> Tensor:
    """Centred squares (placed as torchvision's ``CenterCrop`` does) of side ``share`` of the shorter side.

    Args:
        size: int32 [B, 2], height and width.
        share: in (0, 1].

    Returns:
        int64 [B, 1, 4], top, left, height, width.
    """
    sides = size[:, None].to(torch.float64)
    extent = (sides.amin(dim=-1, keepdim=True) * share).round().clamp(min=1)
    return torch.cat([((sides - extent) / 2).round(), extent, extent], dim=-1).long()


def crop_resize(
    pixels: Tensor, boxes: Tensor, side: int, interpolation: str = "bilinear", flip: Tensor | None = None
) -> Tensor:
    """Cut boxes out of images and resize them, antialiased, as torchvision's ``resized_crop`` on float tensors.

    Resamples separably with a fixed number of taps per pixel, enough for the largest possible box. No shape depends on
    the boxes. The work grows with the size of the result, not with the canvas (as it would with weight matrices).
    Bicubic results outside [0, 1] are clipped, as in 8-bit images. On a GPU each of the two passes rounds
    its result to float16.

    Args:
        pixels: uint8 [B, H, W, 3].
        boxes: int64 [B, V, 4], top, left, height, width in pixels, inside the image.
        side: of the result in pixels.
        interpolation: "bilinear" or "bicubic".
        flip: bool [B, V], which results to mirror left to right; None: none.

    Returns:
        float32 [V * B, 3, side, side] in [0, 1]: the first box of every image, then the second, and so on.
    """
    count, height, width, _ = pixels.shape
    views = boxes.shape[1]
    top, left, heights, widths = boxes.transpose(0, 1).reshape(-1, 4, 1).unbind(dim=1)
    rows, row_weights = _taps(top, heights, height, side, interpolation)
    columns, column_weights = _taps(left, widths, width, side, interpolation)
    if flip is not None:
        mirrored = flip.T.reshape(-1, 1, 1)
        columns = torch.where(mirrored, columns.flip(-1), columns)
        column_weights = torch.where(mirrored, column_weights.flip(-1), column_weights)

    if pixels.is_cuda:  # computed once for every row and column, not once for every pixel of the result
        rows, columns, row_weights, column_weights = map(
            materialised, (rows.int(), columns.int(), row_weights, column_weights)
        )
    image = torch.arange(count, device=pixels.device).repeat(views)[:, None]
    planar = pixels.permute(0, 1, 3, 2)
    lines = _weighted_sum(lambda row: planar[image, row].float(), rows, row_weights[..., None, None] / 255)
    lines = materialised_as_half(lines)
    shape = (views * count, side, 3, side)
    result = _weighted_sum(
        lambda column: lines.gather(-1, column[:, None, None].expand(shape).long()),
        columns,
        column_weights[:, :, None, None],
    )
    if interpolation == "bicubic":
        result = result.clamp(0, 1)
    return materialised_as_half(result).permute(0, 2, 1, 3)


def _taps(start: Tensor, length: Tensor, limit: int, side: int, interpolation: str) -> tuple[Tensor, Tensor]:
    """The input positions on one axis that each resized pixel sums, and their weights (Pillow's antialiasing).

    Args:
        start, length: int64 [N, 1], the boxes along this axis.
        limit: the largest length possible, which fixes the number of taps T.
        side: of the result in pixels.

    Returns:
        Positions int64 and weights float32, both [N, T, side].
    """
    radius = {"bilinear": 1, "bicubic": 2}[interpolation]
    taps = math.ceil(2 * radius * max(limit, side) / side)
    scale = length / side
    stretch = scale.clamp(min=1)  # antialiasing: the kernel is as wide as a pixel of the result
    centre = (torch.arange(side, device=start.device) + 0.5) * scale
    first = (centre - radius * stretch + 0.5).floor().clamp(min=0)
    position = first[:, None] + torch.arange(taps, device=start.device)[:, None]
    distance = (position + 0.5 - centre[:, None]).abs() / stretch[:, None]
    weight = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    weight = weight * (position < length[:, None])
    inside = position.long().minimum(length[:, None] - 1)
    return start[:, None] + inside, weight / weight.sum(dim=1, keepdim=True)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys, Cubic convolution interpolation, IEEE ASSP 1981, equation 15 with its free parameter a."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _weighted_sum(fetch: Callable[[Tensor], Tensor], positions: Tensor, weights: Tensor) -> Tensor:
    """Sum over taps (dimension 1) of the weight times the value at the position."""
    terms = (weight * fetch(at) for at, weight in zip(positions.unbind(1), weights.unbind(1), strict=True))
    total = next(terms)
    for term in terms:
        total = total + term
    return total
