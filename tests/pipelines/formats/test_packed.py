"""A packed data set that does not agree with its manifest is refused with one clear line."""

import json
import shutil

import pytest
from PIL import Image

from pipelines.convert import convert
from pipelines.errors import UserError
from pipelines.formats import FORMATS
from pipelines.formats.ffcv.format import read_table
from pipelines.formats.packed import holds_packed, measure_split, open_packed, write_manifest
from support.packing import refused

# The folder


@pytest.mark.parametrize("format", FORMATS)
def test_a_packed_data_set_opens(packed_dirs, format):
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
def test_a_missing_file_and_a_wrong_size_are_noticed(copy, format):
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
    refused(folder, r"train[^ ]+: has [\d,]+ bytes, the manifest says")
    shutil.copy(packed_dirs["resident"] / "manifest.json", folder / "manifest.json")
    refused(folder, r"train-labels.npy: missing|train.npy: missing")


def test_a_folder_with_anything_else_in_it_does_not_hold_a_packed_data_set_alone(copy, tmp_path):
    folder = copy("ffcv")
    assert holds_packed(folder)
    (folder / "val.beton").unlink()  # damaged, but nothing that does not belong to it
    assert holds_packed(folder)
    (folder / "notes").mkdir()
    assert not holds_packed(folder)
    assert not holds_packed(tmp_path / "nowhere")


# The manifest

ENTRY = {"bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version 1 instead of 2; convert the data set again"),
        ({"version": None}, "version None instead of 2"),
        ({"version": True}, "version True instead of 2"),
        ({"extra": 1}, "the manifest must have exactly"),
        ({"format": "tar"}, "format must be one of ffcv, dali, resident"),
        ({"format": ["ffcv"]}, "format must be one of"),
        ({"dataset": 7}, "dataset must be a string"),
        ({"classes": "cat"}, "classes must be strings"),
        ({"classes": [1, 2]}, "classes must be strings"),
        ({"classes": ["cat", "cat"]}, "classes must be different"),
        ({"classes": []}, "splits.train is labelled, but there are no classes"),
        ({"options": {}}, "options must have exactly max_resolution, quality"),
        ({"options.quality": "90"}, "options.quality must be a whole number of at least 1"),
        ({"options.val_fraction": 1.0}, "options.val_fraction must be a number between 0 and 1"),
        ({"options.val_fraction": None}, "options.val_fraction must be a number between 0 and 1"),
        ({"splits": []}, "splits must be train, optionally val"),
        ({"splits.other": {}}, "splits must be train, optionally val"),
        ({"splits.val": {}}, "splits.val must have exactly"),
        ({"splits.train.count": 0}, "splits.train.count must be a whole number of at least 1"),
        ({"splits.train.count": -4}, "splits.train.count must be a whole number"),
        ({"splits.train.count": 4.0}, "splits.train.count must be a whole number"),
        ({"splits.train.count": True}, "splits.train.count must be a whole number"),
        ({"splits.train.count": 2**63}, "splits.train.count must be a whole number"),
        ({"splits.train.labelled": 1}, "splits.train.labelled must be true or false"),
        ({"splits.train.max_height": 0}, "splits.train.max_height must be a whole number"),
        ({"splits.train.files": {"../train.beton": {}}}, "splits.train.files must have exactly train-crc32"),
        ({"splits.train.files": {"/etc/passwd": {}}}, "splits.train.files must have exactly train-crc32"),
        ({"splits.train.files": ["train.beton"]}, "splits.train.files must be an object"),
        (
            {"splits.train.files": {"train-crc32.npy": ENTRY, "train.beton": {"bytes": 1}}},
            "the entry of train.beton must have exactly",
        ),
        (
            {"splits.train.files": {"train-crc32.npy": ENTRY, "train.beton": ENTRY | {"bytes": "1"}}},
            "the bytes of train.beton must",
        ),
        (
            {"splits.train.files": {"train-crc32.npy": ENTRY, "train.beton": ENTRY | {"sha256": "0" * 63}}},
            "must be 64 hexadecimal digits",
        ),
        ({"skipped": {}}, "skipped must be a list"),
        ({"skipped": [{"split": "train", "file": "a"}]}, "an entry of skipped must have exactly"),
        ({"skipped": [{"split": "train", "file": "a", "reason": 1}]}, "an entry of skipped must hold strings"),
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
    refused(folder, "manifest.json: (cannot be read|is not a JSON object)")


def test_unlabelled_images(tmp_path):
    (tmp_path / "source").mkdir()
    Image.new("RGB", (5, 6)).save(tmp_path / "source/1.png")
    packed = convert("folder", tmp_path / "source", tmp_path / "out", workers=1).packed
    assert (packed.classes, packed.splits["train"].labelled) == ((), False)
    assert open_packed(tmp_path / "out") == packed
    assert measure_split(tmp_path / "out", "ffcv", "train") == packed.splits["train"]
    write_manifest(packed, [])
    assert open_packed(tmp_path / "out", verify=True) == packed
