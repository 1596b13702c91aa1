"""The two-view augmentation: what is drawn for whom, and the whole chain against torchvision, image by image."""

import dataclasses
import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from pipelines.augment import views as augment_module
from pipelines.augment.views import Augment, ViewParams, pixel_boxes
from pipelines.config import AugmentConfig
from pipelines.errors import UserError

EVERYTHING = AugmentConfig(blur=(1.0, 0.5), solarize=(0.5, 0.5), hue=0.5)
CIFAR, IMAGENET = AugmentConfig(), AugmentConfig(interpolation="bicubic", blur=(1.0, 0.1))
OFF = AugmentConfig(flip=0.0, jitter=0.0, gray=0.0, solarize=(0.0, 0.0))


def canvas(count: int, height: int, width: int, views: int = 1) -> tuple[Tensor, Tensor]:
    """Random pixels uint8 [count, views, height, width, 3] and different sizes inside them."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, views, height, width, 3), dtype=torch.uint8, generator=generator)
    sizes = [torch.randint(max(1, side // 2), side + 1, (count,), generator=generator) for side in (height, width)]
    size = torch.stack(sizes, dim=1).int()
    size[0] = torch.tensor([height, width])
    return pixels, size


def torchvision_view(image: Tensor, config: AugmentConfig, params: ViewParams, place: int, view: int) -> Tensor:
    """One view of one image float32 [3, S, S], from its crop on, by torchvision's functions."""
    drawn = {name: value[place, view] for name, value in params._asdict().items() if name not in ("size", "crop")}
    if drawn["flip"]:
        image = reference.horizontal_flip(image)
    adjust = [
        lambda x: reference.adjust_brightness(x, drawn["brightness"].item()),
        lambda x: reference.adjust_contrast(x, drawn["contrast"].item()),
        lambda x: reference.adjust_saturation(x, drawn["saturation"].item()),
        lambda x: reference.adjust_hue(x, drawn["hue"].item()),
    ]
    for operation in drawn["order"].argsort().tolist():
        image = adjust[operation](image)
    if drawn["gray"]:
        image = reference.rgb_to_grayscale(image, num_output_channels=3)
    if drawn["blur"] > 0:
        kernel = 2 * max(1, image.shape[-1] // 20) + 1
        image = reference.gaussian_blur(image, [kernel, kernel], [drawn["blur"].item()] * 2)
    if drawn["solarize"]:
        image = reference.solarize(image, 128 / 255)
    return reference.normalize(image, list(config.mean), list(config.std))


def resized(image: Tensor, box: list[int], side: int, config: AugmentConfig) -> Tensor:
    mode = InterpolationMode(config.interpolation)
    image = image.permute(2, 0, 1) / 255
    return reference.resized_crop(image, *box, [side, side], interpolation=mode, antialias=True).clamp(0, 1)


@pytest.mark.parametrize("config", [EVERYTHING, CIFAR, dataclasses.replace(IMAGENET, solarize=(0.0, 0.2))])
@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 32), (50, 41, 24), (8, 8, 16)])
def test_views_of_whole_images_are_torchvisions(config: AugmentConfig, height: int, width: int, side: int) -> None:
    count = 12
    pixels, size = canvas(count, height, width)
    augment = Augment(config, side)
    params = augment.sample_params(7, 3, torch.arange(100, 100 + count), size)
    views = augment.apply(pixels, params)
    assert views.shape == (2 * count, 3, side, side)
    assert views.dtype == torch.float32
    assert views.is_contiguous(memory_format=torch.channels_last)
    boxes = pixel_boxes(params.crop, size)
    for view, place in itertools.product((0, 1), range(count)):
        crop = resized(pixels[place, 0], boxes[place, view].tolist(), side, config)
        expected = torchvision_view(crop, config, params, place, view)
        check_view(views[view * count + place], expected, config)


@pytest.mark.parametrize("config", [EVERYTHING, IMAGENET])
def test_views_of_drawn_crops_are_torchvisions(config: AugmentConfig) -> None:
    count, side = 10, 30
    pixels, size = canvas(count, side, side, views=2)
    augment = Augment(config, side)
    params = augment.sample_params(0, 0, torch.arange(count), size)
    views = augment.apply(pixels, params)
    assert views.shape == (2 * count, 3, side, side)
    assert views.is_contiguous(memory_format=torch.channels_last)
    for view, place in itertools.product((0, 1), range(count)):
        crop = pixels[place, view].permute(2, 0, 1) / 255
        check_view(views[view * count + place], torchvision_view(crop, config, params, place, view), config)


def check_view(ours: Tensor, theirs: Tensor, config: AugmentConfig) -> None:
    """Equal within rounding, but where that decides on which side of solarize's threshold a value lies."""
    std = torch.tensor(config.std)[:, None, None]
    difference = (ours - theirs).abs() * std
    assert difference.max() < 1 / 255 + 1e-5
    assert (difference > 1e-5).double().mean() < 0.01


def test_sampled_params_do_not_depend_on_the_company() -> None:
    size = torch.tensor([[32, 32], [375, 500], [500, 333], [1, 1], [64, 48], [20, 90]], dtype=torch.int32)
    index = torch.tensor([5, 0, 50_000, 7, 1_000_000, 12])
    augment = Augment(EVERYTHING, 32)
    together = augment.sample_params(1, 2, index, size)
    shuffled = torch.tensor([3, 5, 0, 4, 1, 2])
    again = augment.sample_params(1, 2, index[shuffled], size[shuffled])
    for place in range(len(index)):
        alone = augment.sample_params(1, 2, index[place : place + 1], size[place : place + 1])
        for name in ViewParams._fields:
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[place]), name
    for name in ViewParams._fields:
        assert torch.equal(getattr(again, name), getattr(together, name)[shuffled]), name


def test_seed_epoch_index_and_view_all_matter() -> None:
    size = torch.full((64, 2), 500, dtype=torch.int32)
    index = torch.arange(64)
    augment = Augment(EVERYTHING, 32)
    first = augment.sample_params(0, 0, index, size)
    others = [
        augment.sample_params(1, 0, index, size),
        augment.sample_params(0, 1, index, size),
        augment.sample_params(0, 0, index + 64, size),
        ViewParams(*(value if value is size else value.flip(1) for value in first)),  # the views swapped
    ]
    for other in others:
        for name in set(ViewParams._fields) - {"size"}:
            assert not torch.equal(getattr(first, name), getattr(other, name)), name
    same = augment.sample_params(torch.tensor(0), torch.tensor(0), index, size)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))


def test_params_are_drawn_as_the_recipe_says() -> None:
    count = 20_000
    config = AugmentConfig(
        brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1, blur=(1.0, 0.1), blur_sigma=(0.1, 2.0)
    )
    size = torch.full((count, 2), 32, dtype=torch.int32)
    params = Augment(config, 32).sample_params(0, 0, torch.arange(count), size)
    jittered = params.brightness != 1
    shares = {
        "flip": (params.flip, (0.5, 0.5)),
        "jitter": (jittered, (0.8, 0.8)),
        "gray": (params.gray, (0.2, 0.2)),
        "blur": (params.blur > 0, (1.0, 0.1)),
        "solarize": (params.solarize, (0.0, 0.2)),
    }
    for name, (chosen, expected) in shares.items():
        for view, share in enumerate(expected):
            hits = int(chosen[:, view].sum())
            assert stats.binomtest(hits, count, share).pvalue > 1e-4, (name, view)
    ranges = {
        "brightness": (params.brightness[jittered], 0.6, 1.4),
        "contrast": (params.contrast[jittered], 0.0, 2.5),
        "saturation": (params.saturation[jittered], 0.8, 1.2),
        "hue": (params.hue[jittered], -0.1, 0.1),
        "sigma": (params.blur[params.blur > 0], 0.1, 2.0),
    }
    for name, (drawn, low, high) in ranges.items():
        assert stats.kstest(drawn, "uniform", args=(low, high - low)).pvalue > 1e-4, name
    for name, neutral in {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}.items():
        assert (getattr(params, name)[~jittered] == neutral).all(), name
    orders = (params.order * torch.tensor([1, 4, 16, 64])).sum(-1)
    found, frequency = orders.unique(return_counts=True)
    assert len(found) == 24
    assert stats.chisquare(frequency).pvalue > 1e-4
    # Independent of each other, for example the views' crops and flips.
    columns = torch.cat([params.crop.flatten(1), params.flip, params.gray, params.brightness, params.hue], dim=1)
    correlation = torch.corrcoef(columns.double().T)
    between_views = [correlation[a, b].item() for a in range(4) for b in range(4, 8)]
    assert max(map(abs, between_views)) < 0.03
    assert correlation[8:, 8:].sub(torch.eye(8)).abs().max() < 0.03


def test_probabilities_of_one_and_zero() -> None:
    config = AugmentConfig(flip=1.0, jitter=1.0, gray=1.0, blur=(0.0, 1.0), solarize=(1.0, 0.0))
    size = torch.full((500, 2), 32, dtype=torch.int32)
    params = Augment(config, 32).sample_params(0, 0, torch.arange(500), size)
    assert params.flip.all()
    assert params.gray.all()
    assert (params.hue != 0).all()
    assert (params.blur[:, 0] == 0).all()
    assert (params.blur[:, 1] >= 0.1).all()
    assert params.solarize[:, 0].all()
    assert not params.solarize[:, 1].any()


@pytest.mark.parametrize("views", [1, 2])
def test_what_no_view_undergoes_is_not_computed(monkeypatch: pytest.MonkeyPatch, views: int) -> None:
    pixels, size = canvas(4, 16, 16, views)

    def forbidden(*_: object) -> None:
        raise AssertionError

    for name in ("colour_jitter", "gaussian_blur", "rgb_to_grayscale", "solarize"):
        monkeypatch.setattr(augment_module, name, forbidden)
    augment = Augment(OFF, 16)
    params = augment.sample_params(0, 0, torch.arange(4), size)
    assert augment.apply(pixels, params).shape == (8, 3, 16, 16)


@pytest.mark.parametrize(("blur", "rows"), [((1.0, 0.0), [200]), ((0.0, 0.1), [63]), ((1.0, 0.1), [200, 63])])
def test_hardly_more_images_than_the_recipe_blurs_pass_through_the_filter(
    monkeypatch: pytest.MonkeyPatch, blur: tuple[float, float], rows: list[int]
) -> None:
    blurred = []
    original = augment_module.gaussian_blur

    def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
        blurred.append(len(images))
        return original(images, sigma, largest)

    monkeypatch.setattr(augment_module, "gaussian_blur", gaussian_blur)
    pixels, size = canvas(200, 8, 8)
    augment = Augment(dataclasses.replace(OFF, blur=blur), 8)
    params = augment.sample_params(0, 0, torch.arange(200), size)
    views = augment.apply(pixels, params)
    assert blurred == rows
    # Those that are chosen are the right ones, and come back to their places.
    sharp = augment.apply(pixels, params._replace(blur=torch.zeros_like(params.blur)))
    expected = original(sharp, params.blur.T.flatten(), 2.0)
    torch.testing.assert_close(views, expected, rtol=0, atol=1e-5)
    assert torch.equal(views[params.blur.T.flatten() == 0], sharp[params.blur.T.flatten() == 0])


@pytest.mark.parametrize(("count", "share"), [(16, 0.1), (128, 0.1), (256, 0.5), (4096, 0.1), (4096, 0.9)])
def test_room_for_the_blurred_suffices_but_once_in_1e12_batches(count: int, share: float) -> None:
    room = augment_module._room(count, share)
    assert room <= count
    assert stats.binom.sf(room, count, share) < 1e-12


def test_drawn_crops_of_another_size_are_refused() -> None:
    pixels, size = canvas(2, 32, 32, views=2)
    augment = Augment(CIFAR, 24)
    with pytest.raises(ValueError, match="must have 24 pixels a side"):
        augment.apply(pixels, augment.sample_params(0, 0, torch.arange(2), size))


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
        ({"interpolation": "lanczos"}, "augment.interpolation=lanczos must be bilinear or bicubic"),
        ({"scale": (1.0, 0.08)}, r"augment.scale=\[1.0, 0.08\] must be given as \[least, largest\]"),
        ({"ratio": (2.0, 1.0)}, r"augment.ratio=\[2.0, 1.0\] must be given as \[least, largest\]"),
        ({"blur_sigma": (2.0, 0.1)}, r"augment.blur_sigma=\[2.0, 0.1\] must be given as \[least, largest\]"),
    ],
)
def test_impossible_recipes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        Augment(AugmentConfig(**change), 32)


@pytest.mark.slow
def test_compiled_views_are_the_same() -> None:
    pixels, size = canvas(3, 24, 30)
    augment = Augment(EVERYTHING, 24)
    params = augment.sample_params(0, 0, torch.arange(3), size)
    compiled = torch.compile(augment.apply, fullgraph=True)(pixels, params)
    assert compiled.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(compiled, augment.apply(pixels, params), rtol=0, atol=2e-5)


def test_everything_is_one_graph() -> None:
    pixels, size = canvas(3, 24, 24, views=2)
    augment = Augment(IMAGENET, 24)
    index, epoch = torch.arange(3), torch.tensor(4)
    sample, apply, evaluate = (
        torch.compile(function, fullgraph=True, backend="aot_eager")
        for function in (augment.sample_params, augment.apply, augment.evaluate)
    )
    params = augment.sample_params(0, 4, index, size)
    assert all(torch.equal(a, b) for a, b in zip(sample(0, epoch, index, size), params, strict=True))
    torch.testing.assert_close(apply(pixels, params), augment.apply(pixels, params), rtol=0, atol=2e-5)
    assert torch.equal(evaluate(pixels[:, :1], size), augment.evaluate(pixels[:, :1], size))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_gives_the_same_views_without_a_sync(compiled: bool) -> None:
    pixels, size = canvas(64, 90, 120)
    index, epoch = torch.arange(64), torch.tensor(5)
    augment = Augment(EVERYTHING, 32)
    expected = augment.sample_params(3, 5, index, size)
    views, evaluation = augment.apply(pixels, expected), augment.evaluate(pixels, size)
    sample, apply, evaluate = augment.sample_params, augment.apply, augment.evaluate
    if compiled:
        sample, apply, evaluate = (torch.compile(f, fullgraph=True, dynamic=False) for f in (sample, apply, evaluate))
    pixels, size, index, epoch = (tensor.cuda() for tensor in (pixels, size, index, epoch))

    def run() -> tuple[ViewParams, Tensor, Tensor]:
        params = sample(3, epoch, index, size)
        return params, apply(pixels, params), evaluate(pixels, size)

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        params, on_gpu, evaluated = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, value in params._asdict().items():
        torch.testing.assert_close(value.cpu(), getattr(expected, name), rtol=0, atol=1e-6)
    difference = (on_gpu.cpu() - views).abs()
    assert (difference > 1e-4).double().mean() < 0.01  # rounding may decide on solarize
    torch.testing.assert_close(evaluated.cpu(), evaluation, rtol=0, atol=1e-4)
