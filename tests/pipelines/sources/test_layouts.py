"""Well-known data sets in the layouts in which they are distributed."""

import pytest

from pipelines.errors import UserError
from pipelines.sources import load_source
from pipelines.sources.imagenet100 import IMAGENET100
from support.packing import touch

# Kaggle's ImageNet-100


def kaggle(root, wnids):
    """Classes in turn in train.X1 to train.X4."""
    for number, wnid in enumerate(wnids):
        touch(root, f"train.X{number % 4 + 1}/{wnid}/{wnid}_1.JPEG", f"val.X/{wnid}/{wnid}_2.JPEG")
    (root / "Labels.json").write_text("{}")
    return root


@pytest.mark.parametrize("own_classes", [False, True])
def test_kaggles_imagenet_100(tmp_path, caplog, own_classes):
    wnids = tuple(f"n{number:08}" for number in range(100)) if own_classes else IMAGENET100
    source = load_source("in100", kaggle(tmp_path, wnids))
    assert source.classes == wnids
    train, val = source.splits["train"], source.splits["val"]
    assert train.names[4] == f"train.X1/{wnids[4]}/{wnids[4]}_1.JPEG"
    assert train.labels.tolist() == val.labels.tolist() == list(range(100))
    assert ("its 100 classes are not those of arXiv 1906.05849" in caplog.text) == own_classes


def test_an_incomplete_download_from_kaggle_is_refused(tmp_path):
    kaggle(tmp_path, IMAGENET100[:75])
    with pytest.raises(UserError, match=r"train.X1/, train.X2/, train.X3/, ... hold 75 classes, not 100"):
        load_source("in100", tmp_path)


# Tiny ImageNet


def tiny_imagenet(root):
    touch(root, *(f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in ("n01", "n02") for i in range(2)))
    touch(root, "train/n01/n01_boxes.txt", "val/images/val_0.JPEG", "val/images/val_1.JPEG", "test/images/t.JPEG")
    (root / "val/val_annotations.txt").write_text("val_1.JPEG\tn01\t0\t0\t9\t9\nval_0.JPEG\tn02\t0\t0\t9\t9\n")
    return root


def test_tiny_imagenet(tmp_path):
    source = load_source("folder", tiny_imagenet(tmp_path))
    assert source.classes == ("n01", "n02")
    assert source.splits["train"].labels.tolist() == [0, 0, 1, 1]
    assert source.splits["val"].names == ["val/images/val_0.JPEG", "val/images/val_1.JPEG"]
    assert source.splits["val"].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val_0.JPEG\tn03\t0\n", "line 1 has class 'n03', which is not in train/"),
        ("val_0.JPEG\tn01\nval_1.JPEG\n", "line 2 is not the name of another file, a tab and a class"),
        ("../val_0.JPEG\tn01\n", "line 1 is not the name"),
        ("a.JPEG\tn01\na.JPEG\tn02\n", "line 2 is not the name of another file"),
        ("", "lists no image"),
    ],
)
def test_wrong_annotations_are_refused(tmp_path, text, message):
    tiny_imagenet(tmp_path)
    (tmp_path / "val/val_annotations.txt").write_text(text)
    with pytest.raises(UserError, match=rf"val_annotations.txt: {message}"):
        load_source("folder", tmp_path)
