""".npy files: what is stored, and that damaged ones are refused."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.convert import convert
from pipelines.errors import UserError
from pipelines.formats.resident.format import open_arrays
from pipelines.images import decode
from pipelines.sources import load_source
from support.packing import image, refused, renew_manifest


def test_resident_lays_images_top_left_on_the_largest_canvas(folder, tmp_path):
    packed = convert("folder", folder, tmp_path / "out", format="resident", workers=1).packed
    source = load_source("folder", folder).splits["train"]
    pixels, labels, sizes = open_arrays(tmp_path / "out", "train")
    assert (pixels.shape, pixels.dtype) == ((8, 120, 90, 3), np.uint8)
    assert (packed.splits["train"].max_height, packed.splits["train"].max_width) == (120, 90)
    assert labels.tolist() == source.labels.tolist()
    for row, (height, width), path in zip(pixels, sizes.tolist(), source.images, strict=True):
        original = np.asarray(decode(Path(path).read_bytes())[0])
        assert original.shape == (height, width, 3)
        assert (row[:height, :width] == original).all()
        assert not row[height:].any() and not row[:, width:].any()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if "train" in path.name) == [
        "train-crc32.npy",
        "train-labels.npy",
        "train-sizes.npy",
        "train.npy",
    ]


def test_resident_refuses_large_images_unless_a_resolution_is_given(folder, tmp_path):
    image(0, 20, 513).save(folder / "train/cat/large.jpg")
    with pytest.raises(UserError, match=r"train/cat/large.jpg: has 513 x 20 pixels, more than 512 a side: give --max-"):
        convert("folder", folder, tmp_path / "out", format="resident", workers=1)
    packed = convert("folder", folder, tmp_path / "out", format="resident", max_resolution=64, workers=1).packed
    assert (packed.splits["train"].max_height, packed.splits["train"].max_width) == (64, 64)


def test_resident_refuses_what_the_disk_cannot_hold(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"train would take .* GB, .* are free"):
        convert("folder", folder, tmp_path / "out", format="resident", workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        (
            "train.npy",
            np.zeros((4, 80, 84, 3), np.int8),
            r"holds int8 \[4, 80, 84, 3\] instead of uint8 \[any, any, any, 3\]",
        ),
        ("train.npy", np.zeros((4, 80, 84), np.uint8), r"holds uint8 \[4, 80, 84\]"),
        ("train.npy", np.zeros((4, 80, 84, 3), np.uint8, order="F"), r"holds uint8"),
        (
            "train.npy",
            np.zeros((5, 80, 84, 3), np.uint8),
            r"train-labels.npy: holds int64 \[4\] instead of int64 \[5\]",
        ),
        ("train.npy", np.zeros((4, 79, 84, 3), np.uint8), "an image is empty or larger than the canvas"),
        ("train.npy", np.array([None] * 4), "damaged or not a .npy file"),
        ("train-labels.npy", np.array([0, 0, 1, 2]), "labels 0 to 2, the manifest allows 0 to 1"),
        ("train-labels.npy", np.array([0, 0, -1, 1]), "labels -1 to 1, the manifest allows 0 to 1"),
        ("train-labels.npy", np.array([0, 0, 1, 1], ">i8"), "holds >i8"),
        ("train-sizes.npy", np.full((4, 2), 85, np.int32), "an image is empty or larger than the canvas"),
        ("train-sizes.npy", np.zeros((4, 2), np.int32), "an image is empty or larger than the canvas"),
        ("train-sizes.npy", np.full((4, 2), 80, np.int32), r"greatest height and width \(80, 80\), the manifest says"),
        ("train-sizes.npy", np.full((4, 2), 80, np.int64), "instead of int32"),
    ],
)
def test_wrong_arrays_are_refused(copy, file, array, message):
    folder = copy("resident")
    np.save(folder / file, array)
    renew_manifest(folder)
    refused(folder, message)


@pytest.mark.parametrize("content", [b"garbage", b"\x93NUMPY\x01\x00\xff\xff", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_array_is_refused(copy, content):
    folder = copy("resident")
    (folder / "train.npy").write_bytes(content)
    renew_manifest(folder)
    refused(folder, "train.npy: damaged or not a .npy file")


def test_a_header_that_promises_more_than_the_file_holds(copy):
    folder = copy("resident")
    data = (folder / "train.npy").read_bytes()
    (folder / "train.npy").write_bytes(data.replace(b"(4, 80, 84, 3)", b"(9, 99, 99, 3)"))
    refused(folder, "train.npy: damaged or not a .npy file")
