"""Every loader gives the same samples, order, state and errors."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

from pipelines.augment.crop import crop_resize
from pipelines.augment.views import Augment, pixel_boxes
from pipelines.config import AugmentConfig
from pipelines.errors import UserError
from pipelines.formats.ffcv.loader import FfcvLoader
from pipelines.formats.ffcv.reader import BetonReader
from pipelines.formats.packed import open_packed, open_reader
from pipelines.loading.build import build_loader
from pipelines.loading.reference import TorchLoader
from pipelines.loading.sampler import Sampler
from support.damage import cut_off, damaged, destroy_start
from support.loading import (
    CPU,
    DATA,
    FORMATS,
    KINDS,
    RECIPE,
    SIDE,
    assert_equal,
    epoch_of,
    images_of,
    psnr,
    whole,
)

# Pixels


@pytest.mark.parametrize("form", FORMATS)
def test_the_reference_is_torchvision_with_the_parameters_of_augment(build, packed, form):
    config = AugmentConfig(interpolation="bicubic")
    batch = whole(epoch_of(build("torch", "photographs", form, augment=config), 2))
    reader = open_reader(packed("photographs", form), "train")
    size = torch.from_numpy(reader.sizes[batch.index])
    boxes = pixel_boxes(Augment(config, SIDE).sample_crops(5, 2, batch.index, size), size).tolist()
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
            boxes = pixel_boxes(Augment(augment, SIDE).sample_crops(5, 1, batch.index, batch.size), batch.size)
            crops = crop_resize(views[:, 0], boxes, SIDE, interpolation).unflatten(0, (2, -1))
            views = (255 * crops).round().permute(1, 0, 3, 4, 2)
        psnrs = [psnr(*pair) for pair in zip(views.flatten(0, 1), reference.pixels.flatten(0, 1), strict=True)]
        assert np.median(psnrs) >= 35 and min(psnrs) > 25, kind


@pytest.mark.parametrize("kind", ["ffcv", "dali"])
@pytest.mark.parametrize("crops", ["loader", "device"])
def test_data_crops_decides_who_cuts_the_crops(build, kind, crops):
    batch = next(iter(build(kind, crops=crops)))
    assert batch.pixels.shape == ((8, 2, SIDE, SIDE, 3) if crops == "loader" else (8, 1, 16, 16, 3))
    assert batch.size.unique().tolist() == [SIDE if crops == "loader" else 16]


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


@pytest.mark.parametrize("kind", ["ffcv", "dali"])
def test_a_batch_stays_as_it_is_while_the_loader_goes_on(build, kind):
    loader = build(kind)
    loader.set_epoch(0)
    kept, copies = [], []
    for batch in loader:
        kept.append(batch.pixels[:, :1])  # a slice also keeps the memory alive
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
def test_processes_share_each_batch(build, kind, split):
    # Six processes: the last batch of val has one image, so five processes get none.
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


def test_a_limit_of_ones_own_holds_for_every_split(packed):
    data = packed("tiny", "resident")
    for split in ("train", "val"):
        with contextlib.closing(
            build_loader(DATA, RECIPE, data, split, train=False, seed=5, device=CPU, limit=4)
        ) as loader:
            assert len(whole(epoch_of(loader)).index) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_taken_in_mid_epoch_continues_exactly(build, kind):
    loader = build(kind)
    loader.set_epoch(2)
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict()
    assert state == {"seed": 5, "epoch": 2, "batches": 2}, "prefetched batches do not count"
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
    loader.load_state_dict(state)  # during an iteration
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


# Failure


@pytest.mark.parametrize(("kind", "form"), [("ffcv", "ffcv"), ("dali", "dali"), ("torch", "ffcv"), ("torch", "dali")])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("trusted", [True, False])
def test_a_damaged_jpeg_stops_the_loader_at_its_batch(packed, tmp_path, kind, form, train, trusted):
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    change = destroy_start if kind == "dali" else cut_off
    broken = damaged(packed("photographs", form), tmp_path, change, 17, trusted=trusted)
    data = replace(DATA, loader=kind, drop_last=False)
    with contextlib.closing(build_loader(data, RECIPE, broken, "train", train=train, seed=5, device=CPU)) as loader:
        place = next(number for number, index in enumerate(loader.sampler.remaining()) if 17 in index)
        for _ in range(2):  # the error is raised again at the same place
            loader.set_epoch(0)
            seen = []
            with pytest.raises(UserError, match="sample 17"):
                seen.extend(batch.index.tolist() for batch in loader)
            assert len(seen) == loader.state_dict()["batches"] == place


class FailingReader(BetonReader):
    """Fails at one sample, after other workers have moved on."""

    def decode(self, index, *rest):
        if index == 17:
            time.sleep(0.3)
            raise OSError("the disk is gone")
        return super().decode(index, *rest)


@pytest.mark.parametrize("kind", [FfcvLoader, TorchLoader])
def test_a_late_exception_of_a_worker_names_the_sample(packed, kind):
    tiny = packed("tiny", "ffcv")
    reader, sampler = FailingReader(tiny.dir, "train"), Sampler(43, DATA.batch_size, seed=5, drop_last=False)
    with (
        contextlib.closing(
            kind(tiny, "train", reader, sampler, DATA, Augment(RECIPE, SIDE), CPU, train=True)
        ) as loader,
        pytest.raises(RuntimeError, match="sample 17: the disk is gone") as caught,
    ):
        epoch_of(loader)
    notes = "".join(getattr(caught.value, "__notes__", []))
    assert "the disk is gone" in str(caught.value.__cause__) or "in decode" in notes


def test_a_torch_worker_leaves_signals_to_its_parent(build):
    loader = build("torch", drop_last=False, workers=1)
    batches = iter(loader)
    received = [next(batches).index.tolist()]
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
    received.extend(batch.index.tolist() for batch in batches)
    assert sorted(index for batch in received for index in batch) == list(range(43))


# Choosing a loader


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        ("ffcv", {"loader": "resident"}, r"data\.loader=resident reads format resident, .* is ffcv"),
        ("resident", {"loader": "ffcv"}, r"data\.loader=ffcv reads format ffcv, .* is resident"),
        ("ffcv", {"loader": "dali"}, r"data\.loader=dali reads format dali, .* is ffcv"),
        ("ffcv", {"loader": "fast"}, r"data\.loader=fast is none of auto, ffcv, dali, resident, torch"),
        ("ffcv", {"split": "test"}, "has no split 'test', only train, val"),
        ("ffcv", {"batch_size": 0}, r"data\.batch_size must be at least 1, not 0"),
        ("ffcv", {"workers": -1}, r"data\.workers must be at least 0, not -1"),
        ("ffcv", {"prefetch": 0}, r"data\.prefetch must be at least 1, not 0"),
        ("ffcv", {"image_size": 0}, r"data\.image_size must be at least 4, not 0"),
        ("ffcv", {"canvas": 0}, r"data\.canvas must be at least 4, not 0"),
        ("ffcv", {"limit": -1}, r"data\.limit must be at least 0, not -1"),
        ("ffcv", {"batch_size": 44}, r"no batch to train on: 43 images, data\.batch_size=44"),
        ("resident", {"canvas": 15}, r"16 pixels long, more than data\.canvas=15: set data\.canvas=16"),
    ],
)
def test_what_cannot_be_built_is_a_user_error(packed, form, changes, message):
    split = changes.pop("split", "train") if "split" in (changes := dict(changes)) else "train"
    data = replace(DATA, **changes)
    with pytest.raises(UserError, match=message):
        build_loader(data, RECIPE, packed("tiny", form), split, train=True, seed=0, device=CPU)


@pytest.mark.parametrize("form", FORMATS)
def test_auto_follows_the_manifest(build, form):
    if form == "dali":
        pytest.importorskip("nvidia.dali")
    assert_equal(epoch_of(build("auto", form=form)), epoch_of(build(form)))


@pytest.mark.parametrize("kind", ["ffcv", "torch"])
def test_the_default_is_one_worker_per_core(build, kind, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    loader = build(kind, workers=0)
    batches = iter(loader)
    next(batches)
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert len(multiprocessing.active_children() if kind == "torch" else names) == 3


# On a GPU


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
    """The step's stream is kept far behind the host, so that a buffer reused too early would be overwritten."""
    matrix = torch.randn(4096, 4096, device=cuda)

    def checksums(loader, load):
        sums = []
        for epoch in range(8):
            loader.set_epoch(epoch)
            for batch in loader:
                for _ in range(load):
                    matrix @ matrix
                weights = 1 + batch.index % 13
                # Only valid pixels: the rest is arbitrary. Integers, so that the order of summation does not matter.
                rows = torch.arange(batch.pixels.shape[2], device=batch.index.device)
                columns = torch.arange(batch.pixels.shape[3], device=batch.index.device)
                valid = (rows < batch.size[:, :1])[:, :, None] & (columns < batch.size[:, 1:])[:, None]
                pixels = (batch.pixels.long() * valid[:, None, :, :, None]).sum(dim=(1, 2, 3, 4))
                sums.append((pixels * weights).sum() + batch.labels.sum())
        return torch.stack([value.cpu() for value in sums])

    busy = checksums(build(kind, "photographs", device=cuda, prefetch=1), load=6)
    idle = checksums(build(kind, "photographs", device=cuda), load=0)
    assert torch.equal(busy, idle)


def test_without_room_in_shared_memory_the_torch_loader_says_so(packed_dirs, monkeypatch):
    """Its workers would wait for ever."""
    packed = open_packed(packed_dirs["resident"])
    data = replace(DATA, loader="torch", workers=1, batch_size=1)
    free = shutil.disk_usage("/dev/shm")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(UserError, match=r"/dev/shm has .* MB free, and data.loader=torch keeps"):
        build_loader(data, RECIPE, packed, "train", train=True, seed=0, device=CPU)


def test_workers_outlive_a_groups_signals(packed_dirs):
    """Else the batches that the main process waits for, before it saves, would not come."""
    packed = open_packed(packed_dirs["resident"])
    data = replace(DATA, loader="torch", workers=1, batch_size=1)
    with contextlib.closing(build_loader(data, RECIPE, packed, "train", train=True, seed=0, device=CPU)) as loader:
        batches = iter(loader)
        next(batches)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, number)
        assert len(list(batches)) == len(loader) - 1
    assert not multiprocessing.active_children()
