"""Small real data and small configs, shared by the tests."""

import os

# Small tensors gain nothing from threads, and on a busy machine threads lose much time waiting for each other. Set
# before torch is imported, and inherited by the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import functools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.convert import convert
from pipelines.formats.packed import open_packed
from pipelines.loading.build import build_loader
from support.loading import CPU, DATA, FORMATS, RECIPE, photographs, save
from support.packing import image
from support.processes import processes  # noqa: F401 (a fixture)
from support.training import finish, small_config

# Packed data


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A packed data set: scikit-learn's digits, resident format."""
    out = tmp_path_factory.mktemp("packed") / "digits"
    convert("digits", None, out, format="resident", workers=1)
    return out


@pytest.fixture
def folder(tmp_path):
    """Two classes in train and val, unpacked; JPEG and PNG, of several sizes, small and large."""
    sizes = [(70, 90), (20, 30), (120, 65), (8, 8)]
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            place = tmp_path / "source" / split / name
            place.mkdir(parents=True)
            for number, (height, width) in enumerate(sizes):
                suffix = ("jpg", "png")[(number + label) % 2]
                image(10 * label + number, height, width).save(place / f"{number}.{suffix}")
    return tmp_path / "source"


@pytest.fixture(scope="session")
def packed_dirs(tmp_path_factory):
    """A packed data set for each format: train and val with two classes, each with two images of 20 and of 80 rows."""
    root = tmp_path_factory.mktemp("packed")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / "source" / split / name).mkdir(parents=True)
            for number, side in enumerate((20, 80)):
                picture = Image.linear_gradient("L").resize((side + 4, side))
                picture.save(root / "source" / split / name / f"{number}.jpg")
    for form in FORMATS:
        convert("folder", root / "source", root / form, format=form, workers=1)
    return {form: root / form for form in FORMATS}


@pytest.fixture
def copy(packed_dirs, tmp_path):
    """``copy(format)``: a copy of one of ``packed_dirs`` that a test may damage."""
    return lambda form: shutil.copytree(packed_dirs[form], tmp_path / form)


# Loaders


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
    """``packed(name, format)``; skips the test if it needs ffcv's decoder and ffcv is not installed."""

    def open_one(name, form):
        if (name, form) == ("photographs", "ffcv"):
            pytest.importorskip("ffcv")
        return open_packed(folders / f"{name}-{form}")

    return open_one


@pytest.fixture
def build(packed):
    """``build(loader, name or packed data set, **changes of DATA, or of build_loader's arguments)``; closed after the
    test."""
    with contextlib.ExitStack() as stack:

        def build_one(kind, name="tiny", form=None, split="train", augment=RECIPE, **changes):
            arguments = {"train": split == "train", "seed": 5, "device": CPU, "rank": 0, "world_size": 1}
            arguments |= {key: changes.pop(key) for key in list(changes) if key in arguments}
            form = form or ("ffcv" if kind == "torch" else kind)
            if kind == "dali":
                pytest.importorskip("nvidia.dali")
            data = replace(DATA, loader=kind, **changes)
            source = packed(name, form) if isinstance(name, str) else name
            loader = build_loader(data, augment, source, split, **arguments)
            stack.callback(loader.close)
            return loader

        yield build_one


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def cuda():
    """The GPU; only for tests marked ``gpu``."""
    return torch.device("cuda")


# Runs


@pytest.fixture
def compile_with(monkeypatch):
    """``compile_with(backend)``: from now on compile with a backend that generates no code, which would take long.
    What is traced, split, exchanged and compiled again is decided before that."""
    whole = torch.compile
    torch.compiler.reset()
    yield lambda backend: monkeypatch.setattr(torch, "compile", functools.partial(whole, backend=backend))
    torch.compiler.reset()


@pytest.fixture
def config(digits, tmp_path):
    """``config(*overrides)``: a small config whose run directory is ``tmp_path / "run"`` unless overridden."""
    return lambda *overrides: small_config(digits, tmp_path / "run", *overrides)


@pytest.fixture
def finished(config):
    """The directory of a finished run."""
    return finish(config("train.epochs=1", "eval.every=1"))
