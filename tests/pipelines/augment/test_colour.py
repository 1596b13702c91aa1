"""Colour operations against torchvision's on float images, with different parameters for every image."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from pipelines.augment.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    colour_jitter,
    jitter_with_one_mean,
    rgb_to_grayscale,
    solarize,
)

ENHANCE = [
    (adjust_brightness, reference.adjust_brightness),
    (adjust_contrast, reference.adjust_contrast),
    (adjust_saturation, reference.adjust_saturation),
]


@pytest.fixture
def images() -> Tensor:
    """Smooth, gray, black, white, single-coloured, two-coloured and random images, float32 [N, 3, 13, 13]."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 13)
    smooth = torch.stack([ramp.expand(13, 13), ramp.expand(13, 13).T, (ramp[:, None] * ramp).flip(0)])
    gray = ramp.expand(3, 13, 13)
    colours = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))[:, :, None, None].expand(-1, 3, 13, 13)
    ties = torch.randint(0, 3, (4, 3, 13, 13), generator=generator) / 2
    noise = torch.randint(0, 256, (4, 3, 13, 13), generator=generator) / 255
    return torch.cat([smooth[None], gray[None], colours, ties, noise])


def check(ours: Tensor, theirs: list[Tensor], atol: float = 2e-6) -> None:
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=atol)


def per_image(values: Tensor) -> Tensor:
    return values[:, None, None]


@pytest.mark.parametrize(("ours", "theirs"), ENHANCE)
def test_enhancements(images: Tensor, ours: Callable, theirs: Callable) -> None:
    factor = torch.linspace(0, 2.5, len(images))
    result = torch.stack(ours(images.unbind(1), per_image(factor)), dim=1)
    check(result, [theirs(image, f) for image, f in zip(images, factor.tolist(), strict=True)])
    neutral = torch.stack(ours(images.unbind(1), torch.ones(1, 1, 1)), dim=1)
    assert torch.equal(neutral, images)


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 1 / 6, 0.31, 0.5])
def test_hue(images: Tensor, shift: float) -> None:
    shifts = shift * torch.linspace(1, 0.5, len(images))
    result = torch.stack(adjust_hue(images.unbind(1), per_image(shifts)), dim=1)
    check(result, [reference.adjust_hue(image, s) for image, s in zip(images, shifts.tolist(), strict=True)])
    assert torch.equal(result[1], images[1])  # a gray image has no hue


def test_gray(images: Tensor) -> None:
    check(rgb_to_grayscale(images.unbind(1)), [reference.rgb_to_grayscale(image)[0] for image in images])


def test_solarize_from_the_threshold_on() -> None:
    levels = (torch.arange(256) / 255).reshape(1, 16, 16).repeat(2, 1, 1)
    result = solarize((levels,) * 3, per_image(torch.tensor([True, False])))
    for plane in result:
        assert torch.equal(plane[0], reference.solarize(levels[:1], 128 / 255)[0])
        assert torch.equal(plane[1], levels[1])
    assert result[0][0].max() == 127 / 255


JITTER = {
    "brightness": (reference.adjust_brightness, 0.4),
    "contrast": (reference.adjust_contrast, 0.4),
    "saturation": (reference.adjust_saturation, 0.9),
    "hue": (reference.adjust_hue, 0.3),
}


@pytest.mark.parametrize(
    "left_out", [(), ("hue",), ("contrast",), ("contrast", "hue"), ("brightness",), ("brightness", "saturation")]
)
def test_jitter_in_every_order(images: Tensor, left_out: tuple[str, ...]) -> None:
    image = images[-1]
    sequences = list(itertools.permutations(range(4)))
    count = len(sequences)
    order = torch.tensor([[sequence.index(op) for op in range(4)] for sequence in sequences])
    generator = torch.Generator().manual_seed(1)
    amounts = {
        name: (name != "hue") + strength * (2 * torch.rand(count, generator=generator) - 1)
        for name, (_, strength) in JITTER.items()
    }
    given = {name: None if name in left_out else per_image(amounts[name]) for name in JITTER}
    planes = image.expand(count, -1, -1, -1).unbind(1)
    forms = (colour_jitter,) if "contrast" in left_out else (colour_jitter, jitter_with_one_mean)
    results = [torch.stack(form(planes, order[:, None, None], **given), dim=1) for form in forms]

    expected = []
    for number, sequence in enumerate(sequences):
        jittered = image
        for op in sequence:
            name = list(JITTER)[op]
            if name not in left_out:
                jittered = JITTER[name][0](jittered, amounts[name][number].item())
        expected.append(jittered)
    for result in results:
        check(result, expected)
    assert len({tuple(e.flatten().tolist()) for e in expected}) > 1  # otherwise the order would not be tested


def test_neutral_jitter_changes_nothing_visible(images: Tensor) -> None:
    one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    order = torch.tensor([2, 0, 3, 1])[None, None, None]
    result = torch.stack(colour_jitter(images.unbind(1), order, one, one, one, zero), dim=1)
    torch.testing.assert_close(result, images, rtol=0, atol=1e-6)
