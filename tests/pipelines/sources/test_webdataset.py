"""WebDataset shards from others: samples, labels, and members that are refused."""

import io
import json
import tarfile

import pytest

from pipelines.convert import convert
from pipelines.errors import UserError
from pipelines.formats import find_format
from pipelines.sources import load_source
from support.packing import image, tar_member


def encoded(seed: int, format: str) -> bytes:
    buffer = io.BytesIO()
    image(seed, 20, 30).save(buffer, format)
    return buffer.getvalue()


def write(path, files):
    """A tar file of (name, content) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def shards(root):
    first = [("000.jpg", encoded(0, "JPEG")), ("000.cls", b"7"), ("000.json", b"{}")]
    second = [("x/001.cls", b"3\n"), ("x/001.PNG", encoded(1, "PNG"))]
    write(root / "imagenet-train-000000.tar", [*first, *second])
    label = json.dumps({"label": 7, "width": 30}).encode()
    write(root / "imagenet-train-000001.tar", [("002.webp", encoded(2, "WEBP")), ("002.json", label)])
    write(root / "imagenet-val-000000.tar", [("003.jpeg", encoded(3, "JPEG")), ("003.cls", b"3")])
    return root


def test_samples_and_labels(tmp_path):
    source = load_source("webdataset", shards(tmp_path))
    train, val = source.splits["train"], source.splits["val"]
    assert source.classes == ("3", "7")
    assert train.names == [
        "imagenet-train-000000.tar/000.jpg",
        "imagenet-train-000000.tar/x/001.PNG",
        "imagenet-train-000001.tar/002.webp",
    ]
    assert train.labels.tolist() == [1, 0, 1] and val.labels.tolist() == [0]


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_are_packed(tmp_path, workers):
    packed = convert("webdataset", shards(tmp_path / "source"), tmp_path / "out", format="dali", workers=workers).packed
    assert {name: split.count for name, split in packed.splits.items()} == {"train": 3, "val": 1}
    first = next(iter(find_format("dali").iter_samples(tmp_path / "out", "train", 0, 1)))
    assert first.data == encoded(0, "JPEG")


def test_our_own_shards_are_already_packed_but_readable_without_the_manifest(folder, tmp_path):
    packed = convert("folder", folder, tmp_path / "packed", format="dali", workers=1).packed
    with pytest.raises(UserError, match="packed: is a packed data set, ready for training"):
        load_source("webdataset", packed.dir)
    (packed.dir / "manifest.json").unlink()
    again = convert("webdataset", packed.dir, tmp_path / "again", format="dali", workers=1).packed
    assert {name: split.files for name, split in again.splits.items()} == {
        name: split.files for name, split in packed.splits.items()
    }


def test_text_labels_and_shards_without_a_split_in_their_name(tmp_path):
    for number, name in enumerate(("dog", "cat")):
        write(tmp_path / f"{number:05}.tar", [("a.jpg", b"x"), ("a.cls", name.encode())])
    source = load_source("webdataset", tmp_path)
    assert source.classes == ("cat", "dog") and source.splits["train"].labels.tolist() == [1, 0]


def test_files_that_belong_to_no_image_are_noted(tmp_path, caplog):
    write(tmp_path / "train.tar", [("README.md", b"x"), ("a.jpg", b"x"), ("a.txt", b"caption")])
    source = load_source("webdataset", tmp_path)
    assert (source.classes, source.splits["train"].labels.tolist()) == ((), [-1])
    assert "train.tar: ignored 1 files that are not images: README.md" in caplog.text


def test_unusable_samples_are_refused_or_skipped(tmp_path):
    picture = encoded(0, "JPEG")
    files = [("a.jpg", picture), ("a.cls", b"1"), ("b.jpg", picture), ("c.jpg", picture), ("c.json", b"{")]
    write(tmp_path / "train.tar", [*files, ("d.jpg", picture), ("d.png", picture), ("d.cls", b"0")])
    with pytest.raises(UserError, match=r"^train.tar/.*--on-error skip"):
        convert("webdataset", tmp_path, tmp_path / "out", workers=1)
    report = convert("webdataset", tmp_path, tmp_path / "out", workers=1, on_error="skip")
    assert {entry["file"]: entry["reason"] for entry in report.skipped} == {
        "train.tar/b.jpg": "has no label",
        "train.tar/c.jpg": "has a label that cannot be read",
        "train.tar/d.jpg": "is one of 2 images of its sample",
    }
    assert report.packed.splits["train"].count == 1


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (tar_member("../a.jpg"), "points outside"),
        (tar_member("/etc/a.jpg"), "points outside"),
        (tar_member("a.jpg", tarfile.SYMTYPE), "is a link, a device or too large"),
        (tar_member("a.jpg", tarfile.FIFOTYPE), "is a link, a device or too large"),
    ],
)
def test_an_odd_member_is_refused(tmp_path, member, reason):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.addfile(member)
    with pytest.raises(UserError, match=f"train.tar: refused, its member .* {reason}"):
        load_source("webdataset", tmp_path)


def test_a_shard_that_is_cut_off_is_refused(tmp_path):
    path = shards(tmp_path) / "imagenet-train-000000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"imagenet-train-000000.tar: cannot be read as a tar archive"):
        load_source("webdataset", tmp_path)


def test_shards_without_an_image_are_refused(tmp_path):
    write(tmp_path / "train.tar", [("a.cls", b"1")])
    with pytest.raises(
        UserError,
        match=r"train.tar: holds no usable image \(.jpg .jpeg .*the first: train.tar/a.cls is a label without an image",
    ):
        load_source("webdataset", tmp_path)
