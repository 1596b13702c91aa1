"""What the tests of readers and loaders share: small settings, and how batches are compared."""

import multiprocessing
import operator
import os
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import formats
from pipelines.config import AugmentConfig, DataConfig

CPU = torch.device("cpu")
RECIPE = AugmentConfig()
SIDE = 24
DATA = DataConfig(batch_size=8, workers=2, prefetch=2, image_size=SIDE, canvas=256)
FORMATS = list(formats.FORMATS)
KINDS = [*FORMATS, "torch"]


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


def resources():
    """Threads, file handles and child processes of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd")), len(multiprocessing.active_children())


def assert_no_more_than(before):
    """Waits up to 10 seconds, because the thread of a multiprocessing queue ends a moment after the queue is closed."""
    deadline = time.monotonic() + 10
    while any(map(operator.gt, resources(), before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(map(operator.le, resources(), before)), (resources(), before)
