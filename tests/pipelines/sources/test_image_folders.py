"""Which files of a folder are read: each folder once, regular files only, every kind of image that can be decoded."""

import json
import os

import pytest

from pipelines.convert import convert
from pipelines.errors import UserError
from pipelines.sources import load_source
from support.packing import image, touch


def names_and_labels(source, split="train"):
    listed = load_source("folder", source).splits[split]
    return dict(zip(listed.names, listed.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/a/up", "train"),
        ("train/a/up", "."),
        ("train/a/deep/up", "train"),
        ("train/a/same", "train/a"),
        ("train/a/other", "train/b"),
        ("train/b/other", "train/a/deep"),
    ],
)
def test_a_link_into_the_tree_gives_no_image_a_second_class(tmp_path, caplog, link, target):
    touch(tmp_path, "train/a/1.jpg", "train/a/deep/2.jpg", "train/b/3.jpg")
    (tmp_path / link).symlink_to(tmp_path / target)
    assert names_and_labels(tmp_path) == {"train/a/1.jpg": 0, "train/a/deep/2.jpg": 0, "train/b/3.jpg": 1}
    assert f"left out 1 links to folders that are read elsewhere: {link.split('/')[-1]}" in caplog.text


def test_a_folder_outside_is_read_once_and_never_upwards(tmp_path):
    touch(tmp_path, "data/a/1.jpg", "elsewhere/x/2.jpg", "elsewhere/y/3.jpg")
    for name in ("one", "two"):
        (tmp_path / "data/a" / name).symlink_to(tmp_path / "elsewhere/x")
    (tmp_path / "elsewhere/x/up").symlink_to(tmp_path / "elsewhere")
    assert names_and_labels(tmp_path / "data") == {"a/1.jpg": 0, "a/one/2.jpg": 0}


def test_a_class_that_is_a_link_to_another_is_an_error(folder, tmp_path):
    (folder / "train/puppy").symlink_to(folder / "train/dog")
    with pytest.raises(UserError, match=r"^train/puppy: holds no image"):
        convert("folder", folder, tmp_path / "out", workers=1)


def test_a_link_that_leads_to_itself_is_an_unusable_image(folder, tmp_path):
    (folder / "train/cat/loop.jpg").symlink_to("loop.jpg")
    report = convert("folder", folder, tmp_path / "out", on_error="skip", workers=1)
    assert [entry["file"] for entry in report.skipped] == ["train/cat/loop.jpg"]


def test_a_pipe_is_refused_or_skipped_and_never_waited_for(folder, tmp_path):
    os.mkfifo(folder / "train/cat/9.jpg")
    with pytest.raises(UserError, match=r"^train/cat/9.jpg: is not a regular file \(--on-error skip"):
        convert("folder", folder, tmp_path / "out", workers=1)
    report = convert("folder", folder, tmp_path / "out", on_error="skip", workers=1)
    assert report.skipped == [{"split": "train", "file": "train/cat/9.jpg", "reason": "is not a regular file"}]


def test_an_empty_class_folder_is_refused_or_noted(folder, tmp_path):
    (folder / "train/bird").mkdir()
    with pytest.raises(UserError, match=r"^train/bird: holds no image \(.jpg .*\) \(--on-error skip"):
        convert("folder", folder, tmp_path / "out", workers=1)
    report = convert("folder", folder, tmp_path / "out", on_error="skip", workers=1)
    assert report.packed.classes == ("bird", "cat", "dog")
    assert [(entry["split"], entry["file"]) for entry in report.skipped] == [("train", "train/bird")]
    assert json.loads((tmp_path / "out/manifest.json").read_text())["skipped"] == report.skipped


def test_gif_and_webp_are_read(tmp_path):
    (tmp_path / "source").mkdir()
    frames = [image(seed, 20, 30) for seed in (1, 2)]
    frames[0].save(tmp_path / "source/a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "source/b.webp")
    packed = convert("folder", tmp_path / "source", tmp_path / "out", workers=1).packed
    assert packed.splits["train"].count == 2


def test_unsupported_images_are_named(tmp_path, caplog):
    touch(tmp_path, "a/1.jpg", "a/2.HEIC", "a/3.avif", "a/._4.heic", "a/notes.txt")
    assert names_and_labels(tmp_path) == {"a/1.jpg": 0}
    assert (
        "left out 2 images of unsupported kinds (.avif .heic), convert them to PNG first: 2.HEIC, 3.avif" in caplog.text
    )
    assert "ignored 2 files that are not images: ._4.heic, notes.txt" in caplog.text
