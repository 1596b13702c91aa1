"""Readers, the loaders and what they share: order, pixels, state, errors, and nothing left behind."""

import contextlib
import multiprocessing
import operator
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize, resized_crop

from pipelines import format_dali, format_ffcv
from pipelines.augment import Augment, pixel_boxes
from pipelines.build import build_loader
from pipelines.convert import convert
from pipelines.crop import crop_resize
from pipelines.errors import UserError
from pipelines.packed import open_packed
from pipelines.prefetch import BufferPool, run_ahead
from pipelines.readers import ArrayReader, BetonReader, ShardReader, open_reader
from pipelines.types import AugmentConfig, DataConfig

CPU = torch.device("cpu")
RECIPE = AugmentConfig()
SIDE = 24
DATA = DataConfig(batch_size=8, workers=2, prefetch=2, image_size=SIDE, canvas=256)


def photographs(count, seed):
    """Cut-outs of real photographs, 70 to 200 pixels a side."""
    datasets = pytest.importorskip("sklearn.datasets")
    rng = np.random.default_rng(seed)
    sources = datasets.load_sample_images().images
    for number in range(count):
        height, width = rng.integers(70, 201, 2)
        source = sources[number % 2]
        top, left = rng.integers(0, source.shape[0] - height), rng.integers(0, source.shape[1] - width)
        yield Image.fromarray(source[top : top + height, left : left + width])


def save(images, folder, suffix):
    for number, image in enumerate(images):
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number:03}.{suffix}", quality=90)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Packed data sets by name: photographs (JPEG) and tiny (16 x 16, stored without loss), each in every format."""
    root = tmp_path_factory.mktemp("loaders")
    save(photographs(43, 0), root / "photographs" / "train", "jpg")
    save(photographs(9, 1), root / "photographs" / "val", "jpg")
    tiny = [Image.fromarray(pixels) for pixels in np.random.default_rng(2).integers(0, 256, (43, 16, 16, 3), np.uint8)]
    save(tiny, root / "tiny" / "train", "png")
    save(tiny[:9], root / "tiny" / "val", "png")
    for name in ("photographs", "tiny"):
        for form in FORMATS:
            convert("folder", root / name, root / f"{name}-{form}", format=form, workers=1)
    return root


@pytest.fixture
def packed(folders):
    """``packed(name, format)``; what needs ffcv's decoder is skipped where ffcv is not installed."""

    def open_one(name, form):
        if (name, form) == ("photographs", "ffcv"):
            pytest.importorskip("ffcv")
        return open_packed(folders / f"{name}-{form}")

    return open_one


@pytest.fixture
def build(packed):
    """``build(loader, name, **changes of DATA, or of build_loader's arguments)``; closed after the test."""
    with contextlib.ExitStack() as stack:

        def build_one(kind, name="tiny", form=None, split="train", augment=RECIPE, **changes):
            arguments = {"train": split == "train", "seed": 5, "device": CPU, "rank": 0, "world_size": 1}
            arguments |= {key: changes.pop(key) for key in list(changes) if key in arguments}
            form = form or ("ffcv" if kind == "torch" else kind)
            if kind == "dali":
                pytest.importorskip("nvidia.dali")
            data = replace(DATA, loader=kind, **changes)
            loader = build_loader(data, augment, packed(name, form), split, **arguments)
            stack.callback(loader.close)
            return loader

        yield build_one


def epoch_of(loader, epoch=0):
    loader.set_epoch(epoch)
    return list(loader)


def whole(batches):
    """One batch of all."""
    return type(batches[0])(*(torch.cat(column) for column in zip(*batches, strict=True)))


def images_of(batch):
    """The valid part of each canvas."""
    sizes = batch.size.tolist()
    return [pixels[:height, :width] for pixels, (height, width) in zip(batch.pixels[:, 0], sizes, strict=True)]


def psnr(image, reference):
    """In decibels; infinite where equal."""
    error = ((image.double() - reference.double()) ** 2).mean()
    return float(10 * torch.log10(255**2 / error))


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.index, other.index)
        assert torch.equal(batch.labels, other.labels)
        assert torch.equal(batch.size, other.size)
        assert torch.equal(batch.pixels, other.pixels)


FORMATS = ["ffcv", "dali", "resident"]
KINDS = [*FORMATS, "torch"]


# Readers


def test_readers_give_what_was_packed(folders, packed):
    originals = sorted((folders / "tiny" / "train").glob("*/*.png"))
    for form in FORMATS:
        reader = open_reader(packed("tiny", form), "train")
        assert reader.labels.dtype == np.int64
        assert reader.sizes.dtype == np.int32
        assert reader.labels.tolist() == ["ab".index(path.parent.name) for path in originals]
        for index, path in enumerate(originals):
            np.testing.assert_array_equal(reader.image(index), np.asarray(Image.open(path)))
        reader.close()
        reader.close()


@pytest.mark.parametrize("form", ["ffcv", "dali"])
def test_reader_decodes_jpegs_as_pillow_does(folders, packed, form):
    reader = open_reader(packed("photographs", form), "train")
    for index, path in enumerate(sorted((folders / "photographs" / "train").glob("*/*.jpg"))):
        expected = torch.tensor(np.asarray(Image.open(path)))
        image = torch.from_numpy(reader.image(index))
        assert list(image.shape[:2]) == reader.sizes[index].tolist() == list(expected.shape[:2])
        assert psnr(image, expected) > 38  # ffcv takes the faster of two DCTs


@pytest.mark.parametrize("denominator", [2, 4, 8])
def test_reader_decodes_at_a_reduced_scale(packed, denominator):
    reader = open_reader(packed("photographs", "ffcv"), "train")
    scratch, psnrs = np.empty(3 * 200 * 200, np.uint8), []
    for index, (height, width) in enumerate(reader.sizes.tolist()):
        small = torch.from_numpy(reader.decode(index, scratch, denominator))
        assert small.shape == (-(-height // denominator), -(-width // denominator), 3)
        full = torch.from_numpy(reader.image(index)).permute(2, 0, 1)
        psnrs.append(psnr(small, resize(full, list(small.shape[:2]), antialias=True).permute(1, 2, 0)))
    assert np.median(psnrs) > 28


def test_reader_never_writes_beyond_a_scratch_that_is_too_small(packed):
    with pytest.raises(ValueError, match="reshape"):
        open_reader(packed("photographs", "ffcv"), "train").decode(0, np.empty(100, np.uint8))


@pytest.mark.parametrize("name", ["tiny", "photographs"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_pickled_reader_holds_no_pixels(packed, name, form):
    reader = open_reader(packed(name, form), "val")
    data = pickle.dumps(reader)
    assert len(data) < 4096
    np.testing.assert_array_equal(pickle.loads(data).image(3), reader.image(3))


def test_reading_jpegs_without_ffcv_says_what_to_do(folders, monkeypatch):
    for module in ("ffcv", "ffcv.libffcv"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"train\.beton: reading its JPEGs needs ffcv.*--format resident"):
        open_reader(open_packed(folders / "photographs-ffcv"), "train")
    assert open_reader(open_packed(folders / "tiny-ffcv"), "train").image(0).shape == (16, 16, 3)


def test_an_absent_split_is_named(packed):
    with pytest.raises(UserError, match="has no split 'test', only train, val"):
        open_reader(packed("tiny", "resident"), "test")


# Pixels


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


@pytest.mark.parametrize("form", FORMATS)
def test_the_reference_is_torchvision_with_the_parameters_of_augment(build, packed, form):
    config = AugmentConfig(interpolation="bicubic")
    batch = whole(epoch_of(build("torch", "photographs", form, augment=config), 2))
    reader = open_reader(packed("photographs", form), "train")
    size = torch.from_numpy(reader.sizes[batch.index])
    boxes = pixel_boxes(Augment(config, SIDE).sample_params(5, 2, batch.index, size).crop, size).tolist()
    for number, index in enumerate(batch.index.tolist()):
        image = torch.from_numpy(reader.image(index)).permute(2, 0, 1)
        for view in (0, 1):
            crop = resized_crop(image, *boxes[number][view], [SIDE, SIDE], InterpolationMode.BICUBIC, antialias=True)
            assert torch.equal(batch.pixels[number, view], crop.permute(1, 2, 0))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", ["tiny", "photographs"])
def test_every_loader_gives_the_same_samples_and_crops(build, name, interpolation):
    augment = AugmentConfig(interpolation=interpolation)
    reference = whole(epoch_of(build("torch", name, augment=augment), 1))
    for kind in FORMATS:
        loader = build(kind, name, augment=augment)
        loader.dct_scaling = False
        batch = whole(epoch_of(loader, 1))
        assert torch.equal(batch.index, reference.index)
        assert torch.equal(batch.labels, reference.labels)
        views = batch.pixels
        if views.shape[1] == 1:  # to be cropped on the device
            boxes = pixel_boxes(Augment(augment, SIDE).sample_params(5, 1, batch.index, batch.size).crop, batch.size)
            crops = crop_resize(views[:, 0], boxes, SIDE, interpolation).unflatten(0, (2, -1))
            views = (255 * crops).round().permute(1, 0, 3, 4, 2)
        psnrs = [psnr(*pair) for pair in zip(views.flatten(0, 1), reference.pixels.flatten(0, 1), strict=True)]
        assert np.median(psnrs) >= 35 and min(psnrs) > 25, kind


@pytest.mark.parametrize("kind", ["ffcv", "dali"])
@pytest.mark.parametrize("crops", ["loader", "device"])
def test_the_user_says_who_cuts_the_crops(build, kind, crops):
    batch = next(iter(build(kind, crops=crops)))
    assert batch.pixels.shape == ((8, 2, SIDE, SIDE, 3) if crops == "loader" else (8, 1, 16, 16, 3))
    assert batch.size.unique().tolist() == [SIDE if crops == "loader" else 16]


@pytest.mark.parametrize(("name", "least"), [("tiny", float("inf")), ("photographs", 38)])
def test_crops_of_resident_images_are_those_of_the_reference(build, name, least):
    reference = whole(epoch_of(build("torch", name), 1))
    batch = whole(epoch_of(build("resident", name), 1))
    assert torch.equal(batch.index, reference.index)
    assert torch.equal(batch.labels, reference.labels)
    boxes = pixel_boxes(Augment(RECIPE, SIDE).sample_params(5, 1, batch.index, batch.size).crop, batch.size)
    psnrs = [
        psnr(resized_crop(image.permute(2, 0, 1), *box, [SIDE, SIDE], antialias=True).permute(1, 2, 0), view)
        for image, pair, views in zip(images_of(batch), boxes.tolist(), reference.pixels, strict=True)
        for box, view in zip(pair, views, strict=True)
    ]
    assert np.median(psnrs) >= least


def test_decoding_at_a_reduced_scale_keeps_the_crops(build):
    recipe = {"augment": AugmentConfig(scale=(0.2, 1.0)), "image_size": 16}
    reference = whole(epoch_of(build("torch", "photographs", **recipe)))
    batch = whole(epoch_of(build("ffcv", "photographs", **recipe)))
    psnrs = [psnr(*pair) for pair in zip(batch.pixels.flatten(0, 1), reference.pixels.flatten(0, 1), strict=True)]
    scaled = [value for value in psnrs if value < float("inf")]
    assert len(scaled) > 0.1 * len(psnrs), "no image was decoded at a reduced scale"
    assert np.median(scaled) >= 35
    assert min(psnrs) > 20


@pytest.mark.parametrize("name", ["tiny", "photographs"])
def test_evaluation_gives_whole_images_in_the_packed_order(build, packed, name):
    for kind, form in (("ffcv", "ffcv"), ("dali", "dali"), ("torch", "dali")):
        reader = open_reader(packed(name, form), "val")
        batches = epoch_of(build(kind, name, form, split="val"))
        assert [len(batch.index) for batch in batches] == [8, 1]
        assert {batch.pixels.shape[1:] for batch in batches} == {(1, *reader.sizes.max(axis=0), 3)}
        batch = whole(batches)
        assert batch.index.tolist() == list(range(9))
        assert batch.labels.tolist() == reader.labels.tolist()
        assert batch.size.tolist() == reader.sizes.tolist()
        for index, image in enumerate(images_of(batch)):
            np.testing.assert_array_equal(image, reader.image(index))


def test_evaluation_of_resident_images_gives_the_reference_pixels(build):
    for form in FORMATS:
        reference = epoch_of(build("torch", "tiny", form, split="val"))
        assert_equal(epoch_of(build("resident", "tiny", split="val")), reference)


def test_resident_trains_on_whole_images(build, packed):
    reader = open_reader(packed("photographs", "resident"), "train")
    batch = whole(epoch_of(build("resident", "photographs")))
    for index, image in zip(batch.index.tolist(), images_of(batch), strict=True):
        np.testing.assert_array_equal(image, reader.image(index))


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


def test_dali_scales_images_longer_than_the_canvas_as_the_reference_does(build):
    reference = whole(epoch_of(build("torch", "photographs", "dali", split="val", canvas=64)))
    batch = whole(epoch_of(build("dali", "photographs", split="val", canvas=64)))
    assert batch.pixels.shape == reference.pixels.shape
    assert torch.equal(batch.size, reference.size)
    assert min(map(psnr, images_of(batch), images_of(reference))) > 45


def test_raw_images_longer_than_the_canvas_are_scaled_down(build):
    batches = epoch_of(build("ffcv", "tiny", split="val", canvas=10))
    reference = epoch_of(build("torch", "tiny", split="val", canvas=10))
    assert_equal(batches, reference)
    assert batches[0].pixels.shape == (8, 1, 10, 10, 3)


@pytest.mark.parametrize("kind", ["ffcv", "dali"])
def test_a_batch_stays_as_it_is_while_the_loader_goes_on(build, kind):
    loader = build(kind)
    loader.set_epoch(0)
    kept, copies = [], []
    for batch in loader:
        kept.append(batch.pixels[:, :1])  # a view keeps the memory as well
        copies.append(batch.pixels[:, :1].clone())
        del batch
    epoch_of(loader, 1)
    loader.close()
    assert all(torch.equal(*pair) for pair in zip(kept, copies, strict=True))


# Order and state


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_differ_and_can_be_repeated(build, kind):
    loader = build(kind)
    first, second, again = epoch_of(loader, 0), epoch_of(loader, 1), epoch_of(loader, 0)
    assert_equal(first, again)
    assert whole(first).index.tolist() != whole(second).index.tolist()
    assert len(first) == len(loader) == 5


@pytest.mark.parametrize("kind", ["ffcv", "dali", "torch"])
def test_crops_of_an_image_change_with_the_epoch_and_not_with_its_batch(build, kind):
    loader, other = build(kind, drop_last=False), build(kind, drop_last=False, batch_size=5)
    first, second, elsewhere = (whole(epoch_of(one, epoch)) for one, epoch in ((loader, 0), (loader, 1), (other, 0)))

    def by_index(batch):
        return batch.pixels[batch.index.argsort()]

    assert torch.equal(by_index(first), by_index(elsewhere))
    changed = (by_index(first) != by_index(second)).flatten(2).any(dim=2)
    assert changed.float().mean() > 0.95
    views = by_index(first)
    assert (views[:, 0] != views[:, 1]).flatten(1).any(dim=1).float().mean() > 0.95


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_ranks_share_each_batch(build, kind, split):
    # Six ranks: the last batch of val, one image, leaves five of them with none.
    alone = epoch_of(build(kind, split=split))
    ranks = [epoch_of(build(kind, split=split, rank=rank, world_size=6, workers=1)) for rank in range(6)]
    assert_equal([whole(list(parts)) for parts in zip(*ranks, strict=True)], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_the_last_batch_gives_every_image_once(build, kind):
    batches = epoch_of(build(kind, drop_last=False))
    assert [len(batch.index) for batch in batches] == [8, 8, 8, 8, 8, 3]
    assert sorted(whole(batches).index.tolist()) == list(range(43))


@pytest.mark.parametrize("kind", KINDS)
def test_limit_takes_the_same_images_in_every_epoch_and_not_in_evaluation(build, kind):
    loader = build(kind, limit=16)
    images = {tuple(sorted(whole(epoch_of(loader, epoch)).index.tolist())) for epoch in (0, 1)}
    assert len(images) == 1
    assert len(images.pop()) == 16
    assert len(whole(epoch_of(build(kind, split="val", limit=4))).index) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_taken_in_mid_epoch_continues_exactly(build, kind):
    loader = build(kind)
    loader.set_epoch(2)
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict()
    assert state == {"seed": 5, "epoch": 2, "batches": 2}, "what was prefetched does not count"
    rest = list(batches)
    assert loader.state_dict() == {"seed": 5, "epoch": 2, "batches": 5}
    assert list(loader) == [], "the epoch is over"

    resumed = build(kind)
    resumed.load_state_dict(state)
    assert_equal(list(resumed), rest)
    next_epoch = epoch_of(loader, 3)
    assert_equal(epoch_of(resumed, 3), next_epoch)

    loader.set_epoch(2)
    next(iter(loader))
    loader.load_state_dict(state)  # with an iteration under way
    assert_equal(list(loader), rest)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_another_seed_is_refused(build, kind):
    with pytest.raises(UserError, match="the saved run used seed 4, this one uses 5"):
        build(kind).load_state_dict({"seed": 4, "epoch": 0, "batches": 0})


@pytest.mark.parametrize("kind", KINDS)
def test_loading_leaves_the_global_random_state_alone(build, kind):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch_of(build(kind))
    assert torch.equal(torch.get_rng_state(), before)


# Damage and failure


def damaged(packed, tmp_path, change, index):
    """A copy of the packed photographs in which ``change`` was applied to the bytes of a sample."""
    folder = shutil.copytree(packed.dir, tmp_path / "packed")
    if packed.format == "ffcv":
        path = folder / "train.beton"
        table = format_ffcv.read_table(path)
    else:
        path = format_dali.shard_path(folder, "train", 0)
        table = format_dali.read_table(folder, "train")
    part = slice(table.starts[index], table.starts[index] + table.lengths[index])
    content = np.fromfile(path, np.uint8)
    change(content[part])
    content.tofile(path)
    return open_packed(tmp_path / "packed")


def marker(data, code):
    """Where a JPEG's segment begins."""
    return data.tobytes().index(bytes([0xFF, code]))


def cut_off(data):
    data[len(data) // 2 :] = 0


def end_early(data):
    data[len(data) // 2 : len(data) // 2 + 2] = 0xFF, 0xD9


def destroy_start(data):
    data[:2] = 0


def destroy_scan(data):
    middle = len(data) // 2
    data[middle : middle + 200] = np.random.default_rng(0).integers(0, 256, 200)


def destroy_huffman_table(data):
    start = marker(data, 0xC4)
    data[start + 5 : start + 21] = 0xFF


def halve_height(data):
    start = marker(data, 0xC0)
    height = (int(data[start + 5]) << 8 | int(data[start + 6])) // 2
    data[start + 5 : start + 7] = height >> 8, height & 0xFF


def change_width_by_one(data):
    """As many blocks of 16 pixels as before: the decoder has nothing to object to."""
    start = marker(data, 0xC0)
    data[start + 8] += 1 if data[start + 8] % 16 else -1


def double_width(data):
    start = marker(data, 0xC0)
    width = (int(data[start + 7]) << 8 | int(data[start + 8])) * 2
    data[start + 7 : start + 9] = width >> 8, width & 0xFF


DAMAGES = [
    cut_off,
    end_early,
    destroy_start,
    destroy_scan,
    destroy_huffman_table,
    halve_height,
    change_width_by_one,
    double_width,
]


@pytest.mark.parametrize("change", DAMAGES)
def test_a_damaged_jpeg_is_an_error_that_names_the_sample(packed, tmp_path, change):
    broken = damaged(packed("photographs", "ffcv"), tmp_path, change, 17)
    reader = open_reader(broken, "train")
    with pytest.raises(UserError, match=r"train\.beton: the JPEG data of sample 17 are damaged, pack the data again"):
        reader.image(17)
    reader.image(16), reader.image(18)
    with pytest.raises(UserError, match="sample 17"):
        reader.decode(17, np.empty(3 * 200 * 200, np.uint8), 2)


@pytest.mark.parametrize("change", DAMAGES)
def test_a_damaged_jpeg_in_a_shard_is_an_error_that_names_the_sample(packed, tmp_path, change):
    broken = damaged(packed("photographs", "dali"), tmp_path, change, 17)
    reader = open_reader(broken, "train")
    with pytest.raises(UserError, match=r"train-000000\.tar: sample 17 .*, pack the data again"):
        reader.image(17)
    reader.image(16), reader.image(18)


@pytest.mark.parametrize("change", [destroy_start, destroy_huffman_table, *DAMAGES[-3:]])
def test_dali_stops_at_a_damaged_jpeg(packed, tmp_path, change):
    """But for a scan that it can get through somehow: only ``--verify`` finds that."""
    pytest.importorskip("nvidia.dali")
    broken = damaged(packed("photographs", "dali"), tmp_path, change, 17)
    data = replace(DATA, loader="dali", drop_last=False)
    with (
        contextlib.closing(build_loader(data, RECIPE, broken, "val", train=False, seed=5, device=CPU)) as sound,
        contextlib.closing(build_loader(data, RECIPE, broken, "train", train=True, seed=5, device=CPU)) as loader,
    ):
        with pytest.raises(UserError, match=r"train-000000\.tar: sample 17 "):
            epoch_of(loader)
        assert len(epoch_of(sound)) == 2


@pytest.mark.parametrize(("kind", "form"), [("ffcv", "ffcv"), ("dali", "dali"), ("torch", "ffcv"), ("torch", "dali")])
@pytest.mark.parametrize("train", [True, False])
def test_a_damaged_jpeg_stops_the_loader_at_its_batch(packed, tmp_path, kind, form, train):
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    broken = damaged(packed("photographs", form), tmp_path, destroy_start if kind == "dali" else cut_off, 17)
    data = replace(DATA, loader=kind, drop_last=False)
    with contextlib.closing(build_loader(data, RECIPE, broken, "train", train=train, seed=5, device=CPU)) as loader:
        place = next(number for number, index in enumerate(loader.sampler.remaining()) if 17 in index)
        for _ in range(2):  # the error comes again, at the same place
            loader.set_epoch(0)
            seen = []
            with pytest.raises(UserError, match="sample 17"):
                seen.extend(batch.index.tolist() for batch in loader)
            assert len(seen) == loader.state_dict()["batches"] == place


@pytest.mark.parametrize(("kind", "method"), [("ffcv", "decode"), ("torch", "image")])
def test_a_workers_late_exception_names_the_sample(build, monkeypatch, kind, method):
    original = getattr(BetonReader, method)

    def fail_late(self, index, *rest):
        if index == 17:
            time.sleep(0.3)
            raise OSError("the disk is gone")
        return original(self, index, *rest)

    monkeypatch.setattr(BetonReader, method, fail_late)
    with pytest.raises(RuntimeError, match="sample 17: the disk is gone") as caught:
        epoch_of(build(kind, drop_last=False))
    notes = "".join(getattr(caught.value, "__notes__", []))
    assert "the disk is gone" in str(caught.value.__cause__) or "fail_late" in notes


def test_a_torch_worker_leaves_signals_to_its_parent(build):
    loader = build("torch", drop_last=False, workers=1)
    batches = iter(loader)
    received = [next(batches).index.tolist()]
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
    received.extend(batch.index.tolist() for batch in batches)
    assert sorted(index for batch in received for index in batch) == list(range(43))


# Nothing left behind


def resources():
    """Threads, file handles and child processes of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd")), len(multiprocessing.active_children())


def assert_no_more_than(before):
    """At once, or after the moment that a queue's thread takes to end."""
    deadline = time.monotonic() + 10
    while any(map(operator.gt, resources(), before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(map(operator.le, resources(), before)), (resources(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_after_close(build, kind):
    epoch_of(build(kind))  # the first time may start what torch keeps
    before = resources()
    loader = build(kind)
    for epoch in range(2):
        epoch_of(loader, epoch)
    loader.set_epoch(2)
    next(iter(loader))
    loader.close()
    loader.close()
    assert_no_more_than(before)
    with pytest.raises(RuntimeError, match="closed"):
        iter(loader)


def test_closing_dali_ends_its_threads_and_frees_its_memory(build):
    def resources():
        """Threads, DALI's own too, and megabytes."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(os.listdir("/proc/self/task")), pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    before, _ = resources()
    memory = []
    for _ in range(10):
        loader = build("dali", "photographs", image_size=448)
        batch = next(iter(loader))
        assert resources()[0] > before
        loader.close()
        assert resources()[0] == before
        assert batch.pixels.float().mean() > 1, "what was handed out stays"
        del batch
        memory.append(resources()[1])
    assert memory[-1] - memory[1] < 100, "each had three batches of 9.6 MB under way"


@pytest.mark.parametrize("kind", KINDS)
def test_breaking_off_epochs_does_not_pile_up(build, kind):
    loader = build(kind)
    expected = epoch_of(loader, 9)
    before = resources()
    for epoch in range(4):
        loader.set_epoch(epoch)
        for batch in loader:
            assert len(batch.index) == 8
            break
    del batch  # torch keeps a handle open for every tensor that came out of a worker
    loader.set_epoch(9)
    assert_no_more_than(before)
    assert_equal(list(loader), expected)


@pytest.mark.parametrize("kind", ["ffcv", "dali"])
def test_an_iterator_begun_anew_ends_the_one_before(build, kind):
    loader = build(kind)
    former = iter(loader)
    first = next(former)
    rest = list(loader)
    assert next(former, None) is None
    assert sorted([*first.index.tolist(), *whole(rest).index.tolist()]) == sorted(
        whole(epoch_of(loader)).index.tolist()
    )


def test_the_number_of_buffers_is_bounded(build):
    loader = build("ffcv", batch_size=2, prefetch=3)
    places = set()
    for epoch in range(5):
        loader.set_epoch(epoch)
        for batch in loader:
            places.add(batch.pixels.data_ptr())
            del batch
    # Three ahead, and one that the caller has or waits for.
    assert len(places) <= 4


def test_the_interpreter_ends_though_a_loader_was_never_closed(folders):
    import subprocess

    program = f"""
import torch
from pipelines.build import build_loader
from pipelines.packed import open_packed
from pipelines.types import AugmentConfig, DataConfig
for kind, form in ({"('ffcv', 'ffcv'), ('torch', 'ffcv')" + (", ('dali', 'dali')" if find_spec("nvidia") else "")}):
    data = DataConfig(loader=kind, batch_size=8, workers=2, image_size=8)
    packed = open_packed({str(folders / "tiny-")!r} + form)
    loader = build_loader(data, AugmentConfig(), packed, "train", train=True, seed=0, device=torch.device("cpu"))
    batches = iter(loader)
    print(len(next(batches).index))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, set(done.stdout.split()), done.stderr) == (0, {"8"}, "")


# Working ahead


def test_run_ahead_keeps_the_order_and_the_bound():
    under_way, most = [0], [0]
    with ThreadPoolExecutor(4) as pool:

        def start(item):
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
            return item, [pool.submit(time.sleep, 0.002 * (item % 3)) for _ in range(2)]

        results = []
        for result in run_ahead(start, iter(range(20)), ahead=3):
            under_way[0] -= 1
            results.append(result)
    assert results == list(range(20))
    assert most[0] == 4, "three ahead, and the one that is waited for"


@pytest.mark.parametrize("ending", ["error", "break"])
def test_run_ahead_leaves_nothing_running(ending):
    running, started = set(), []
    with ThreadPoolExecutor(2) as pool:

        def work(item):
            running.add(item)
            try:
                time.sleep(0.02)
                if item == 2:
                    raise ValueError("two")
            finally:
                running.discard(item)

        def start(item):
            started.append(item)
            return item, [pool.submit(work, item)]

        results = run_ahead(start, range(100), ahead=4)
        assert [next(results), next(results)] == [0, 1]
        if ending == "error":
            with pytest.raises(ValueError, match="two"):
                next(results)
        else:
            results.close()
        assert not running
        assert len(started) <= 7


def test_a_buffer_is_used_again_only_when_nothing_shares_it():
    pool = BufferPool((4, 6))
    first = pool.take()
    view, array = first[1:, :2], first.numpy()
    place = first.data_ptr()
    del first
    assert pool.take().data_ptr() != place
    del view
    held = pool.take()
    assert held.data_ptr() != place
    del array
    places = {held.data_ptr(), (second := pool.take()).data_ptr(), (third := pool.take()).data_ptr()}
    assert place in places
    assert second.shape == third.shape == (4, 6)


# Choosing a loader


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        ("ffcv", {"loader": "resident"}, r"data\.loader=resident reads format resident, .* is ffcv"),
        ("resident", {"loader": "ffcv"}, r"data\.loader=ffcv reads format ffcv, .* is resident"),
        ("ffcv", {"loader": "dali"}, r"data\.loader=dali reads format dali, .* is ffcv"),
        ("ffcv", {"loader": "fast"}, r"data\.loader=fast is none of auto, ffcv, dali, resident, torch"),
        ("ffcv", {"split": "test"}, "has no split 'test', only train, val"),
        ("ffcv", {"batch_size": 0}, r"data\.batch_size=0 must be at least 1"),
        ("ffcv", {"workers": -1}, r"data\.workers=-1 must be at least 0"),
        ("ffcv", {"prefetch": 0}, r"data\.prefetch=0 must be at least 1"),
        ("ffcv", {"image_size": 0}, r"data\.image_size=0 must be at least 1"),
        ("ffcv", {"canvas": 0}, r"data\.canvas=0 must be at least 1"),
        ("ffcv", {"limit": -1}, r"data\.limit=-1 must be at least 0"),
        ("ffcv", {"batch_size": 44}, r"no batch to train on: 43 images, data\.batch_size=44"),
        ("resident", {"canvas": 15}, r"16 pixels long, more than data\.canvas=15: set data\.canvas=16"),
    ],
)
def test_what_cannot_be_built_is_a_user_error(packed, form, changes, message):
    split = changes.pop("split", "train") if "split" in (changes := dict(changes)) else "train"
    data = replace(DATA, **changes)
    with pytest.raises(UserError, match=message):
        build_loader(data, RECIPE, packed("tiny", form), split, train=True, seed=0, device=CPU)


def test_reading_without_dali_says_what_to_do(packed, monkeypatch):
    for module in ("nvidia", "nvidia.dali"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"data\.loader=dali needs NVIDIA DALI.* install .* or set data\.loader=torch"):
        build_loader(DATA, RECIPE, packed("tiny", "dali"), "train", train=True, seed=0, device=CPU)
    torch_data = replace(DATA, loader="torch")
    loader = build_loader(torch_data, RECIPE, packed("tiny", "dali"), "train", train=True, seed=0, device=CPU)
    assert len(next(iter(loader)).index) == 8
    loader.close()


@pytest.mark.parametrize("form", FORMATS)
def test_auto_follows_the_manifest(build, form):
    assert_equal(epoch_of(build("auto", form=form)), epoch_of(build(form)))


def test_resident_and_shards_hold_no_file_open(build, packed):
    before = len(os.listdir("/proc/self/fd"))
    loader = build("resident")
    shards = open_reader(packed("tiny", "dali"), "train")
    assert len(os.listdir("/proc/self/fd")) == before
    assert isinstance(shards, ShardReader)
    assert isinstance(open_reader(packed("tiny", "resident"), "train"), ArrayReader)
    assert len(epoch_of(loader)) == 5


@pytest.mark.parametrize("kind", ["ffcv", "torch"])
def test_no_workers_given_means_one_a_core(build, kind, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    loader = build(kind, workers=0)
    batches = iter(loader)
    next(batches)
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert len(multiprocessing.active_children() if kind == "torch" else names) == 3


# On a GPU


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.mark.gpu
def test_ffcv_feeds_a_gpu_whole_images(build, packed, cuda):
    reader = open_reader(packed("photographs", "ffcv"), "train")
    batches = epoch_of(build("ffcv", "photographs", device=cuda))
    assert {tensor.device.type for tensor in batches[0]} == {"cuda"}
    batch = type(batches[0])(*(tensor.cpu() for tensor in whole(batches)))
    for index, image in zip(batch.index.tolist(), images_of(batch), strict=True):
        np.testing.assert_array_equal(image, reader.image(index))


@pytest.mark.gpu
@pytest.mark.parametrize("crops", ["loader", "device"])
@pytest.mark.parametrize("name", ["tiny", "photographs"])
@pytest.mark.parametrize("hw_decoder_load", [0.0, 0.65])
def test_dali_decodes_and_crops_on_a_gpu_as_on_the_cpu(build, cuda, name, crops, hw_decoder_load):
    options = {"crops": crops, "drop_last": False, "canvas": 150}
    expected = whole(epoch_of(build("dali", name, **options), 2))
    batches = epoch_of(build("dali", name, device=cuda, hw_decoder_load=hw_decoder_load, **options), 2)
    assert {tensor.device.type for batch in batches for tensor in batch} == {"cuda"}
    batch = type(batches[0])(*(tensor.cpu() for tensor in whole(batches)))
    assert all(torch.equal(a, b) for a, b in zip(batch[1:], expected[1:], strict=True))
    pairs = zip(batch.pixels, expected.pixels, batch.size.tolist(), strict=True)
    psnrs = [psnr(a[:, :height, :width], b[:, :height, :width]) for a, b, (height, width) in pairs]
    assert np.median(psnrs) >= 35 and min(psnrs) > 25


@pytest.mark.gpu
def test_dali_on_a_gpu_names_a_damaged_sample(packed, tmp_path, cuda):
    pytest.importorskip("nvidia.dali")
    broken = damaged(packed("photographs", "dali"), tmp_path, halve_height, 17)
    data = replace(DATA, loader="dali")
    with (
        contextlib.closing(build_loader(data, RECIPE, broken, "train", train=False, seed=5, device=cuda)) as loader,
        pytest.raises(UserError, match="sample 17"),
    ):
        epoch_of(loader)


@pytest.mark.gpu
def test_dali_works_beside_the_capture_of_a_graph(build, cuda):
    """As of a training step: DALI's threads allocate and wait meanwhile, which only a thread's own capture allows."""
    expected = whole(epoch_of(build("dali", "photographs", device=cuda), 0))
    loader = build("dali", "photographs", device=cuda)
    loader.set_epoch(0)
    value = torch.zeros(1000, device=cuda)
    received = []
    for batch in loader:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(1000):
                value += 1
        graph.replay()
        received.append(batch)
    assert torch.equal(whole(received).pixels, expected.pixels)
    assert value.unique().tolist() == [1000.0 * len(loader)]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dali"])
def test_batches_on_a_gpu_are_those_on_the_cpu(build, cuda, kind):
    split = "train" if kind != "ffcv" else "val"
    expected = epoch_of(build(kind, split=split))
    batches = epoch_of(build(kind, split=split, device=cuda))
    assert_equal([type(batch)(*(tensor.cpu() for tensor in batch)) for batch in batches], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ffcv", "dali", "torch"])
def test_copies_beside_a_busy_gpu_arrive_whole(build, cuda, kind):
    """The step's stream is kept far behind the host, so that a buffer given out too early would be overwritten."""
    matrix = torch.randn(4096, 4096, device=cuda)

    def checksums(loader, load):
        sums = []
        for epoch in range(8):
            loader.set_epoch(epoch)
            for batch in loader:
                for _ in range(load):
                    matrix @ matrix
                weights = 1 + batch.index % 13
                # Only valid pixels: the rest of a canvas is arbitrary. Integers, so that no order of adding matters.
                rows = torch.arange(batch.pixels.shape[2], device=batch.index.device)
                columns = torch.arange(batch.pixels.shape[3], device=batch.index.device)
                valid = (rows < batch.size[:, :1])[:, :, None] & (columns < batch.size[:, 1:])[:, None]
                pixels = (batch.pixels.long() * valid[:, None, :, :, None]).sum(dim=(1, 2, 3, 4))
                sums.append((pixels * weights).sum() + batch.labels.sum())
        return torch.stack([value.cpu() for value in sums])

    busy = checksums(build(kind, "photographs", device=cuda, prefetch=1), load=6)
    idle = checksums(build(kind, "photographs", device=cuda), load=0)
    assert torch.equal(busy, idle)


@pytest.mark.gpu
def test_resident_refuses_what_does_not_fit(build, cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20_000, 80_000))
    with pytest.raises(UserError, match=r"the train images take .* GiB, cuda has .* free: pack the data with --format"):
        build("resident", device=cuda)
