"""A packed data set that does not agree with its manifest, or with itself, is refused with one clear line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.convert import convert
from pipelines.errors import UserError
from pipelines.format_dali import iter_samples
from pipelines.format_ffcv import Writer, read_table
from pipelines.images import Sample
from pipelines.packed import FORMATS, holds_packed, measure_split, open_packed, write_manifest


@pytest.fixture(scope="module")
def packed_dirs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("packed")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / "source" / split / name).mkdir(parents=True)
            for number, side in enumerate((20, 80)):
                picture = Image.linear_gradient("L").resize((side + 4, side))
                picture.save(root / "source" / split / name / f"{number}.jpg")
    for format in FORMATS:
        convert("folder", root / "source", root / format, format=format, workers=1)
    return {format: root / format for format in FORMATS}


@pytest.fixture
def copy(packed_dirs, tmp_path) -> Callable[[str], Path]:
    return lambda format: shutil.copytree(packed_dirs[format], tmp_path / format)


def refused(folder: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        open_packed(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def renew_manifest(folder: Path) -> None:
    """Make sizes and checksums agree again, so that only the tables are left to tell."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in manifest["splits"].values():
        for file, entry in split["files"].items():
            entry["bytes"] = (folder / file).stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))


# ------------------------------------------------------------------------------------------------ the folder


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_packed_opens(packed_dirs, format):
    packed = open_packed(packed_dirs[format], verify=True)
    assert (packed.format, packed.dataset, packed.classes) == (format, "folder", ("cat", "dog"))
    assert list(packed.splits) == ["train", "val"]
    split = packed.splits["val"]
    assert (split.count, split.labelled, split.max_height, split.max_width) == (4, True, 80, 84)
    assert open_packed(str(packed_dirs[format])) == packed


def test_no_folder_and_no_manifest(tmp_path):
    refused(tmp_path / "nowhere", r"no such folder; tools/convert.py makes")
    refused(tmp_path, r"no manifest.json: not a packed data set")


@pytest.mark.parametrize("format", FORMATS)
def test_every_file_is_missed_and_measured(copy, format):
    folder = copy(format)
    for path in [path for path in folder.iterdir() if path.name != "manifest.json"]:
        data = path.read_bytes()
        path.unlink()
        refused(folder, f"{path.name}: missing, though the manifest lists it")
        for other in (data[:-1], data + b"x", data[: len(data) // 2], b""):
            path.write_bytes(other)
            refused(
                folder, f"{path.name}: has {len(other):,} bytes, the manifest says {len(data):,}: cut off or replaced"
            )
        path.write_bytes(data)
    open_packed(folder)


@pytest.mark.parametrize("format", ["ffcv", "resident"])
def test_verify_compares_checksums(copy, format):
    folder = copy(format)
    path = folder / ("train.beton" if format == "ffcv" else "train.npy")
    data = bytearray(path.read_bytes())
    place = int(read_table(path).starts[1]) + 400 if format == "ffcv" else -1
    data[place] ^= 1
    path.write_bytes(data)
    open_packed(folder)
    with pytest.raises(UserError, match=f"{path.name}: its SHA-256 is not the manifest's"):
        open_packed(folder, verify=True)


def test_a_manifest_of_another_data_set(copy, packed_dirs, tmp_path):
    convert("digits", None, tmp_path / "digits", workers=1)
    folder = copy("ffcv")
    shutil.copy(tmp_path / "digits/manifest.json", folder / "manifest.json")
    refused(folder, r"train.beton: has [\d,]+ bytes, the manifest says")
    shutil.copy(packed_dirs["resident"] / "manifest.json", folder / "manifest.json")
    refused(folder, r"train-labels.npy: missing|train.npy: missing")


def test_a_folder_with_anything_else_in_it_does_not_hold_a_packed_data_set_alone(copy, tmp_path):
    folder = copy("ffcv")
    assert holds_packed(folder)
    (folder / "val.beton").unlink()  # damaged, but nobody else's
    assert holds_packed(folder)
    (folder / "notes").mkdir()
    assert not holds_packed(folder)
    assert not holds_packed(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------ the manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2 instead of 1; convert the data set again"),
        ({"version": None}, "version None instead of 1"),
        ({"version": True}, "version True instead of 1"),
        ({"extra": 1}, "the manifest must have exactly"),
        ({"format": "tar"}, "format must be one of ffcv, dali, resident"),
        ({"format": ["ffcv"]}, "format must be one of"),
        ({"dataset": 7}, "dataset must be a text"),
        ({"classes": "cat"}, "classes must be texts"),
        ({"classes": [1, 2]}, "classes must be texts"),
        ({"classes": ["cat", "cat"]}, "classes must be different"),
        ({"classes": []}, "splits.train is labelled, but there are no classes"),
        ({"options": {}}, "options must have exactly max_resolution, quality"),
        ({"options.quality": "90"}, "options.quality must be a whole number of at least 1"),
        ({"splits": []}, "splits must be train, perhaps val"),
        ({"splits.other": {}}, "splits must be train, perhaps val"),
        ({"splits.val": {}}, "splits.val must have exactly"),
        ({"splits.train.count": 0}, "splits.train.count must be a whole number of at least 1"),
        ({"splits.train.count": -4}, "splits.train.count must be a whole number"),
        ({"splits.train.count": 4.0}, "splits.train.count must be a whole number"),
        ({"splits.train.count": True}, "splits.train.count must be a whole number"),
        ({"splits.train.count": 2**63}, "splits.train.count must be a whole number"),
        ({"splits.train.labelled": 1}, "splits.train.labelled must be true or false"),
        ({"splits.train.max_height": 0}, "splits.train.max_height must be a whole number"),
        ({"splits.train.files": {"../train.beton": {}}}, "splits.train.files must have exactly train.beton"),
        ({"splits.train.files": {"/etc/passwd": {}}}, "splits.train.files must have exactly train.beton"),
        ({"splits.train.files": ["train.beton"]}, "splits.train.files must be an object"),
        ({"splits.train.files": {"train.beton": {"bytes": 1}}}, "the entry of train.beton must have exactly"),
        ({"splits.train.files": {"train.beton": {"bytes": "1", "sha256": "0" * 64}}}, "the bytes of train.beton must"),
        ({"splits.train.files": {"train.beton": {"bytes": 1, "sha256": "0" * 63}}}, "must be 64 hexadecimal digits"),
        ({"skipped": {}}, "skipped must be a list"),
        ({"skipped": [{"split": "train", "file": "a"}]}, "an entry of skipped must have exactly"),
        ({"skipped": [{"split": "train", "file": "a", "reason": 1}]}, "an entry of skipped must be texts"),
        ({"splits.train.count": 5}, "holds 4 samples, the manifest says 5"),
        ({"splits.train.labelled": False}, "labels 0 to 1, the manifest allows -1 to -1"),
        ({"classes": ["cat"]}, "labels 0 to 1, the manifest allows 0 to 0"),
        ({"splits.train.max_width": 85}, r"greatest height and width \(80, 84\), the manifest says \(80, 85\)"),
    ],
)
def test_a_wrong_manifest_is_refused(copy, change, message):
    folder = copy("ffcv")
    manifest = json.loads((folder / "manifest.json").read_text())
    for key, value in change.items():
        *path, last = key.split(".")
        place = manifest
        for part in path:
            place = place[part]
        place[last] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(folder, message)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_a_manifest_that_is_no_object_is_refused(copy, text):
    folder = copy("ffcv")
    (folder / "manifest.json").write_bytes(text.encode("latin1"))
    refused(folder, "manifest.json: (cannot be read|is no JSON object)")


# ------------------------------------------------------------------------------------------------ the .beton file

HEADER, FIELDS, ROW = 24, 2 * 1041, 24


def put(data: bytearray, place: int, value: int, width: int) -> None:
    data[place : place + width] = value.to_bytes(width, "little")


def row(index: int) -> int:
    """Place of a sample's row in the table: mode, width, height, start of the data; then the label."""
    return HEADER + FIELDS + ROW * index


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data, end: put(data, 0, 3, 2), "version 3 instead of 2"),
        (lambda data, end: put(data, 2, 3, 2), "3 fields instead of 2"),
        (lambda data, end: put(data, 4, 2**21 + 1, 4), "a page size of 2097153"),
        (lambda data, end: put(data, 4, 0, 4), "a page size of 0"),
        (lambda data, end: put(data, 8, 5, 8), "its allocation table is not one of 5 samples"),
        (lambda data, end: put(data, 8, 2**62, 8), "its table lies outside the file"),
        (lambda data, end: put(data, 16, 2**63, 8), "its table lies outside the file"),
        (lambda data, end: put(data, 16, end + 1, 8), "its allocation table is not one of 4 samples"),
        (lambda data, end: put(data, HEADER, 4, 1), "its fields are not image and label"),
        (lambda data, end: put(data, HEADER + 1, 0, 1), "its fields are not image and label"),
        (lambda data, end: put(data, row(1), 2, 1), "an image is neither JPEG nor raw"),
        (lambda data, end: put(data, row(1), 1, 1), "a raw image has too few pixels"),
        (lambda data, end: put(data, row(0) + 1, 0, 2), "an image has no pixels"),
        (lambda data, end: put(data, row(0) + 1, 25, 2), "a raw image has too few pixels"),
        (lambda data, end: put(data, row(2) + 5, 77, 8), "its two tables disagree"),
        (lambda data, end: put(data, row(1) + 3, 60_000, 2), "greatest height and width"),
        (lambda data, end: put(data, row(1) + 16, 2, 8), "labels 0 to 2, the manifest allows 0 to 1"),
        (lambda data, end: put(data, row(1) + 16, 2**64 - 2, 8), "labels -2 to 1"),
        (lambda data, end: put(data, end, 1, 8), "its allocation table is out of order"),
        (lambda data, end: put(data, end + 24 + 16, 0, 8), "an image's data lie outside the file"),
        (lambda data, end: put(data, end + 24 + 16, 2**64 - 1, 8), "an image's data lie outside the file"),
        (lambda data, end: put(data, end + 3 * 24 + 16, end, 8), "an image's data lie outside the file"),
        (lambda data, end: put(data, end + 16, 20 * 24 * 3 + 1, 8), "images' data overlap"),
    ],
)
def test_a_damaged_beton_is_refused(copy, damage, message):
    folder = copy("ffcv")
    path = folder / "train.beton"
    data = bytearray(path.read_bytes())
    damage(data, len(data) - 4 * 24)
    path.write_bytes(data)
    refused(folder, message)


@pytest.mark.parametrize("start", [0, 100, HEADER + FIELDS, 2**40, 2**64 - 10])
def test_a_sample_may_not_lie_outside_the_data(copy, start):
    folder = copy("ffcv")
    path = folder / "train.beton"
    data = bytearray(path.read_bytes())
    put(data, row(0) + 5, start, 8)
    put(data, len(data) - 4 * 24 + 8, start, 8)
    path.write_bytes(data)
    refused(folder, "an image's data lie (outside the file|inside the table)")


@pytest.mark.parametrize("length", [0, 10, 24, 2000, 2106, 2200, 5000])
def test_a_cut_beton_is_refused_even_if_the_manifest_agrees(copy, length):
    folder = copy("ffcv")
    path = folder / "val.beton"
    path.write_bytes(path.read_bytes()[:length])
    renew_manifest(folder)
    if length == 0:
        refused(folder, "the bytes of val.beton must be a whole number of at least 1")
    else:
        refused(folder, "val.beton: damaged or no .beton file")


def test_no_sample_crosses_a_page(tmp_path):
    """ffcv's readers hold whole pages, and would read past one's end."""
    writer = Writer(tmp_path, "train", 5)
    for number, size in enumerate([3 * 10**6] * 5):
        writer.add(Sample(1000, 1000, False, bytes([number]) * size), number)
    writer.close()
    table = read_table(tmp_path / "train.beton")
    assert ((table.starts % 2**23) + table.lengths <= 2**23).all()
    data = bytearray((tmp_path / "train.beton").read_bytes())
    assert [data[start] for start in table.starts] == [0, 1, 2, 3, 4]
    put(data, 4, 2**21, 4)
    (tmp_path / "train.beton").write_bytes(data)
    with pytest.raises(UserError, match="an image's data cross a page's border"):
        read_table(tmp_path / "train.beton")


def test_a_capacity_that_was_not_used_leaves_a_sound_file(tmp_path):
    writer = Writer(tmp_path, "train", 1000)
    writer.add(Sample(1, 1, False, b"abc"), -1)
    writer.close()
    table = read_table(tmp_path / "train.beton")
    assert (table.labels.tolist(), table.sizes.tolist(), table.lengths.tolist()) == ([-1], [[1, 1]], [3])


# ------------------------------------------------------------------------------------------------ the shards


def test_shards_are_numbered_without_a_gap(copy):
    folder = copy("dali")
    manifest = json.loads((folder / "manifest.json").read_text())
    files = manifest["splits"]["train"]["files"]
    assert set(files) == {"train-000000.idx", "train-000000.tar", "train-labels.npy", "train-sizes.npy"}
    for suffix in ("tar", "idx"):
        files[f"train-000002.{suffix}"] = files[f"train-000000.{suffix}"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(folder, "splits.train.files must have exactly train-000000.idx, .*train-000001.tar, train-labels.npy")
    for file in (f"../train-000001.{suffix}" for suffix in ("tar", "idx")):
        files[file] = files.pop(f"train-000002.{file[-3:]}")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(folder, "splits.train.files must have exactly train-000000.idx, train-000000.tar, train-labels.npy")


def test_a_shard_beyond_the_manifest_is_refused(copy):
    folder = copy("dali")
    for suffix in ("tar", "idx"):
        shutil.copy(folder / f"val-000000.{suffix}", folder / f"train-000001.{suffix}")
    refused(
        folder, "train-000001.idx: damaged or no shard of this data set: its samples are not numbered from 000000004"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("v1.2 4", "v1.1 4", "version v1.1 instead of v1.2"),
        ("v1.2 4", "v1.2 5", "it does not list 5 samples of an image and a label"),
        ("v1.2 4", "v1.2 four", "invalid literal"),
        ("v1.2 4", "v1.2", "not enough values to unpack"),
        (" cls ", " txt ", "files of another kind"),
        ("000000001.cls\n", "000000001.cls extra\n", "inhomogeneous|sequence"),
        ("000000001.", "000000007.", "its samples are not numbered from 000000000"),
        ("jpg 512 ", "jpg 1024 ", "its files do not follow each other"),
        ("jpg 512 ", "jpg -512 ", "its files do not follow each other"),
        ("jpg 512 ", "jpg 1e3 ", "invalid literal"),
        ("jpg 512 ", "jpg 99999999999999999999 ", "too large|out of"),
        (" 1 000000000.cls", " 0 000000000.cls", "a file is empty or longer than the shard"),
        (" 1 000000000.cls", " 2 000000000.cls", None),
        (" 1 000000003.cls", " 9000000000000000000 000000003.cls", "a file is empty or longer than the shard"),
        (" 1 000000003.cls", " 5000 000000003.cls", "a file lies outside the shard"),
    ],
)
def test_a_damaged_index_is_refused(copy, old, new, message):
    folder = copy("dali")
    path = folder / "train-000000.idx"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    renew_manifest(folder)
    if message is None:  # only who reads the shard can tell
        open_packed(folder)
        with pytest.raises(UserError, match=r"train-000000\.tar: damaged .*000000000\.cls of 1 bytes where its index"):
            list(iter_samples(folder, "train", 0, 4))
    else:
        refused(folder, f"train-000000.idx: damaged or no shard of this data set: .*({message})")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: bytes(512) + data[512:], "train-000000.tar: .* no header of 000000000.jpg: end of file header"),
        (lambda data: b"x" + data[1:], "train-000000.tar: .* no header of 000000000.jpg: bad checksum"),
        (lambda data: data[:300], "train-000000.idx: .* a file is empty or longer than the shard"),
        (lambda data: data[:4000], "train-000000.idx: .* a file (is empty or longer than|lies outside) the shard"),
    ],
)
def test_a_damaged_shard_is_refused(copy, damage, message):
    folder = copy("dali")
    path = folder / "train-000000.tar"
    path.write_bytes(damage(path.read_bytes()))
    renew_manifest(folder)
    refused(folder, message)


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("train-labels.npy", np.array([0, 0, 1]), r"train-sizes.npy: holds int32 \[4, 2\] instead of int32 \[3, 2\]"),
        ("train-labels.npy", np.array([0, 0, 1, -1]), "which samples are labelled is not what train-labels.npy says"),
        ("train-labels.npy", np.array([0, 0, 1, 2]), "labels 0 to 2, the manifest allows 0 to 1"),
        ("train-sizes.npy", np.zeros((4, 2), np.int32), "train-sizes.npy: an image is empty"),
        ("train-sizes.npy", np.full((4, 2), 80, np.int32), r"greatest height and width \(80, 80\), the manifest says"),
    ],
)
def test_arrays_that_do_not_belong_to_the_shards_are_refused(copy, file, array, message):
    folder = copy("dali")
    np.save(folder / file, array)
    renew_manifest(folder)
    refused(folder, message)


def test_more_labels_than_samples_are_refused(copy):
    folder = copy("dali")
    np.save(folder / "train-labels.npy", np.array([0, 0, 1, 1, 1]))
    np.save(folder / "train-sizes.npy", np.full((5, 2), 80, np.int32))
    renew_manifest(folder)
    refused(folder, "train-000000.tar: the shards hold 4 samples, train-labels.npy has 5")


# ------------------------------------------------------------------------------------------------ the .npy files


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
        ("train.npy", np.array([None] * 4), "damaged or no .npy file"),
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
    refused(folder, "train.npy: damaged or no .npy file")


def test_a_header_that_promises_more_than_the_file_holds(copy):
    folder = copy("resident")
    data = (folder / "train.npy").read_bytes()
    (folder / "train.npy").write_bytes(data.replace(b"(4, 80, 84, 3)", b"(9, 99, 99, 3)"))
    refused(folder, "train.npy: damaged or no .npy file")


def test_unlabelled_images(tmp_path):
    (tmp_path / "source").mkdir()
    Image.new("RGB", (5, 6)).save(tmp_path / "source/1.png")
    packed = convert("folder", tmp_path / "source", tmp_path / "out", workers=1).packed
    assert (packed.classes, packed.splits["train"].labelled) == ((), False)
    assert open_packed(tmp_path / "out") == packed
    assert measure_split(tmp_path / "out", "ffcv", "train") == packed.splits["train"]
    write_manifest(packed, [])
    assert open_packed(tmp_path / "out", verify=True) == packed
