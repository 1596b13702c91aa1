"""Folders as people have them: names of splits, classes with such names, what NAS and systems add, unsorted images."""

import unicodedata

import pytest

from pipelines.errors import UserError
from pipelines.sources import load_source
from pipelines.sources.held_out import hold_out
from support.packing import touch


def layout(root, *folders):
    """Two images in each folder, and what the source makes of them: classes, and images per class of each split."""
    touch(root, *(f"{folder}/{i}.jpg" for folder in folders for i in range(2)))
    source = load_source("folder", root)
    return source.classes, {
        name: [int((split.labels == label).sum()) for label in range(len(source.classes))]
        for name, split in source.splits.items()
    }


ANIMALS = ("cat", "dog")
BOTH = (ANIMALS, {"train": [2, 2], "val": [2, 2]})


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Training", "Testing"),
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("training", "validation"),
        ("train", "valid"),
        ("train", "Val"),
        ("train2017", "val2017"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("my-set/train", "my-set/val"),
        ("Data/CLS-LOC/train", "Data/CLS-LOC/val"),
    ],
)
def test_the_usual_names_of_splits(tmp_path, caplog, train, val):
    assert layout(tmp_path, *(f"{split}/{name}" for split in (train, val) for name in ANIMALS)) == BOTH
    assert "note: " in caplog.text or {train, val} <= {"train", "val"}


def test_the_names_that_need_no_word(tmp_path, caplog):
    assert layout(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog") == BOTH
    assert not caplog.text


def test_val_is_preferred_to_test_under_any_name(tmp_path, caplog):
    layout(tmp_path, "train/a", "train/b", "valid/a", "test/b")
    assert load_source("folder", tmp_path).splits["val"].names == ["valid/a/0.jpg", "valid/a/1.jpg"]
    assert "ignored: test" in caplog.text


@pytest.mark.parametrize("names", [("bus", "car", "train"), ("paper", "test", "val"), ("bus", "val")])
def test_a_class_named_like_a_split(tmp_path, caplog, names):
    assert layout(tmp_path, *names) == (names, {"train": [2] * len(names)})
    assert "read as a class" in caplog.text or "read as classes" in caplog.text


def test_a_class_named_like_a_split_below_the_splits(tmp_path):
    names = ("bus", "train")
    found = layout(tmp_path, *(f"{split}/{name}" for split in ("train", "val") for name in names))
    assert found == (names, {"train": [2, 2], "val": [2, 2]})


def test_folders_that_may_be_classes_or_splits_are_refused(tmp_path):
    with pytest.raises(UserError, match="hold images, as bus do, so they may be classes or splits"):
        layout(tmp_path, "bus", "train", "val")


def test_unlabelled_splits_beside_other_folders(tmp_path):
    assert layout(tmp_path, "train2017", "val2017", "annotations/x") == ((), {"train": [], "val": []})


@pytest.mark.parametrize("names", [("bullet_train", "car"), ("test_tube", "flask"), ("train_station", "airport")])
def test_names_that_only_contain_such_a_word_are_classes(tmp_path, names):
    assert layout(tmp_path, *names) == (tuple(sorted(names)), {"train": [2, 2]})


JUNK = ("@eaDir", "#recycle", "$RECYCLE.BIN", "_thumbs", "lost+found", "System Volume Information", "__MACOSX")


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("inside", [True, False])
def test_what_systems_add_is_left_out_and_counted(tmp_path, caplog, junk, inside):
    places = [f"cat/{junk}/0.jpg", f"dog/{junk}/0.jpg"] if inside else [junk]
    assert layout(tmp_path, "cat", "dog", *places) == (ANIMALS, {"train": [2, 2]})
    expected = f"left out {len(places)} folders of thumbnails, deleted files and the like: {junk}"
    assert expected in caplog.text


def test_what_systems_add_beside_loose_images(tmp_path):
    touch(tmp_path, "__MACOSX/._1.jpg", "1.jpg", "._1.jpg")
    assert load_source("folder", tmp_path).splits["train"].names == ["1.jpg"]


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "mpo", "pnm"])
def test_further_suffixes(tmp_path, suffix):
    touch(tmp_path, f"cat/0.{suffix}")
    assert load_source("folder", tmp_path).splits["train"].names == [f"cat/0.{suffix}"]


def test_files_that_may_be_images_are_told_apart_from_others(tmp_path, caplog):
    touch(tmp_path, "cat/0.jpg", "cat/1.jpg.1", "cat/2", "cat/notes.txt", "cat/3.dcm", "cat/._4")
    load_source("folder", tmp_path)
    assert "left out 2 files that may be images but have no such suffix, rename them: 1.jpg.1, 2" in caplog.text
    assert "left out 1 images of unsupported kinds (.dcm)" in caplog.text
    assert "ignored 2 files that are not images: ._4, notes.txt" in caplog.text


@pytest.mark.parametrize("folders", [("2023/01", "2023/02"), ("a/airfield", "a/alley", "b/bar", "b/beach")])
def test_class_folders_of_folders_are_noted(tmp_path, caplog, folders):
    layout(tmp_path, *folders)
    assert "class folders hold only folders, the first is " in caplog.text


def test_a_val_without_class_folders_is_said_and_can_be_replaced(tmp_path, caplog):
    layout(tmp_path, "train/cat", "train/dog", "val")
    assert "val: has no class folders, so the images of val have no labels" in caplog.text
    source = hold_out(load_source("folder", tmp_path), 0.5)
    assert source.splits["val"].labels.tolist() == [0, 1]
    assert "the 2 images of val have no labels and are left out" in caplog.text


def test_imagenets_val_as_it_comes_is_named(tmp_path):
    from pipelines.sources.imagenet100 import IMAGENET100

    touch(tmp_path, *(f"train/{name}/1.JPEG" for name in IMAGENET100), "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UserError, match="val: has no class folders; ImageNet's val images come unsorted"):
        load_source("in100", tmp_path)


def test_names_of_classes_are_compared_as_they_look(tmp_path):
    name = "café"
    composed, decomposed = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    found = layout(tmp_path, f"train/{composed}", "train/dog", f"val/{decomposed}", "val/dog")
    assert found == ((composed, "dog"), {"train": [2, 2], "val": [2, 2]})
