"""What a new packed format and a new source cost: one module and one line each. Proved on a copy of the project."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.formats import FORMATS, find_format
from pipelines.formats.protocol import Format

ROOT = Path(__file__).resolve().parents[1]

FORMAT = '''
"""Pixels of images of one size, in an .npz file."""

import numpy as np

from pipelines.formats.checksums import Checksums, checksum, checksum_file
from pipelines.images import Sample


class Writer:
    raw_pixels, max_side, stores_jpegs, keep_small_jpegs = 2**62, 8, False, False

    def __init__(self, folder, split, capacity):
        self.folder, self.split, self.samples, self.labels = folder, split, [], []

    def add(self, sample, label):
        self.samples.append(sample)
        self.labels.append(label)

    def close(self):
        pixels = [np.frombuffer(one.data, np.uint8).reshape(one.height, one.width, 3) for one in self.samples]
        sums = [checksum(label, *image.shape[:2], image) for label, image in zip(self.labels, pixels)]
        np.savez(self.folder / f"{self.split}.npz", pixels=np.stack(pixels), labels=np.array(self.labels))
        np.save(self.folder / checksum_file(self.split), np.array(sums, np.uint32))


class Reader:
    def __init__(self, folder, split):
        self.path = folder / f"{split}.npz"
        content = np.load(self.path)
        self.pixels, self.labels = content["pixels"], content["labels"]
        self.sizes = np.full((len(self.labels), 2), self.pixels.shape[1:3], np.int32)
        self.checksums = Checksums(folder, split, self.labels, self.sizes)

    def image(self, index):
        self.checksums.check(index, self.pixels[index], self.path)
        return self.pixels[index]

    def close(self):
        pass


open_reader = Reader


def file_names(split, present):
    return {f"{split}.npz", checksum_file(split)}


def read_labels_and_sizes(folder, split):
    reader = Reader(folder, split)
    return reader.labels, reader.sizes


def iter_samples(folder, split, start, stop):
    reader = Reader(folder, split)
    for index in range(start, stop):
        image = reader.image(index)
        yield Sample(*image.shape[:2], False, image.tobytes())


def find_loader():
    return None
'''

SOURCE = '''
"""Images of one brightness each."""

import numpy as np

from pipelines.sources.base import Source, from_arrays


def load(dataset, source):
    levels = np.array([10, 20, 200, 210], np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (4, 5, 6, 3))
    return Source(("dark", "light"), {"train": from_arrays("train", pixels, np.array([0, 0, 1, 1]))})
'''

PROGRAM = """
import torch
from pipelines.config import AugmentConfig, DataConfig
from pipelines.formats.packed import open_packed
from pipelines.loading.build import build_loader

packed = open_packed("data/plates-plain", verify=True)
arguments = {"train": False, "seed": 0, "device": torch.device("cpu")}
for name in ("auto", "plain", "torch"):
    data = DataConfig(loader=name, batch_size=4, workers=1)
    loader = build_loader(data, AugmentConfig(), packed, "train", **arguments)
    (batch,) = loader
    loader.close()
    levels = batch.pixels.amax((1, 2, 3, 4))
    print(type(loader).__name__, batch.labels.tolist(), list(batch.pixels.shape), levels.tolist())
"""


@pytest.fixture
def project(tmp_path):
    """A copy of the data's part of the project."""
    for folder in ("pipelines", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def add_line(path, before, line):
    """Put one line in front of another."""
    lines = path.read_text().splitlines()
    lines.insert(lines.index(before), line)
    path.write_text("\n".join(lines) + "\n")


def run(project, *arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_format_and_a_source_cost_a_module_and_a_line_each(project):
    (project / "pipelines/formats/plain.py").write_text(FORMAT)
    add_line(project / "pipelines/formats/__init__.py", '    "resident",', '    "plain",')
    (project / "pipelines/sources/plates.py").write_text(SOURCE)
    add_line(project / "pipelines/sources/__init__.py", '    "folder": "folder",', '    "plates": "plates",')

    out = run(project, "tools/convert.py", "--dataset", "plates", "--format", "plain", "--workers", "1")
    assert "data/plates-plain: plates as plain, 2 classes" in out and "train: 4 images up to 6 x 5" in out
    out = run(project, "tools/convert.py", "--dataset", "plates", "--format", "plain", "--workers", "1", "--verify")
    assert "every checksum agrees" in out
    batch = "TorchLoader [0, 0, 1, 1] [4, 1, 5, 6, 3] [10, 20, 200, 210]\n"
    assert run(project, "-c", PROGRAM) == 3 * batch


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_offers_what_the_protocol_describes(name):
    assert isinstance(find_format(name), Format)
