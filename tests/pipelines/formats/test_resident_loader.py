"""The resident loader: whole images from device memory."""

import os

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import resized_crop

from pipelines.augment.views import Augment, pixel_boxes
from pipelines.errors import UserError
from pipelines.formats.dali.reader import ShardReader
from pipelines.formats.packed import open_reader
from pipelines.formats.resident.reader import ArrayReader
from support.loading import FORMATS, RECIPE, SIDE, assert_equal, epoch_of, images_of, psnr, whole


@pytest.mark.parametrize(("name", "least"), [("tiny", float("inf")), ("photographs", 38)])
def test_crops_of_resident_images_are_those_of_the_reference(build, name, least):
    reference = whole(epoch_of(build("torch", name), 1))
    batch = whole(epoch_of(build("resident", name), 1))
    assert torch.equal(batch.index, reference.index)
    assert torch.equal(batch.labels, reference.labels)
    boxes = pixel_boxes(Augment(RECIPE, SIDE).sample_crops(5, 1, batch.index, batch.size), batch.size)
    psnrs = [
        psnr(resized_crop(image.permute(2, 0, 1), *box, [SIDE, SIDE], antialias=True).permute(1, 2, 0), view)
        for image, pair, views in zip(images_of(batch), boxes.tolist(), reference.pixels, strict=True)
        for box, view in zip(pair, views, strict=True)
    ]
    assert np.median(psnrs) >= least


def test_evaluation_of_resident_images_gives_the_reference_pixels(build):
    for form in FORMATS:
        reference = epoch_of(build("torch", "tiny", form, split="val"))
        assert_equal(epoch_of(build("resident", "tiny", split="val")), reference)


def test_resident_trains_on_whole_images(build, packed):
    reader = open_reader(packed("photographs", "resident"), "train")
    batch = whole(epoch_of(build("resident", "photographs")))
    for index, image in zip(batch.index.tolist(), images_of(batch), strict=True):
        np.testing.assert_array_equal(image, reader.image(index))


def test_resident_and_shards_hold_no_file_open(build, packed):
    before = len(os.listdir("/proc/self/fd"))
    loader = build("resident")
    shards = open_reader(packed("tiny", "dali"), "train")
    assert len(os.listdir("/proc/self/fd")) == before
    assert isinstance(shards, ShardReader)
    assert isinstance(open_reader(packed("tiny", "resident"), "train"), ArrayReader)
    assert len(epoch_of(loader)) == 5


@pytest.mark.gpu
def test_resident_refuses_what_does_not_fit(build, cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20_000, 80_000))
    with pytest.raises(UserError, match=r"the train images take .* GiB, cuda has .* free: pack the data with --format"):
        build("resident", device=cuda)
