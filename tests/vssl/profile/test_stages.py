"""What is measured of a run, what the figures mean, and which bottleneck they name."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from pipelines.batch import Batch
from pipelines.convert import convert
from vssl.profile.floors import count_flops
from vssl.profile.stages import StageProfiler

QUICK = {"repeats": 2, "seconds": 0.02}


def pack_noise(folder, format, side, count):
    """A packed data set of noise images, ``side`` x ``side`` pixels, as JPEGs of the highest quality."""
    generator = np.random.default_rng(0)
    source = folder / "source"
    source.mkdir()
    for number in range(count):
        pixels = generator.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(source / f"{number:03d}.jpg", quality=95)
    convert("folder", source, folder / "packed", format=format, workers=1)
    return folder / "packed"


def measured(config, change=None):
    profiler = StageProfiler(config, **QUICK)
    if change is not None:
        change(profiler)
    try:
        return profiler.measure()
    finally:
        profiler.close()


class Throttled:
    """A loader that waits before it hands out a batch."""

    def __init__(self, loader, seconds):
        self._loader, self._seconds = loader, seconds

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def __len__(self):
        return len(self._loader)

    def __iter__(self):
        for batch in self._loader:
            time.sleep(self._seconds)
            yield batch


def test_a_throttled_reader_is_found(config):
    def throttle(profiler):
        profiler.loader = Throttled(profiler.loader, seconds=0.5)

    report = measured(config("data.batch_size=8"), throttle)
    assert report["bottleneck"] == "load"
    assert report["stages"]["load"]["images_per_second"] < 16
    assert report["ceiling_fraction"] < 0.5


def test_slow_decoding_is_found(config, tmp_path):
    pytest.importorskip("ffcv")
    data = pack_noise(tmp_path, "ffcv", side=1200, count=8)
    report = measured(config(f"data.dir={data}", "data.batch_size=8", "data.workers=1", "data.limit=0"))
    assert report["bottleneck"] in ("decode", "load")
    assert report["stages"]["decode"]["images_per_second"] < report["stages"]["step"]["images_per_second"]
    assert min(report["floors"], key=report["floors"].get) == "decode"


def test_an_oversized_augmentation_is_found(config, tmp_path):
    # Views of 8 pixels from images of 512: each pixel of a view is the mean of thousands.
    data = pack_noise(tmp_path, "resident", side=512, count=8)
    report = measured(config(f"data.dir={data}", "data.batch_size=8", "data.limit=0"))
    assert report["bottleneck"] == "augment"
    assert "augment." in report["advice"] or "data.canvas" in report["advice"]


def test_an_ordinary_run_waits_for_the_step(config):
    report = measured(config("data.batch_size=16", "data.image_size=32"))
    assert report["bottleneck"] == "step"
    assert "model.backbone" in report["advice"]


def test_an_image_costs_about_eight_forwards(config):
    profiler = StageProfiler(config("data.image_size=32", "method.name=byol"), **QUICK)
    batch = next(iter(profiler.loader))
    encoder = profiler.step.method.student
    views = profiler.step.views(batch.pixels, batch.size, batch.index).full
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(views)
    forward = counter.get_total_flops() / len(views)
    counted = count_flops(profiler.step, batch)
    profiler.close()
    # A forward of the teacher per view, and three forwards (one forward, two backward) of the student per view, less
    # the first layer's gradient to its input, plus a predictor.
    assert 7 * forward < counted < 8.2 * forward


def test_flops_count_images_and_not_batches(config):
    profiler = StageProfiler(config(), **QUICK)
    batch = next(iter(profiler.loader))
    few = Batch(*(part[:8] for part in batch))
    assert count_flops(profiler.step, batch) == count_flops(profiler.step, few)
    profiler.close()


@pytest.mark.gpu
@pytest.mark.parametrize(("format", "module"), [("resident", "torch"), ("ffcv", "ffcv"), ("dali", "nvidia.dali")])
def test_what_is_decoded_on_the_host_is_copied(config, tmp_path, format, module):
    pytest.importorskip(module)
    data = pack_noise(tmp_path, format, side=32, count=16)
    report = measured(config(f"data.dir={data}", "data.batch_size=8", "data.limit=0", "train.device=cuda"))
    assert ("copy" in report["stages"]) == ("copy" in report["floors"]) == (format == "ffcv")
