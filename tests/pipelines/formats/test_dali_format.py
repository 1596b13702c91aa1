"""Shards: what is stored, that WebDataset and DALI read it, and that damaged ones are refused."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.convert import convert, verify
from pipelines.errors import UserError
from pipelines.formats.dali import format as format_dali
from pipelines.formats.dali.format import Writer, iter_samples
from pipelines.formats.packed import measure_split, open_packed, write_manifest
from pipelines.images import decode
from pipelines.sources import load_source
from support.packing import image, refused, renew_manifest

# What is stored


@pytest.fixture
def shards(folder, tmp_path, monkeypatch) -> Path:
    """The folder in the dali format, several shards per split."""
    monkeypatch.setattr(Writer, "shard_bytes", 12_000)
    convert("folder", folder, tmp_path / "out", format="dali", workers=1)
    assert len(list((tmp_path / "out").glob("train-*.tar"))) == 3
    return tmp_path / "out"


def test_dali_stores_every_image_in_order(folder, shards):
    source = load_source("folder", folder)
    for split in ("train", "val"):
        table = format_dali.read_table(shards, split)
        assert table.labels.tolist() == source.splits[split].labels.tolist() == [0] * 4 + [1] * 4
        samples = format_dali.iter_samples(shards, split, 0, 8)
        for sample, size, path in zip(samples, table.sizes.tolist(), source.splits[split].images, strict=True):
            data = Path(path).read_bytes()
            original, keep = decode(data)
            assert size == [sample.height, sample.width] == [original.height, original.width]
            if path.endswith("jpg"):
                assert keep and sample.jpeg and sample.data == data, "however small"
            elif sample.height * sample.width <= 64 * 64:
                assert not sample.jpeg and sample.data == original.tobytes()
            else:
                assert sample.jpeg
                assert np.abs(np.asarray(decode(sample.data)[0]).astype(int) - np.asarray(original)).mean() < 2
        parts = (format_dali.iter_samples(shards, split, *part) for part in ((0, 1), (1, 6), (6, 8)))
        assert list(itertools.chain(*parts)) == list(format_dali.iter_samples(shards, split, 0, 8))
    assert verify(shards, workers=1).splits["train"].count == 8


def test_shards_are_bounded_and_written_several_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(Writer, "shard_bytes", 10_000)
    (tmp_path / "source").mkdir()
    for number in range(43):
        image(number, 40, 40).save(tmp_path / "source" / f"{number:02}.png")
    image(0, 700, 700).save(tmp_path / "source/20.jpg", quality=95)
    large = (tmp_path / "source/20.jpg").stat().st_size
    assert large > 20_000
    convert("folder", tmp_path / "source", tmp_path / "out", format="dali", workers=1)
    packed = open_packed(tmp_path / "out", verify=True)
    sizes = [entry.bytes for name, entry in packed.splits["train"].files.items() if name.endswith("tar")]
    assert len(sizes) > 2 * Writer.at_once
    end = 10_240  # a tar file is padded to a multiple of this
    assert sorted(sizes)[-2] <= 10_000 + end and large < max(sizes) <= large + 2 * end
    table = format_dali.read_table(tmp_path / "out", "train")
    assert len(table.labels) == 44 and table.shards.tolist() == sorted(table.shards)


def test_the_webdataset_package_reads_the_shards(folder, shards):
    webdataset = pytest.importorskip("webdataset")
    source = load_source("folder", folder).splits["train"]
    paths = sorted(map(str, shards.glob("train-*.tar")))
    samples = list(
        webdataset.WebDataset(paths, shardshuffle=False).decode("rgb8").to_tuple("__key__", "jpg;png", "cls")
    )
    assert [key for key, _, _ in samples] == [f"{number:09}" for number in range(8)]
    assert [label for _, _, label in samples] == source.labels.tolist()
    for (_, pixels, _), stored in zip(samples, format_dali.iter_samples(shards, "train", 0, 8), strict=True):
        expected = decode(stored.data)[0] if stored.jpeg else Image.frombytes("RGB", pixels.shape[1::-1], stored.data)
        assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 2


def test_dalis_own_tools_agree_with_the_index(folder, shards, tmp_path):
    pytest.importorskip("nvidia.dali")
    creator = pytest.importorskip("wds2idx").IndexCreator
    from nvidia.dali import Pipeline, fn

    tars = sorted(shards.glob("train-*.tar"))
    for tar in tars:
        with creator(str(tar), str(tmp_path / "theirs"), verbose=False) as index:
            index.create_index()
        assert (tmp_path / "theirs").read_text() == tar.with_suffix(".idx").read_text()
    pipeline = Pipeline(batch_size=8, num_threads=1, device_id=None)
    with pipeline:
        indexes = [str(tar.with_suffix(".idx")) for tar in tars]
        files = fn.readers.webdataset(paths=list(map(str, tars)), index_paths=indexes, ext=["jpg;png", "cls"])
        pipeline.set_outputs(*files)
    images, labels = pipeline.run()
    table = format_dali.read_table(shards, "train")
    assert [len(np.array(image)) for image in images] == table.lengths.tolist()
    assert [bytes(np.array(label)) for label in labels] == [b"%d" % label for label in table.labels]


def test_unlabelled_shards_have_no_labels(tmp_path):
    (tmp_path / "source").mkdir()
    image(0, 20, 30).save(tmp_path / "source/1.png")
    convert("folder", tmp_path / "source", tmp_path / "out", format="dali", workers=1)
    assert (tmp_path / "out/train-000000.idx").read_text().split()[2:6:3] == ["png", "000000000.png"]
    assert format_dali.read_table(tmp_path / "out", "train").labels.tolist() == [-1]
    assert verify(tmp_path / "out", workers=1).splits["train"].labelled is False


# What is refused


@pytest.mark.parametrize(("place", "message"), [("header", "no header of 00000000."), ("label", "is labelled")])
def test_verify_compares_shards_with_their_tables(shards, place, message):

    packed, table = open_packed(shards), format_dali.read_table(shards, "train")
    path = shards / "train-000000.tar"
    data = bytearray(path.read_bytes())
    if place == "header":
        data[int(table.starts[1]) - 512] ^= 1
    else:
        data[-(-int(table.starts[1] + table.lengths[1]) // 512) * 512 + 512] = ord("7")
    path.write_bytes(data)
    packed.splits["train"] = measure_split(packed.dir, "dali", "train")
    write_manifest(packed, [])
    open_packed(shards)
    with pytest.raises(UserError, match=f"train-000000.tar: damaged or not a shard of this data set: .*{message}"):
        verify(shards, workers=1)


def test_shards_are_numbered_without_a_gap(copy):
    folder = copy("dali")
    manifest = json.loads((folder / "manifest.json").read_text())
    files = manifest["splits"]["train"]["files"]
    arrays = {"train-crc32.npy", "train-labels.npy", "train-sizes.npy"}
    assert set(files) == {"train-000000.idx", "train-000000.tar", *arrays}
    for suffix in ("tar", "idx"):
        files[f"train-000002.{suffix}"] = files[f"train-000000.{suffix}"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(folder, "splits.train.files must have exactly train-000000.idx, .*train-000001.tar, train-crc32.npy")
    for file in (f"../train-000001.{suffix}" for suffix in ("tar", "idx")):
        files[file] = files.pop(f"train-000002.{file[-3:]}")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(folder, "splits.train.files must have exactly train-000000.idx, train-000000.tar, train-crc32.npy")


def test_a_shard_beyond_the_manifest_is_refused(copy):
    folder = copy("dali")
    for suffix in ("tar", "idx"):
        shutil.copy(folder / f"val-000000.{suffix}", folder / f"train-000001.{suffix}")
    refused(
        folder, "train-000001.idx: damaged or not a shard of this data set: its samples are not numbered from 000000004"
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
    if message is None:  # seen only when the shard is read
        open_packed(folder)
        with pytest.raises(UserError, match=r"train-000000\.tar: damaged .*000000000\.cls of 1 bytes where its index"):
            list(iter_samples(folder, "train", 0, 4))
    else:
        refused(folder, f"train-000000.idx: damaged or not a shard of this data set: .*({message})")


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
        ("train-labels.npy", np.array([0, 0, 1, -1]), "its labelled samples are not those of train-labels.npy"),
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
