"""Gaussian blur against torchvision's, with a different sigma for every image; how many images pass through it."""

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as reference

from pipelines.augment.blur import GaussianBlur, blur_planes, gaussian_blur, most_chosen
from pipelines.augment.groups import view_groups
from pipelines.config import AugmentConfig
from pipelines.rng import Draws


@pytest.mark.parametrize(("side", "kernel"), [(224, 23), (96, 9), (32, 3), (8, 3), (2, 3)])
def test_blur(side: int, kernel: int) -> None:
    images = torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0, 7.0])
    expected = [
        reference.gaussian_blur(image, [kernel, kernel], [s, s])
        for image, s in zip(images, sigma.tolist(), strict=True)
    ]
    torch.testing.assert_close(gaussian_blur(images, sigma), torch.stack(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", [224, 32, 2])
def test_planes_are_blurred_as_images_are(side: int) -> None:
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.0, 0.7, 2.0])
    planes = blur_planes(images.unbind(1), sigma, largest=2.0)
    assert torch.equal(planes[1][0], images[0, 1])
    torch.testing.assert_close(torch.stack(planes, dim=1), gaussian_blur(images, sigma, 2.0), rtol=0, atol=2e-6)


def test_a_kernel_cut_at_four_sigma_gives_what_the_whole_one_gives() -> None:
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(
        gaussian_blur(images, sigma, largest=2.0), gaussian_blur(images, sigma), rtol=0, atol=5e-5
    )
    edge = torch.zeros(1, 3, 224, 224)
    edge[..., 112:] = 1
    whole, cut = gaussian_blur(edge, sigma[1:]), gaussian_blur(edge, sigma[1:], largest=2.0)
    assert 0 < (whole - cut).abs().max() < 6.4e-5  # weight of a normal distribution of sigma 2 beyond 8.5 pixels


def test_no_blur_is_exact() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = gaussian_blur(images, torch.tensor([0.0, 1.0]))
    assert torch.equal(blurred[0], images[0])
    assert not torch.equal(blurred[1], images[1])


class Filtered(TorchDispatchMode):
    """Notes how many images [C = 3] each convolution filters."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.counts.append(args[0].shape[1] // 3)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("shares", "counts"), [((1.0, 0.0), [200]), ((0.0, 0.1), [63]), ((1.0, 0.1), [200, 63])])
def test_hardly_more_images_than_the_recipe_blurs_pass_through_the_filter(
    shares: tuple[float, float], counts: list[int]
) -> None:
    config = AugmentConfig(blur=shares)
    blur = GaussianBlur(config, view_groups(config, 32)[0])
    sigma = blur.sample(Draws(0, 0, torch.arange(200), streams=(0, 1), offsets={}))
    images = torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with Filtered() as filtered:
        planes = blur.apply(images.unbind(1), sigma)
    assert filtered.counts == [count for count in counts for _ in ("rows", "columns")]
    # The right images are blurred, and each returns to its place in the batch.
    views, flat = torch.stack(planes, dim=1), sigma.T.flatten()
    torch.testing.assert_close(views, gaussian_blur(images, flat, 2.0), rtol=0, atol=1e-5)
    assert torch.equal(views[flat == 0], images[flat == 0])
    assert not any(torch.equal(*pair) for pair in zip(views[flat > 0.5], images[flat > 0.5], strict=True))


@pytest.mark.parametrize(("count", "share"), [(16, 0.1), (128, 0.1), (256, 0.5), (4096, 0.1), (4096, 0.9)])
def test_more_images_than_the_bound_are_chosen_less_than_once_in_1e12_batches(count: int, share: float) -> None:
    most = most_chosen(count, share)
    assert most <= count
    assert stats.binom.sf(most, count, share) < 1e-12
