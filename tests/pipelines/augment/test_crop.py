"""Crops against torchvision: the boxes drawn, their distribution, and the pixels cut out."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from pipelines.augment.crop import CROP_DRAWS, centre_boxes, crop_resize, pixel_boxes, sample_crops

SCALE, RATIO = (0.08, 1.0), (0.75, 4 / 3)
SIZES = [
    (32, 32),
    (375, 500),
    (500, 375),
    (1, 1),
    (1, 2),
    (2, 3),
    (7, 1),
    (1, 100),
    (100, 1),
    (20, 61),
    (65_535, 65_535),
]
SIZES += [(65_521, 40_003), (65_535, 1), (3, 65_535)]


def draw_numbers(count: int, seed: int, views: int = 2) -> Tensor:
    return torch.rand(count, views, CROP_DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def torchvision_box(
    monkeypatch: pytest.MonkeyPatch,
    numbers: list[float],
    size: tuple[int, int],
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> list[int]:
    """The box that torchvision draws from these random numbers: ten areas, ten aspect ratios, top, left."""
    attempts: Iterator[float] = itertools.chain.from_iterable(zip(numbers[:10], numbers[10:20], strict=True))
    corner = iter(numbers[20:])

    def uniform(_: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
        low, high = float(low), float(high)
        return torch.tensor(low + (high - low) * next(attempts), dtype=torch.float64)

    def randint(low: int, high: int, size: tuple[int]) -> Tensor:
        return torch.tensor(low + int((high - low) * next(corner)))

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "uniform_", uniform)
        patch.setattr(torch, "randint", randint)
        top, left, height, width = RandomResizedCrop.get_params(torch.empty(3, *size, device="meta"), scale, ratio)
    return [top, left, height, width]


@pytest.mark.parametrize("size", SIZES)
def test_the_same_numbers_give_torchvisions_box(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    numbers, sizes = draw_numbers(60, 0), torch.tensor([size] * 60, dtype=torch.int32)
    crop = sample_crops(numbers, sizes, SCALE, RATIO)
    assert crop.dtype == torch.float32
    expected = [[torchvision_box(monkeypatch, view, size) for view in image] for image in numbers.tolist()]
    assert pixel_boxes(crop, sizes).tolist() == expected


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.2, 0.2), (1.0, 1.0)), ((0.9, 1.0), (2.0, 3.0)), ((1e-6, 1e-4), RATIO)]
)
def test_other_ranges_give_torchvisions_box_too(
    monkeypatch: pytest.MonkeyPatch, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    # The second never fits into 30 x 40 within ten attempts, the third is often less than a pixel.
    numbers, size = draw_numbers(60, 1, views=1), (30, 40)
    sizes = torch.tensor([size] * 60, dtype=torch.int32)
    boxes = pixel_boxes(sample_crops(numbers, sizes, scale, ratio), sizes)
    assert boxes[:, 0].tolist() == [torchvision_box(monkeypatch, n, size, scale, ratio) for n in numbers[:, 0].tolist()]


@pytest.mark.parametrize("size", [(32, 32), (375, 500)])
def test_distribution_is_torchvisions(size: tuple[int, int]) -> None:
    count, (height, width) = 4000, size
    torch.manual_seed(0)
    image = torch.empty(3, height, width, device="meta")
    theirs = torch.tensor([RandomResizedCrop.get_params(image, SCALE, RATIO) for _ in range(count)])
    sizes = torch.tensor([size] * count, dtype=torch.int32)
    ours = pixel_boxes(sample_crops(draw_numbers(count, 2, views=1), sizes, SCALE, RATIO), sizes)[:, 0]

    def measures(boxes: Tensor) -> dict[str, Tensor]:
        top, left, h, w = boxes.double().unbind(1)
        room_y, room_x = height - h, width - w
        return {
            "area": h * w,
            "ratio": w / h,
            "height": h,
            "width": w,
            "top": (top / room_y)[room_y > 0],
            "left": (left / room_x)[room_x > 0],
            "centre": top + h / 2 - left - w / 2,
        }

    a, b = measures(ours), measures(theirs)
    for name in a:
        assert stats.ks_2samp(a[name], b[name]).pvalue > 1e-4, name
    square = (ours[:, 2] == ours[:, 3]).double().mean()
    assert square < 0.2


def test_any_box_is_exact_after_storing_it_as_fractions() -> None:
    generator = torch.Generator().manual_seed(0)
    count = 100_000
    size = torch.randint(1, 65_536, (count, 2), generator=generator)
    size[: count // 2] = size[: count // 2] % 300 + 1
    size[-1000:] = 65_535
    extent = (torch.rand(count, 2, generator=generator, dtype=torch.float64) * size).long() + 1
    origin = (torch.rand(count, 2, generator=generator, dtype=torch.float64) * (size - extent + 1)).long()
    boxes = torch.cat([origin, extent], dim=1)
    crop = (boxes / torch.cat([size, size], dim=1).double()).float()
    assert torch.equal(pixel_boxes(crop[:, None], size.int())[:, 0], boxes)


def test_boxes_of_a_smaller_decode_are_the_nearest_inside() -> None:
    size = torch.tensor([(375, 500)] * 2000, dtype=torch.int32)
    crop = sample_crops(draw_numbers(2000, 3), size, (1e-5, 1.0), RATIO)
    smaller = torch.tensor([(47, 63)] * 2000, dtype=torch.int32)
    boxes, (height, width) = pixel_boxes(crop, smaller), (47, 63)
    top, left, h, w = boxes.unbind(-1)
    assert top.min() >= 0
    assert left.min() >= 0
    assert h.min() == 1
    assert w.min() == 1
    assert (top + h).max() == height
    assert (left + w).max() == width
    wanted = crop * torch.tensor([height, width, height, width])
    assert (boxes[..., 2:] - wanted[..., 2:].clamp(min=1)).abs().max() <= 0.501
    assert (boxes[..., :2] - wanted[..., :2]).abs().max() <= 1.001


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "side"), [((32, 32), 32), ((8, 8), 16), ((40, 61), 24), ((300, 211), 32), ((120, 90), 224), ((5, 1), 7)]
)
def test_pixels_are_torchvisions(size: tuple[int, int], side: int, interpolation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    count = 6
    pixels = torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([size] * count, dtype=torch.int32)
    boxes = pixel_boxes(sample_crops(draw_numbers(count, 4), sizes, (0.01, 1.0), RATIO), sizes)
    boxes[0] = torch.tensor([0, 0, *size])
    boxes[1] = torch.tensor([size[0] - 1, size[1] - 1, 1, 1])
    views = crop_resize(pixels, boxes, side, interpolation)
    assert views.dtype == torch.float32
    for view, image in itertools.product(range(2), range(count)):
        expected = reference.resized_crop(
            pixels[image].permute(2, 0, 1) / 255,
            *boxes[image, view].tolist(),
            [side, side],
            interpolation=InterpolationMode(interpolation),
            antialias=True,
        )
        torch.testing.assert_close(views[view * count + image], expected.clamp(0, 1), rtol=0, atol=2e-6)


def test_flip_mirrors_the_chosen_views() -> None:
    pixels = torch.randint(0, 256, (2, 20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[0, 0, 20, 30], [3, 4, 10, 25]], [[5, 6, 7, 8], [0, 10, 20, 20]]])
    plain = crop_resize(pixels, boxes, 12)
    flipped = crop_resize(pixels, boxes, 12, flip=torch.tensor([[True, False], [False, True]]))
    expected = torch.stack([plain[0].flip(-1), plain[1], plain[2], plain[3].flip(-1)])
    assert torch.equal(flipped, expected)


def test_nothing_outside_the_box_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(0, 256, (2, 1, 40, 40, 3), dtype=torch.uint8, generator=generator)
    box = torch.tensor([[[5, 7, 13, 11]]])
    other[:, 5:18, 7:18] = one[:, 5:18, 7:18]
    for interpolation in ("bilinear", "bicubic"):
        assert torch.equal(crop_resize(one, box, 16, interpolation), crop_resize(other, box, 16, interpolation))


@pytest.mark.parametrize("share", [1.0, 0.875, 0.5, 0.001])
def test_centre_boxes_are_torchvisions_centre_crop(share: float) -> None:
    sizes = [(32, 32), (31, 32), (375, 500), (256, 341), (1, 1), (1, 9)]
    boxes = centre_boxes(torch.tensor(sizes, dtype=torch.int32), share)
    for (top, left, height, width), size in zip(boxes[:, 0].tolist(), sizes, strict=True):
        assert height == width == max(1, round(share * min(size)))
        image = torch.arange(size[0] * size[1]).reshape(1, *size)
        expected = reference.center_crop(image, [height, width])
        assert torch.equal(image[:, top : top + height, left : left + width], expected)
