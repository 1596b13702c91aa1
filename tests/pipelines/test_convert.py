"""Conversion: what is refused, and that a data set appears complete or not at all."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from pipelines.convert import _map_in_order, convert, pack_digits_if_absent, verify
from pipelines.errors import UserError
from pipelines.formats import FORMATS, find_format
from pipelines.formats.ffcv.format import read_table
from pipelines.formats.packed import measure_split, open_packed, write_manifest
from pipelines.sources import load_source
from support.damage import cut_off, damaged
from support.packing import FFCV_FILES, contents, image, spoil

# What is stored


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_images_give_the_same_bytes(folder, tmp_path, format):
    for number in range(80):
        image(number, 33, 44).save(folder / "train/cat" / f"many{number}.png")
    convert("folder", folder, tmp_path / "one", format=format, workers=1)
    convert("folder", folder, tmp_path / "two", format=format, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_manifest_does_not_depend_on_the_machine(folder, tmp_path):
    spoil(folder / "train/cat/0.jpg")
    convert("folder", folder, tmp_path / "out", on_error="skip", max_resolution=100, quality=80, workers=1)
    text = (tmp_path / "out/manifest.json").read_text()
    assert str(tmp_path) not in text
    manifest = json.loads(text)
    assert manifest["options"] == {"max_resolution": 100, "quality": 80}
    assert [(entry["split"], entry["file"]) for entry in manifest["skipped"]] == [("train", "train/cat/0.jpg")]
    assert manifest["splits"]["train"]["max_height"] == 100


def test_digits_are_packed_when_absent_and_left_alone_when_there(tmp_path):
    pack_digits_if_absent(tmp_path / "digits")
    packed = open_packed(tmp_path / "digits", verify=True)
    assert (packed.format, packed.dataset, packed.classes) == ("resident", "digits", tuple("0123456789"))
    assert {name: split.count for name, split in packed.splits.items()} == {"train": 1500, "val": 297}
    before = (tmp_path / "digits/train.npy").stat().st_mtime_ns
    pack_digits_if_absent(tmp_path / "digits")
    assert (tmp_path / "digits/train.npy").stat().st_mtime_ns == before


@pytest.mark.parametrize("format", FORMATS)
def test_arrays_are_stored_losslessly(tmp_path, format):
    convert("digits", None, tmp_path / "out", format=format, workers=1)
    source = load_source("digits").splits["val"]
    samples = list(find_format(format).iter_samples(tmp_path / "out", "val", 0, 297))
    assert all(sample.data == pixels.tobytes() for sample, pixels in zip(samples, source.images, strict=True))


# What is refused


@pytest.mark.parametrize("workers", [1, 2])
def test_an_unusable_image_ends_the_conversion_and_leaves_nothing(folder, tmp_path, workers):
    spoil(folder / "val/dog/2.png")
    with pytest.raises(UserError, match=r"^val/dog/2.png: cannot be decoded: .*--on-error skip"):
        convert("folder", folder, tmp_path / "out", workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_skip_leaves_unusable_images_out_and_says_which(folder, tmp_path):
    spoil(folder / "train/cat/0.jpg")
    (folder / "train/dog/9.jpg").write_bytes(b"")
    (folder / "train/dog/8.jpg").symlink_to("nowhere")
    report = convert("folder", folder, tmp_path / "out", on_error="skip", workers=1)
    assert [entry["file"] for entry in report.skipped] == ["train/cat/0.jpg", "train/dog/8.jpg", "train/dog/9.jpg"]
    assert report.skipped[2] == {"split": "train", "file": "train/dog/9.jpg", "reason": "is empty (0 bytes)"}
    assert report.packed.splits["train"].count == 7
    assert read_table(tmp_path / "out/train.beton").labels.tolist() == [0] * 3 + [1] * 4
    assert json.loads((tmp_path / "out/manifest.json").read_text())["skipped"] == report.skipped


@pytest.mark.parametrize("format", ["ffcv", "resident"])
def test_nothing_usable_is_an_error_even_with_skip(folder, tmp_path, format):
    for path in folder.glob("val/*/*"):
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"none of the 8 images of val can be used; the first: val/cat/0.jpg is not an"):
        convert("folder", folder, tmp_path / "out", on_error="skip", format=format, workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tar"}, "--format tar is none of ffcv, dali, resident"),
        ({"format": "resident", "quality": 90}, "--quality cannot be used with --format resident"),
    ],
)
def test_options_that_do_not_go_together(folder, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        convert("folder", folder, tmp_path / "out", **options)


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_not_a_hang():
    with pytest.raises(UserError, match="a worker was killed"):
        list(_map_in_order(die, range(3), 2))


# The folder at --out


def test_a_packed_data_set_is_replaced_only_with_force(folder, tmp_path):
    convert("folder", folder, tmp_path / "out", format="resident", workers=1)
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="already holds a packed data set; --force replaces it"):
        convert("folder", folder, tmp_path / "out", workers=1)
    assert contents(tmp_path / "out") == before
    spoil(folder / "val/dog/2.png")
    with pytest.raises(UserError, match="cannot be decoded"):
        convert("folder", folder, tmp_path / "out", force=True, workers=1)
    assert contents(tmp_path / "out") == before
    convert("folder", folder, tmp_path / "out", force=True, on_error="skip", workers=1)
    assert set(contents(tmp_path / "out")) == FFCV_FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("kind", ["foreign folder", "packed and foreign", "file"])
def test_a_users_folder_is_never_replaced(folder, tmp_path, kind):
    out = tmp_path / "out"
    if kind == "packed and foreign":
        convert("folder", folder, out, workers=1)
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir(exist_ok=True)
        (out / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is neither empty nor only a packed data set"):
        convert("folder", folder, out, force=True, workers=1)
    assert (out if kind == "file" else out / "thesis.tex").read_text() == "mine"


def test_an_empty_folder_and_a_link_to_one_are_accepted(folder, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    convert("folder", folder, tmp_path / "link", workers=1)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/manifest.json").is_file()


def test_a_second_conversion_to_the_same_place_is_refused(folder, tmp_path):
    from pipelines.formats.staging import staged

    with staged(tmp_path / "out", lambda _: False) as partial:
        (partial / "file").write_text("first")
        with pytest.raises(UserError, match="another conversion is writing here"):
            convert("folder", folder, tmp_path / "out", workers=1)
    assert (tmp_path / "out/file").read_text() == "first"


def test_what_a_kill_between_the_two_renames_left_is_put_back(folder, tmp_path):
    convert("folder", folder, tmp_path / "out", workers=1)
    before = contents(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.former")
    with pytest.raises(UserError, match="already holds"):
        convert("folder", folder, tmp_path / "out", workers=1)
    assert contents(tmp_path / "out") == before


def test_a_conversion_that_is_stopped_between_the_two_renames_puts_back_what_was_there(folder, tmp_path, monkeypatch):
    convert("folder", folder, tmp_path / "out", workers=1)
    before = contents(tmp_path / "out")
    rename = Path.rename

    def stop_at_second(self, target):
        if self.name == ".out.partial":
            raise SystemExit(130)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop_at_second)
    with pytest.raises(SystemExit):
        convert("folder", folder, tmp_path / "out", force=True, workers=1)
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


# Verify


def test_verify_reads_everything(folder, tmp_path):
    convert("folder", folder, tmp_path / "out", workers=1)
    assert verify(tmp_path / "out", workers=1).splits["val"].count == 8
    path = tmp_path / "out/val.beton"
    data = bytearray(path.read_bytes())
    data[int(read_table(path).starts[0]) + 500] ^= 0xFF
    path.write_bytes(data)
    open_packed(tmp_path / "out")
    with pytest.raises(UserError, match=r"val.beton: its SHA-256 is not the manifest's"):
        verify(tmp_path / "out", workers=1)


def test_verify_decodes_every_sample(folder, tmp_path):
    """Also finds damage that was there when the checksums were taken."""
    packed = convert("folder", folder, tmp_path / "out", workers=1).packed
    index = int(read_table(tmp_path / "out/train.beton").jpeg.nonzero()[0][1])
    broken = damaged(packed, tmp_path, cut_off, index, trusted=True)
    broken.splits["train"] = measure_split(broken.dir, "ffcv", "train")
    write_manifest(broken, [])
    with pytest.raises(UserError, match=f"sample {index} of train (is damaged or incomplete|cannot)"):
        verify(broken.dir, workers=1)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    convert("digits", None, tmp_path / "digits", format="resident", workers=1)
    assert (tmp_path / "digits/manifest.json").exists()
    assert "is on a file system without locks (No locks available): nothing keeps another" in capsys.readouterr().err
