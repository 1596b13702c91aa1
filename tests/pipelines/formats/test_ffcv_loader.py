"""The ffcv loader: the reference's pixels, reduced scales, buffers."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import resize

from pipelines.config import AugmentConfig
from pipelines.formats.packed import open_reader
from support.loading import SIDE, assert_equal, epoch_of, images_of, psnr, whole


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", ["tiny", "photographs"])
def test_ffcv_crops_exactly_as_the_reference(build, name, interpolation):
    augment = AugmentConfig(interpolation=interpolation)
    reference = epoch_of(build("torch", name, augment=augment), 3)
    loader = build("ffcv", name, augment=augment)
    loader.dct_scaling = False
    assert_equal(epoch_of(loader, 3), reference)
    assert reference[0].pixels.shape == (8, 2, SIDE, SIDE, 3)
    assert reference[0].pixels.dtype == torch.uint8
    assert reference[0].size.unique().tolist() == [SIDE]


def test_decoding_at_a_reduced_scale_keeps_the_crops(build):
    recipe = {"augment": AugmentConfig(scale=(0.2, 1.0)), "image_size": 16}
    reference = whole(epoch_of(build("torch", "photographs", **recipe)))
    batch = whole(epoch_of(build("ffcv", "photographs", **recipe)))
    psnrs = [psnr(*pair) for pair in zip(batch.pixels.flatten(0, 1), reference.pixels.flatten(0, 1), strict=True)]
    scaled = [value for value in psnrs if value < float("inf")]
    assert len(scaled) > 0.1 * len(psnrs), "no image was decoded at a reduced scale"
    assert np.median(scaled) >= 35
    assert min(psnrs) > 20


def test_images_longer_than_the_canvas_are_scaled_down(build, packed):
    reader = open_reader(packed("photographs", "ffcv"), "val")
    reference = whole(epoch_of(build("torch", "photographs", split="val", canvas=64)))
    loader = build("ffcv", "photographs", split="val", canvas=64)
    reduced = whole(epoch_of(loader))
    loader.dct_scaling = False
    exact = whole(epoch_of(loader))
    assert reference.pixels.shape[2:4] == (64, 64)
    assert reference.size.max(dim=1).values.tolist() == [64] * 9, "an image of more than 64 pixels has 64 then"
    shapes = reader.sizes / reader.sizes.max(axis=1, keepdims=True) * 64
    np.testing.assert_allclose(reference.size, shapes, atol=0.5001)
    psnrs = []
    for index, image in enumerate(images_of(reference)):
        height, width = image.shape[:2]
        original = torch.from_numpy(reader.image(index)).permute(2, 0, 1)
        assert torch.equal(image, resize(original, [height, width], antialias=True).permute(1, 2, 0))
        assert torch.equal(exact.pixels[index, 0, :height, :width], image)
        psnrs.append(psnr(reduced.pixels[index, 0, :height, :width], image))
    assert min(psnrs) < float("inf"), "no image was decoded at a reduced scale"
    assert np.median(psnrs) >= 35


def test_raw_images_longer_than_the_canvas_are_scaled_down(build):
    batches = epoch_of(build("ffcv", "tiny", split="val", canvas=10))
    reference = epoch_of(build("torch", "tiny", split="val", canvas=10))
    assert_equal(batches, reference)
    assert batches[0].pixels.shape == (8, 1, 10, 10, 3)


def test_the_number_of_buffers_is_bounded(build):
    loader = build("ffcv", batch_size=2, prefetch=3, workers=2)
    places = set()
    for epoch in range(5):
        loader.set_epoch(epoch)
        for batch in loader:
            places.add(batch.pixels.data_ptr())
            del batch
    # Three prefetched, one that the caller has or waits for, and of each thread one that it has filled but still holds.
    assert len(places) <= 6


@pytest.mark.gpu
def test_ffcv_feeds_a_gpu_whole_images(build, packed, cuda):
    reader = open_reader(packed("photographs", "ffcv"), "train")
    batches = epoch_of(build("ffcv", "photographs", device=cuda))
    assert {tensor.device.type for tensor in batches[0]} == {"cuda"}
    batch = type(batches[0])(*(tensor.cpu() for tensor in whole(batches)))
    for index, image in zip(batch.index.tolist(), images_of(batch), strict=True):
        np.testing.assert_array_equal(image, reader.image(index))
