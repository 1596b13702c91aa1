"""The augmentation of two full views: which parameters are drawn, and the chain against torchvision, image by image."""

import dataclasses
import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from pipelines.augment.crop import pixel_boxes
from pipelines.augment.operation import Operation, Planes, flatten_views
from pipelines.augment.views import Augment
from pipelines.config import AugmentConfig
from pipelines.errors import UserError
from pipelines.rng import Draws
from support.torchvision_views import canvas, check_view, resized, tensors, torchvision_view

EVERYTHING = AugmentConfig(blur=(1.0, 0.5), solarize=(0.5, 0.5), hue=0.5)
CIFAR, IMAGENET = AugmentConfig(), AugmentConfig(interpolation="bicubic", blur=(1.0, 0.1))
OFF = AugmentConfig(flip=0.0, jitter=0.0, gray=0.0, solarize=(0.0, 0.0))


@pytest.mark.parametrize("config", [EVERYTHING, CIFAR, dataclasses.replace(IMAGENET, solarize=(0.0, 0.2))])
@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 32), (50, 41, 24), (8, 8, 16)])
def test_views_of_whole_images_are_torchvisions(config: AugmentConfig, height: int, width: int, side: int) -> None:
    count = 12
    pixels, size = canvas(count, height, width)
    augment = Augment(config, side)
    params = augment.sample_params(7, 3, torch.arange(100, 100 + count), size)
    views = augment.apply(pixels, params).full
    assert torch.equal(views, augment.views(pixels, size, torch.arange(100, 100 + count), 7, 3).full)
    assert views.shape == (2 * count, 3, side, side)
    assert views.dtype == torch.float32
    assert views.is_contiguous(memory_format=torch.channels_last)
    boxes = params["crop"]
    for view, place in itertools.product((0, 1), range(count)):
        crop = resized(pixels[place, 0], boxes[place, view].tolist(), side, config)
        expected = torchvision_view(crop, config, params, place, view)
        check_view(views[view * count + place], expected, config)


@pytest.mark.parametrize("config", [EVERYTHING, IMAGENET])
def test_views_of_drawn_crops_are_torchvisions(config: AugmentConfig) -> None:
    count, side = 10, 30
    pixels, size = canvas(count, side, side, views=2)
    augment = Augment(config, side)
    params = augment.sample_params(0, 0, torch.arange(count), None)
    views = augment.apply(pixels, params).full
    assert torch.equal(views, augment.views(pixels, size, torch.arange(count), 0, 0).full)
    assert views.shape == (2 * count, 3, side, side)
    assert views.is_contiguous(memory_format=torch.channels_last)
    for view, place in itertools.product((0, 1), range(count)):
        crop = pixels[place, view].permute(2, 0, 1) / 255
        check_view(views[view * count + place], torchvision_view(crop, config, params, place, view), config)


def test_sampled_params_do_not_depend_on_the_rest_of_the_batch() -> None:
    size = torch.tensor([[32, 32], [375, 500], [500, 333], [1, 1], [64, 48], [20, 90]], dtype=torch.int32)
    index = torch.tensor([5, 0, 50_000, 7, 1_000_000, 12])
    augment = Augment(EVERYTHING, 32)
    together = tensors(augment.sample_params(1, 2, index, size))
    shuffled = torch.tensor([3, 5, 0, 4, 1, 2])
    again = tensors(augment.sample_params(1, 2, index[shuffled], size[shuffled]))
    for place in range(len(index)):
        alone = tensors(augment.sample_params(1, 2, index[place : place + 1], size[place : place + 1]))
        for name, value in together.items():
            assert torch.equal(alone[name][0], value[place]), name
    for name, value in together.items():
        assert torch.equal(again[name], value[shuffled]), name


def test_seed_epoch_index_and_view_all_matter() -> None:
    size = torch.full((64, 2), 500, dtype=torch.int32)
    index = torch.arange(64)
    augment = Augment(EVERYTHING, 32)
    first = tensors(augment.sample_params(0, 0, index, size))
    others = [
        tensors(augment.sample_params(1, 0, index, size)),
        tensors(augment.sample_params(0, 1, index, size)),
        tensors(augment.sample_params(0, 0, index + 64, size)),
        {name: value.flip(1) for name, value in first.items()},  # the views swapped
    ]
    for other in others:
        for name, value in first.items():
            assert not torch.equal(value, other[name]), name
    same = tensors(augment.sample_params(torch.tensor(0), torch.tensor(0), index, size))
    assert all(torch.equal(value, same[name]) for name, value in first.items())


class Fade(Operation):
    """An operation that the project does not have: views fade to white, each by its own amount."""

    name = "fade"
    active = True

    def sample(self, draws: Draws) -> Tensor:
        return draws.uniform("fade")[..., 0].float()

    def apply(self, planes: Planes, amount: Tensor) -> Planes:
        amount = flatten_views(amount)
        return tuple(plane + amount * (1 - plane) for plane in planes)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_new_operation_leaves_the_parameters_of_the_others_alone(place: int) -> None:
    pixels, size = canvas(30, 12, 12)
    index = torch.arange(30)
    augment = Augment(EVERYTHING, 12)
    before = tensors(augment.sample_params(3, 1, index, size))
    augment.operations["full"].insert(place, Fade(EVERYTHING, augment.groups[0]))
    params = augment.sample_params(3, 1, index, size)
    after = tensors(params)
    assert after.keys() - before.keys() == {"fade"}
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    views = augment.apply(pixels, params).full
    assert not torch.equal(views, augment.apply(pixels, params | {"fade": torch.zeros(30, 2)}).full)


def test_an_operation_left_out_leaves_the_parameters_of_the_others_alone() -> None:
    size, index = torch.full((30, 2), 32, dtype=torch.int32), torch.arange(30)
    everything = tensors(Augment(EVERYTHING, 32).sample_params(3, 1, index, size))
    for off in ({"flip": 0.0}, {"jitter": 0.0}, {"gray": 0.0}, {"blur": (0.0, 0.0)}, {"solarize": (0.0, 0.0)}):
        fewer = tensors(Augment(dataclasses.replace(EVERYTHING, **off), 32).sample_params(3, 1, index, size))
        assert not off.keys() & fewer.keys()
        for name, value in fewer.items():
            assert torch.equal(everything[name], value), name


def test_crops_drawn_alone_are_those_of_all_parameters() -> None:
    size = torch.tensor([[32, 32], [375, 500], [1, 1]], dtype=torch.int32)
    augment, index = Augment(EVERYTHING, 32), torch.tensor([5, 0, 50_000])
    crop = augment.sample_crops(1, 2, index, size)
    assert crop.shape == (3, 2, 4)
    assert crop.dtype == torch.float32
    assert torch.equal(pixel_boxes(crop, size), augment.sample_params(1, 2, index, size)["crop"])


def test_no_crop_is_drawn_for_images_that_are_crops_already() -> None:
    pixels, size = canvas(6, 16, 16, views=2)
    augment, index = Augment(EVERYTHING, 16), torch.arange(6)
    whole, ready = augment.sample_params(3, 1, index, size), augment.sample_params(3, 1, index, None)
    assert whole.keys() - ready.keys() == {"crop"}
    for name, value in tensors(ready).items():
        assert torch.equal(tensors(whole)[name], value), name
    # Nothing can be computed from sizes that hold no values.
    views = augment.views(pixels, size.to("meta"), index, 3, 1).full
    assert torch.equal(views, augment.apply(pixels, ready).full)


def test_params_are_drawn_as_the_recipe_says() -> None:
    count = 20_000
    config = AugmentConfig(
        brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1, blur=(1.0, 0.1), blur_sigma=(0.1, 2.0)
    )
    size = torch.full((count, 2), 32, dtype=torch.int32)
    params = Augment(config, 32).sample_params(0, 0, torch.arange(count), size)
    jitter, blur = params["jitter"], params["blur"]
    jittered = jitter.brightness != 1
    shares = {
        "flip": (params["flip"], (0.5, 0.5)),
        "jitter": (jittered, (0.8, 0.8)),
        "gray": (params["gray"], (0.2, 0.2)),
        "blur": (blur > 0, (1.0, 0.1)),
        "solarize": (params["solarize"], (0.0, 0.2)),
    }
    for name, (chosen, expected) in shares.items():
        for view, share in enumerate(expected):
            hits = int(chosen[:, view].sum())
            assert stats.binomtest(hits, count, share).pvalue > 1e-4, (name, view)
    ranges = {
        "brightness": (jitter.brightness[jittered], 0.6, 1.4),
        "contrast": (jitter.contrast[jittered], 0.0, 2.5),
        "saturation": (jitter.saturation[jittered], 0.8, 1.2),
        "hue": (jitter.hue[jittered], -0.1, 0.1),
        "sigma": (blur[blur > 0], 0.1, 2.0),
    }
    for name, (drawn, low, high) in ranges.items():
        assert stats.kstest(drawn, "uniform", args=(low, high - low)).pvalue > 1e-4, name
    for name, neutral in {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}.items():
        assert (getattr(jitter, name)[~jittered] == neutral).all(), name
    orders = (jitter.order * torch.tensor([1, 4, 16, 64])).sum(-1)
    found, frequency = orders.unique(return_counts=True)
    assert len(found) == 24
    assert stats.chisquare(frequency).pvalue > 1e-4
    # Independent of each other, for example the views' crops and flips.
    flip, gray = params["flip"], params["gray"]
    columns = torch.cat([params["crop"].flatten(1), flip, gray, jitter.brightness, jitter.hue], dim=1)
    correlation = torch.corrcoef(columns.double().T)
    between_views = [correlation[a, b].item() for a in range(4) for b in range(4, 8)]
    assert max(map(abs, between_views)) < 0.03
    assert correlation[8:, 8:].sub(torch.eye(8)).abs().max() < 0.03


def test_probabilities_of_one_and_zero() -> None:
    config = AugmentConfig(flip=1.0, jitter=1.0, gray=1.0, blur=(0.0, 1.0), solarize=(1.0, 0.0))
    size = torch.full((500, 2), 32, dtype=torch.int32)
    params = Augment(config, 32).sample_params(0, 0, torch.arange(500), size)
    assert params["flip"].all()
    assert params["gray"].all()
    assert (params["jitter"].hue != 0).all()
    assert (params["blur"][:, 0] == 0).all()
    assert (params["blur"][:, 1] >= 0.1).all()
    assert params["solarize"][:, 0].all()
    assert not params["solarize"][:, 1].any()


@pytest.mark.parametrize("views", [1, 2])
def test_an_operation_that_no_view_gets_is_neither_drawn_nor_applied(views: int) -> None:
    pixels, size = canvas(4, 16, 16, views)
    augment = Augment(OFF, 16)
    assert augment.operations == {"full": []}
    params = augment.sample_params(0, 0, torch.arange(4), size)
    assert params.keys() == {"crop"}
    assert augment.apply(pixels, params).full.shape == (8, 3, 16, 16)
    some = Augment(dataclasses.replace(OFF, jitter=0.5, hue=0.0), 16).sample_params(0, 0, torch.arange(4), size)
    assert some.keys() == {"crop", "jitter"}
    assert some["jitter"].hue is None


def test_drawn_crops_of_another_size_are_refused() -> None:
    pixels, size = canvas(2, 32, 32, views=2)
    augment = Augment(CIFAR, 24)
    with pytest.raises(ValueError, match="must have 24 pixels per side"):
        augment.views(pixels, size, torch.arange(2), 0, 0)


def test_evaluation_keeps_images_that_fit() -> None:
    pixels, _ = canvas(5, 32, 32)
    size = torch.full((5, 2), 32, dtype=torch.int32)
    for interpolation in ("bilinear", "bicubic"):
        images = Augment(AugmentConfig(interpolation=interpolation), 32).evaluate(pixels, size)
        assert images.is_contiguous(memory_format=torch.channels_last)
        expected = reference.normalize(pixels[:, 0].permute(0, 3, 1, 2) / 255, list(CIFAR.mean), list(CIFAR.std))
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("share", [1.0, 0.875])
@pytest.mark.parametrize("side", [32, 20, 48])
def test_evaluation_is_a_centre_crop_of_the_valid_pixels(share: float, side: int) -> None:
    config = AugmentConfig(eval_crop=share, interpolation="bicubic")
    pixels, size = canvas(8, 32, 40)
    images = Augment(config, side).evaluate(pixels, size)
    assert images.shape == (8, 3, side, side)
    for image, whole, (height, width) in zip(images, pixels[:, 0], size.tolist(), strict=True):
        valid = whole[:height, :width].permute(2, 0, 1)
        square = reference.center_crop(valid, [round(share * min(height, width))] * 2).permute(1, 2, 0)
        expected = resized(square, [0, 0, *square.shape[:2]], side, config)
        expected = reference.normalize(expected, list(config.mean), list(config.std))
        torch.testing.assert_close(image, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": "lanczos"}, "augment.interpolation must be bilinear or bicubic, not lanczos"),
        ({"scale": (1.0, 0.08)}, r"augment.scale must be given as \[least, greatest\], not \[1.0, 0.08\]"),
        ({"ratio": (2.0, 1.0)}, r"augment.ratio must be given as \[least, greatest\], not \[2.0, 1.0\]"),
        ({"flip": 1.5}, "augment.flip must be between 0.0 and 1.0, not 1.5"),
        ({"blur_sigma": (2.0, 0.1)}, r"augment.blur_sigma must be given as \[least, greatest\], not \[2.0, 0.1\]"),
    ],
)
def test_impossible_recipes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        Augment(AugmentConfig(**change), 32)


@pytest.mark.slow
def test_compiled_views_are_the_same() -> None:
    pixels, size = canvas(3, 24, 24, 1)
    augment = Augment(dataclasses.replace(EVERYTHING, local_views=2), 24)
    augment.operations["full"].append(Fade(EVERYTHING, augment.groups[0]))
    arguments = pixels, size, torch.arange(3), 0, torch.tensor(4)
    compiled = torch.compile(augment.views, fullgraph=True)(*arguments)
    for ours, eager in zip(compiled, augment.views(*arguments), strict=True):
        assert ours.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours, eager, rtol=0, atol=2e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_everything_is_one_graph(count: int) -> None:
    pixels, size = canvas(3, 24, 24, count)
    augment = Augment(IMAGENET, 24)
    augment.operations["full"].append(Fade(IMAGENET, augment.groups[0]))
    index, epoch = torch.arange(3), torch.tensor(4)
    sample, views, evaluate = (
        torch.compile(function, fullgraph=True, backend="eager")
        for function in (augment.sample_params, augment.views, augment.evaluate)
    )
    params = augment.sample_params(0, 4, index, size)
    compiled = tensors(sample(0, epoch, index, size))
    assert all(torch.equal(value, compiled[name]) for name, value in tensors(params).items())
    expected = augment.apply(pixels, params).full
    torch.testing.assert_close(views(pixels, size, index, 0, epoch).full, expected, rtol=0, atol=2e-5)
    assert torch.equal(evaluate(pixels[:, :1], size), augment.evaluate(pixels[:, :1], size))


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_gives_the_same_views_without_a_sync(compiled: bool) -> None:
    pixels, size = canvas(64, 90, 120)
    index, epoch = torch.arange(64), torch.tensor(5)
    augment = Augment(EVERYTHING, 32)
    augment.operations["full"].append(Fade(EVERYTHING, augment.groups[0]))
    expected = augment.sample_params(3, 5, index, size)
    views, evaluation = augment.apply(pixels, expected).full, augment.evaluate(pixels, size)
    sample, apply, evaluate = augment.sample_params, augment.apply, augment.evaluate
    if compiled:
        sample, apply, evaluate = (torch.compile(f, fullgraph=True, dynamic=False) for f in (sample, apply, evaluate))
    pixels, size, index, epoch = (tensor.cuda() for tensor in (pixels, size, index, epoch))

    def run() -> tuple[dict, Tensor, Tensor]:
        params = sample(3, epoch, index, size)
        return params, apply(pixels, params).full, evaluate(pixels, size)

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        params, on_gpu, evaluated = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, value in tensors(params).items():
        torch.testing.assert_close(value.cpu(), tensors(expected)[name], rtol=0, atol=1e-6)
    difference = (on_gpu.cpu() - views).abs()
    # A GPU keeps float16 between stages, and rounding may move a value across solarize's threshold.
    assert (difference > 5e-3).double().mean() < 0.01
    torch.testing.assert_close(evaluated.cpu(), evaluation, rtol=0, atol=5e-3)
