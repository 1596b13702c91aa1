"""--val-fraction: a stratified part of train becomes val, the same one every time."""

import numpy as np
import pytest

from pipelines.convert import convert
from pipelines.errors import UserError
from pipelines.formats.packed import open_packed
from pipelines.sources import load_source
from pipelines.sources.base import Source, SourceSplit, from_arrays
from pipelines.sources.held_out import hold_out
from support.packing import image, touch

COUNTS = (40, 10, 1)


def source(images=None):
    labels = np.repeat(np.arange(3), COUNTS)
    pixels = np.arange(51, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    split = from_arrays("train", pixels, labels)
    return Source(("a", "b", "c"), {"train": SourceSplit(images or split.images, split.names, labels, {"d": "empty"})})


def test_every_class_gives_its_part_and_keeps_an_image():
    splits = hold_out(source(), 0.25).splits
    assert np.bincount(splits["val"].labels, minlength=3).tolist() == [10, 2, 0]
    assert np.bincount(splits["train"].labels, minlength=3).tolist() == [30, 8, 1]
    assert sorted(splits["train"].names + splits["val"].names) == sorted(source().splits["train"].names)
    assert hold_out(source(), 0.999).splits["train"].labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("streamed", [False, True])
def test_images_stay_with_their_names_and_labels(streamed):
    whole = source([bytes([number]) for number in range(51)] if streamed else None)
    for split in hold_out(whole, 0.25).splits.values():
        numbers = [image[0] if streamed else image[0, 0, 0] for image in split.images]
        assert [f"train[{number}]" for number in numbers] == split.names
        assert whole.splits["train"].labels[numbers].tolist() == split.labels.tolist()


def test_it_is_the_same_part_every_time_and_not_simply_the_first():
    one, two = (hold_out(source(), 0.25).splits["val"].names for _ in range(2))
    assert one == two and one[:10] != [f"train[{number}]" for number in range(10)]


def test_what_could_not_be_listed_is_reported_once():
    splits = hold_out(source(), 0.25).splits
    assert (splits["train"].unusable, splits["val"].unusable) == ({"d": "empty"}, {})


def test_images_without_labels_are_one_class(tmp_path):
    flat = load_source("folder", touch(tmp_path, *(f"{number}.jpg" for number in range(10))))
    assert len(hold_out(flat, 0.3).splits["val"].names) == 3


@pytest.mark.parametrize("format", ["ffcv", "resident"])
def test_the_manifest_records_it(tmp_path, format):
    for name in ("cat", "dog"):
        (tmp_path / "source" / name).mkdir(parents=True)
        for number in range(4):
            image(number, 16, 16).save(tmp_path / "source" / name / f"{number}.png")
    convert("folder", tmp_path / "source", tmp_path / "out", format=format, val_fraction=0.5, workers=1)
    packed = open_packed(tmp_path / "out", verify=True)
    assert packed.options == {"max_resolution": None, "quality": None, "val_fraction": 0.5}
    assert {name: split.count for name, split in packed.splits.items()} == {"train": 4, "val": 4}


def test_a_source_with_val_and_one_with_too_few_images_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="--val-fraction: the source has images for val already"):
        convert("folder", folder, tmp_path / "out", val_fraction=0.5, workers=1)
    with pytest.raises(UserError, match=r"--val-fraction 0.001: no class has enough images, none would be for val"):
        hold_out(source(), 0.001)
