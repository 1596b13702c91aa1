"""Parquet files as Hugging Face's datasets writes them: splits, labels, images batch by batch, and what is refused."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from pipelines.convert import convert
from pipelines.errors import UserError
from pipelines.formats import find_format
from pipelines.sources import load_source
from support.packing import image

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(seed: int, height: int = 20, width: int = 30) -> bytes:
    buffer = io.BytesIO()
    image(seed, height, width).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, images, labels, *, column="image", label="label", names=None, **others):
    """One file; ``names``: class names in the metadata, as ``datasets`` writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    structs = [None if data is None else {"bytes": data, "path": None} for data in images]
    table = pa.table({column: pa.array(structs, kind), label: labels, **others})
    if names is not None:
        features = {column: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)


def snapshot(root, **options):
    """Six training images in two files, and three to validate."""
    for number in range(2):
        seeds = range(3 * number, 3 * number + 3)
        write(root / f"train-0000{number}-of-00002.parquet", map(png, seeds), [2, 0, 1], **options)
    write(root / "validation-00000-of-00001.parquet", map(png, range(6, 9)), [1, 1, 0], **options)
    return root


@pytest.mark.parametrize("folder", ["", "data"])
def test_splits_names_and_labels(tmp_path, folder):
    snapshot(tmp_path / folder, names=["ant", "bee", "cat"])
    source = load_source("parquet", tmp_path)
    assert source.classes == ("ant", "bee", "cat")
    train, val = source.splits["train"], source.splits["val"]
    assert train.names[3] == "train-00001-of-00002.parquet[0]" and len(train.names) == 6
    assert train.labels.tolist() == [2, 0, 1, 2, 0, 1] and val.labels.tolist() == [1, 1, 0]
    for _ in range(2):  # as often as one likes
        assert list(train.images) == [png(seed) for seed in range(6)]


def test_the_same_images_give_the_same_bytes_as_a_folder(tmp_path):
    snapshot(tmp_path / "parquet", names=["ant", "bee", "cat"])
    for seed, name in enumerate(("cat", "ant", "bee", "cat", "ant", "bee")):
        (tmp_path / "files/train" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "files/train" / name / f"{seed}.png").write_bytes(png(seed))
    convert("parquet", tmp_path / "parquet", tmp_path / "one", workers=2)
    convert("folder", tmp_path / "files", tmp_path / "two", workers=1)
    order = [1, 4, 2, 5, 0, 3]  # a folder's images are sorted by class
    one, two = (list(find_format("ffcv").iter_samples(tmp_path / out, "train", 0, 6)) for out in ("one", "two"))
    assert [one[index] for index in order] == two


def test_labels_without_names_are_numbers_or_text(tmp_path):
    write(tmp_path / "numbers/train.parquet", map(png, range(3)), [10, 2, 10])
    write(tmp_path / "text/train.parquet", map(png, range(3)), ["dog", "cat", "dog"])
    for name, classes in (("numbers", ("2", "10")), ("text", ("cat", "dog"))):
        source = load_source("parquet", tmp_path / name)
        assert source.classes == classes and source.splits["train"].labels.tolist() == [1, 0, 1]


def test_classes_of_one_name_stay_apart(tmp_path):
    assert load_source("parquet", snapshot(tmp_path, names=["crane", "bee", "crane"])).classes == (
        "crane (0)",
        "bee",
        "crane (2)",
    )


def test_images_without_a_label_or_content_are_unusable(tmp_path):
    write(tmp_path / "train.parquet", [png(0), None, png(2)], [1, 0, None], names=["a", "b"])
    with pytest.raises(UserError, match=r"^train.parquet\[2\]: has no label \(--on-error skip"):
        convert("parquet", tmp_path, tmp_path / "out", workers=1)
    report = convert("parquet", tmp_path, tmp_path / "out", workers=1, on_error="skip")
    reasons = {entry["file"]: entry["reason"] for entry in report.skipped}
    assert reasons == {"train.parquet[2]": "has no label", "train.parquet[1]": "is empty (0 bytes)"}
    assert report.packed.splits["train"].count == 1 and report.packed.splits["train"].labelled


def test_a_test_set_without_labels(tmp_path):
    write(tmp_path / "train-0.parquet", map(png, range(2)), [1, 0], names=["a", "b"])
    write(tmp_path / "test-0.parquet", map(png, range(2)), [-1, -1], names=["a", "b"])
    packed = convert("parquet", tmp_path, tmp_path / "out", workers=1).packed
    assert packed.splits["train"].labelled and not packed.splits["val"].labelled


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_cifar(tmp_path, dataset):
    count = int(dataset.removeprefix("cifar"))
    names, label = [f"class {number}" for number in range(count)], "label" if count == 10 else "fine_label"
    others = {} if count == 10 else {"coarse_label": [0, 0]}
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    files = []
    for array in pixels:
        files.append(io.BytesIO())
        Image.fromarray(array).save(files[-1], "PNG")
    content = [file.getvalue() for file in files]
    for rows, split in ((slice(0, 2), "train"), (slice(2, 4), "test")):
        path = tmp_path / "snapshot/plain_text" / f"{split}-00000-of-00001.parquet"
        write(path, content[rows], [count - 1, 3], column="img", label=label, names=names, **others)
    packed = convert(dataset, tmp_path / "snapshot", tmp_path / "out", format="resident", workers=1).packed
    assert packed.classes == tuple(names)
    assert (np.load(tmp_path / "out/train.npy") == pixels[:2]).all()
    assert np.load(tmp_path / "out/val-labels.npy").tolist() == [count - 1, 3]


def test_imagenet_100_must_have_100_classes(tmp_path):
    names = [f"class {number}" for number in range(100)]
    assert load_source("in100", snapshot(tmp_path / "right", names=names)).classes == tuple(names)
    with pytest.raises(UserError, match=r"train-00000-of-00002.parquet: names 3 classes, not 100"):
        load_source("in100", snapshot(tmp_path / "wrong", names=["a", "b", "c"]))
    with pytest.raises(UserError, match=r"names no classes, not 100"):
        load_source("in100", snapshot(tmp_path / "none"))


def damage(root):
    (root / "train.parquet").write_bytes(b"PAR1 and nothing else")


def cut_images(root):
    """The labels are still readable, the images are not."""
    write(root / "train.parquet", [png(seed, 90, 90) for seed in range(4)], [0, 1, 0, 1])
    data = bytearray((root / "train.parquet").read_bytes())
    data[4:2000] = bytes(1996)
    (root / "train.parquet").write_bytes(data)


def other_order(root):
    write(root / "train.parquet", [png(0)], [0], names=["a", "b"])
    write(root / "val.parquet", [png(0)], [0], names=["b", "a"])


def plain_table(root):
    pq.write_table(pa.table({"price": [1.0]}), root / "train.parquet")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, r"holds no .parquet file"),
        (lambda root: (root / "train.parquet").symlink_to("nowhere"), r"train.parquet: is not a regular file"),
        (
            lambda root: [snapshot(root / name) for name in "ab"],
            r"has .parquet files in a, b; name one of these folders",
        ),
        (
            lambda root: write(root / "test.parquet", [png(0)], [0]),
            r"no .parquet file is named train, the first is test",
        ),
        (lambda root: write(root / "train.parquet", [png(0)], [7], names=["a"]), r"has label 7, which has no name"),
        (
            lambda root: write(root / "train.parquet", [png(0)], [0.5]),
            r"its column label holds neither whole numbers nor",
        ),
        (other_order, r"val.parquet: its class names are not those of the first file of train"),
        (damage, r"train.parquet: cannot be read as a Parquet file: "),
        (cut_images, r"train.parquet: cannot be read as a Parquet file: "),
        (plain_table, r"train.parquet: has no column of images \(image or img\), only price"),
        (
            lambda root: pq.write_table(pa.table({"image": [1.0]}), root / "train.parquet"),
            r"its column image does not hold image files",
        ),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_refused(tmp_path, make, message, workers):
    (tmp_path / "source").mkdir()
    make(tmp_path / "source")
    with pytest.raises(UserError, match=message):
        convert("parquet", tmp_path / "source", tmp_path / "out", workers=workers)
    assert not (tmp_path / "out").exists()


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    snapshot(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"Parquet files need pyarrow, which is not installed: pip install pyarrow$"):
        load_source("parquet", tmp_path)
