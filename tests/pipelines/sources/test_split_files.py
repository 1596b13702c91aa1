"""Which split the names of files and folders mean, which columns are read, and which labels are refused."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from pipelines.convert import convert
from pipelines.errors import UserError
from pipelines.sources import load_source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def number(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = [number(i) for i in range(4)]


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def labelled(path, labels=(0, 1, 0, 1)):
    table(path, image=pa.array(FILES), label=pa.array(labels))


def featured(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    features = json.dumps({"info": {"features": {name: {"_type": "Image"} for name in names}}})
    found = pa.table({name: pa.array(FILES) for name in names} | {"label": pa.array([0, 1, 0, 1])})
    pq.write_table(found.replace_schema_metadata({"huggingface": features}), path)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train/0000", "test/0000"),
        ("default/train/0000", "default/test/0000"),
        ("Training/0", "Testing/0"),
        ("data/train-0-of-1", "data/validation-0-of-1"),
        ("train-0", "valid-0"),
    ],
)
def test_splits_in_names_of_files_and_folders(tmp_path, train, val):
    labelled(tmp_path / f"{train}.parquet")
    labelled(tmp_path / f"{val}.parquet")
    labelled(tmp_path / "._train.parquet")
    source = load_source("parquet", tmp_path)
    assert {name: len(split.names) for name, split in source.splits.items()} == {"train": 4, "val": 4}


def test_a_suffix_in_capitals(tmp_path):
    labelled(tmp_path / "TRAIN.PARQUET")
    assert len(load_source("parquet", tmp_path).splits["train"].names) == 4


def test_configurations_are_not_mixed(tmp_path):
    labelled(tmp_path / "small/train/0.parquet")
    labelled(tmp_path / "large/train/0.parquet")
    with pytest.raises(UserError, match=r"has .parquet files in large, small; name one of these folders"):
        load_source("parquet", tmp_path)


@pytest.mark.parametrize(
    ("name", "dataset", "message"),
    [
        ("train/data-00000-of-00001.arrow", "parquet", r"was written by save_to_disk.*load_from_disk\(DIR\)"),
        ("train-0.tar.gz", "webdataset", r"no .tar file, but train-0.tar.gz: decompress it first"),
    ],
)
def test_another_form_is_named(tmp_path, name, dataset, message):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=message):
        load_source(dataset, tmp_path)


def test_several_columns_of_images_are_refused(tmp_path):
    featured(tmp_path / "train.parquet", "mask", "photo")
    with pytest.raises(UserError, match=r"several columns of images, mask, photo: leave only one in it"):
        load_source("parquet", tmp_path)


def test_the_column_called_image_is_read_and_others_are_noted(tmp_path, caplog):
    featured(tmp_path / "train.parquet", "annotation", "image", "img")
    source = load_source("parquet", tmp_path)
    assert len(source.splits["train"].names) == 4
    assert "reading images from image; columns not used: annotation, img" in caplog.text


def test_a_column_that_looks_like_a_part_of_another_is_refused(tmp_path):
    struct = pa.array([{"bytes": data, "path": None} for data in FILES])
    table(tmp_path / "train.parquet", image=struct, **{"image.bytes": pa.array(FILES)})
    with pytest.raises(UserError, match=r"has a column image.bytes beside image: rename it"):
        load_source("parquet", tmp_path)


def test_images_that_are_stored_as_paths(tmp_path):
    for i, data in enumerate(FILES):
        (tmp_path / f"{i}.png").write_bytes(data)
    places = ["0.png", str(tmp_path / "1.png"), "2.png", "3.png"]
    table(tmp_path / "train.parquet", image=pa.array([{"bytes": None, "path": place} for place in places]))
    assert (
        convert("parquet", tmp_path, tmp_path / "out", format="resident", workers=1).packed.splits["train"].count == 4
    )
    assert np.load(tmp_path / "out/train.npy")[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_a_path_that_leads_nowhere_is_said(tmp_path):
    table(tmp_path / "train.parquet", image=pa.array([{"bytes": None, "path": "gone.png"}]))
    with pytest.raises(UserError, match=r"train.parquet\[0\]: cannot be read: No such file"):
        convert("parquet", tmp_path, tmp_path / "out", workers=1)


@pytest.mark.parametrize("name", ["labels", "target", "class"])
def test_a_column_of_labels_under_another_name_is_noted(tmp_path, caplog, name):
    table(tmp_path / "train.parquet", image=pa.array(FILES), **{name: pa.array([0, 1, 0, 1])})
    assert load_source("parquet", tmp_path).classes == ()
    assert f"no labels (label or fine_label); columns not used: {name}" in caplog.text


def test_whole_numbers_that_pandas_wrote_as_floats(tmp_path):
    labelled(tmp_path / "train.parquet", pa.array([0.0, 1.0, None, float("nan")], pa.float64()))
    train = load_source("parquet", tmp_path).splits["train"]
    assert train.labels.tolist() == [0, 1] and set(train.unusable.values()) == {"has no label"}


def test_labels_of_minus_one_and_one_are_refused(tmp_path):
    labelled(tmp_path / "train.parquet", (-1, 1, -1, 1))
    with pytest.raises(UserError, match="the labels are -1 and 1, but -1 means no label: use 0 and 1"):
        load_source("parquet", tmp_path)


def test_a_label_of_val_that_train_lacks_is_refused(tmp_path):
    labelled(tmp_path / "train.parquet", (0, 1, 2, 0))
    labelled(tmp_path / "val.parquet", (1, 2, 3, 1))
    with pytest.raises(UserError, match=r"val.parquet\[2\]: has label 3, which no image of train has"):
        load_source("parquet", tmp_path)
