"""More views than two, and local ones: their shapes, their parameters, and the views against torchvision's."""

import dataclasses
import itertools

import pytest
import torch

from pipelines.augment.groups import at_side, complete, view_groups
from pipelines.augment.views import Augment
from pipelines.batch import Views
from pipelines.config import AugmentConfig
from pipelines.errors import UserError
from support.torchvision_views import canvas, check_view, resized, tensors, torchvision_view

EVERYTHING = AugmentConfig(blur=(1.0, 0.5), solarize=(0.5, 0.5), hue=0.5)
MANY = dataclasses.replace(
    EVERYTHING, views=3, local_views=4, local_size=10, local_scale=(0.05, 0.3), local_blur=0.5, local_solarize=0.5
)


@pytest.mark.parametrize("name", ["full", "local"])
def test_views_of_every_group_are_torchvisions(name: str) -> None:
    count = 6
    pixels, size = canvas(count, 40, 31)
    augment = Augment(MANY, 24)
    group = {group.name: group for group in augment.groups}[name]
    params = augment.sample_params(7, 3, torch.arange(count), size)
    views = augment.apply(pixels, params)
    params, images = (params, views.full) if name == "full" else (params["local"], views.local)
    assert images.shape == (group.count * count, 3, group.side, group.side)
    assert images.is_contiguous(memory_format=torch.channels_last)
    for view, place in itertools.product(range(group.count), range(count)):
        crop = resized(pixels[place, 0], params["crop"][place, view].tolist(), group.side, MANY)
        check_view(images[view * count + place], torchvision_view(crop, MANY, params, place, view), MANY)


def test_other_views_leave_the_numbers_of_a_view_alone() -> None:
    size, index = torch.full((30, 2), 32, dtype=torch.int32), torch.arange(30)
    two = tensors(Augment(EVERYTHING, 32).sample_params(3, 1, index, size))
    many = Augment(MANY, 32).sample_params(3, 1, index, size)
    more = Augment(dataclasses.replace(MANY, views=5, local_views=6), 32).sample_params(3, 1, index, size)
    for name, value in two.items():
        assert torch.equal(tensors(many)[name][:, :2], value), name
        assert torch.equal(tensors(more)[name][:, :3], tensors(many)[name]), name
    for name, value in tensors(many["local"]).items():
        assert torch.equal(tensors(more["local"])[name][:, :4], value), name
        assert not torch.equal(tensors(many)[name][:, :1], value[:, :1]), name


def test_each_group_draws_by_its_own_recipe() -> None:
    count = 4000
    config = AugmentConfig(
        views=4, local_views=2, blur=(1.0, 0.0), solarize=(0.0, 1.0), local_blur=0.25, scale=(0.5, 1.0), local_size=8
    )
    augment = Augment(dataclasses.replace(config, local_scale=(0.05, 0.2)), 32)
    size = torch.full((count, 2), 100, dtype=torch.int32)
    params = augment.sample_params(0, 0, torch.arange(count), size)
    # Probabilities of full views repeat in turn.
    assert (params["blur"] > 0).float().mean(dim=0).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert params["solarize"].float().mean(dim=0).tolist() == [0.0, 1.0, 0.0, 1.0]
    assert (params["local"]["blur"] > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert "solarize" not in params["local"]
    area = params["crop"][..., 2:].prod(dim=-1) / 10_000
    local = params["local"]["crop"][..., 2:].prod(dim=-1) / 10_000
    assert area.min() > 0.48 and local.max() < 0.22 and local.min() > 0.04


@pytest.mark.parametrize(("image_size", "local"), [(32, 16), (64, 32), (16, 8), (224, 96), (128, 48)])
def test_the_default_side_of_local_views(image_size: int, local: int) -> None:
    full, small = view_groups(AugmentConfig(local_views=2), image_size)
    assert (full.side, small.side) == (image_size, local)


def test_local_views_grow_with_the_full_ones() -> None:
    config = complete(AugmentConfig(local_views=2), 224)
    assert [at_side(config, 224, side).local_size for side in (128, 160, 192, 224)] == [56, 72, 80, 96]


def test_local_views_larger_than_full_ones_are_refused() -> None:
    with pytest.raises(UserError, match=r"^augment.local_size=40 must not exceed data.image_size=32"):
        Augment(AugmentConfig(local_views=1, local_size=40), 32)


def test_ready_crops_are_refused_for_other_views_than_two() -> None:
    pixels, size = canvas(2, 32, 32, views=2)
    for config in (AugmentConfig(views=3), AugmentConfig(local_views=1)):
        with pytest.raises(ValueError, match="need whole images"):
            Augment(config, 32).views(pixels, size, torch.arange(2), 0, 0)


def test_without_local_views_there_is_no_tensor_of_them() -> None:
    pixels, size = canvas(2, 32, 32)
    views = Augment(AugmentConfig(), 32).views(pixels, size, torch.arange(2), 0, 0)
    assert isinstance(views, Views) and views.local is None
