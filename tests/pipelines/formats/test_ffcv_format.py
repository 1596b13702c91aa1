""".beton files: what is stored, that ffcv reads it, and that a damaged one is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.convert import convert, verify
from pipelines.errors import UserError
from pipelines.formats.ffcv.format import Writer, iter_samples, read_table
from pipelines.images import Sample, decode
from pipelines.sources import load_source
from support.packing import image, refused, renew_manifest

# What is stored


def test_ffcv_stores_every_image_in_order(folder, tmp_path):
    report = convert("folder", folder, tmp_path / "out", workers=1)
    source = load_source("folder", folder)
    assert report.packed.classes == ("cat", "dog") and report.skipped == []
    for split in ("train", "val"):
        assert report.packed.splits[split].count == 8
        table = read_table(tmp_path / "out" / f"{split}.beton")
        assert table.labels.tolist() == source.splits[split].labels.tolist()
        samples = iter_samples(tmp_path / "out", split, 0, 8)
        for sample, size, path in zip(samples, table.sizes.tolist(), source.splits[split].images, strict=True):
            data = Path(path).read_bytes()
            original, keep = decode(data)
            assert size == [sample.height, sample.width] == [original.height, original.width]
            if sample.height * sample.width <= 64 * 64:
                assert not sample.jpeg and sample.data == original.tobytes()
            elif path.endswith("jpg"):
                assert keep and sample.jpeg and sample.data == data
            else:
                assert sample.jpeg
                assert np.abs(np.asarray(decode(sample.data)[0]).astype(int) - np.asarray(original)).mean() < 2


def test_upstream_ffcv_reads_it(folder, tmp_path):
    """Its Reader, memory manager and decoder, without its JIT."""
    reader = pytest.importorskip("ffcv.reader")
    from ffcv.fields import IntField, RGBImageField
    from ffcv.libffcv import imdecode
    from ffcv.memory_managers import OSCacheManager

    convert("folder", folder, tmp_path / "out", workers=1)
    upstream = reader.Reader(str(tmp_path / "out/train.beton"))
    assert list(upstream.handlers) == ["image", "label"]
    assert [type(field) for field in upstream.handlers.values()] == [RGBImageField, IntField]
    assert upstream.metadata["f1"].tolist() == [0] * 4 + [1] * 4
    sizes = OSCacheManager(upstream).ptr_to_size
    data = np.fromfile(tmp_path / "out/train.beton", np.uint8)
    for row, sample in zip(upstream.metadata["f0"], iter_samples(tmp_path / "out", "train", 0, 8), strict=True):
        stored = data[row["data_ptr"] : row["data_ptr"] + sizes[row["data_ptr"]]]
        height, width = int(row["height"]), int(row["width"])
        assert stored.tobytes() == sample.data
        if row["mode"] == 1:
            assert len(stored) == height * width * 3
            continue
        pixels = np.empty((height, width, 3), np.uint8)
        assert imdecode(stored, pixels, height, width, height, width) == 0
        assert np.abs(pixels.astype(int) - np.asarray(decode(sample.data)[0])).max() <= 8  # it uses the fast DCT


def test_a_sample_larger_than_a_page_makes_the_pages_larger(tmp_path):
    (tmp_path / "source").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2200, 2200, 3), np.uint8)
    for number in range(2):
        image(number, 80, 80).save(tmp_path / "source" / f"{number}.jpg")
    Image.fromarray(noise).save(tmp_path / "source/1-large.jpg", quality=100, subsampling=0)
    size = (tmp_path / "source/1-large.jpg").stat().st_size
    assert size > 2**23
    convert("folder", tmp_path / "source", tmp_path / "out", workers=1)
    verify(tmp_path / "out", workers=1)
    page = int(np.fromfile(tmp_path / "out/train.beton", "<u4", 2)[1])
    assert page // 2 < size <= page


def test_no_sample_crosses_a_page(tmp_path):
    """ffcv's readers hold whole pages, and would read past a page's end."""
    writer = Writer(tmp_path, "train", 5)
    for number, size in enumerate([3 * 10**6] * 5):
        writer.add(Sample(1000, 1000, False, bytes([number]) * size), number)
    writer.close()
    table = read_table(tmp_path / "train.beton")
    assert ((table.starts % 2**23) + table.lengths <= 2**23).all()
    data = bytearray((tmp_path / "train.beton").read_bytes())
    assert [data[start] for start in table.starts] == [0, 1, 2, 3, 4]
    put(data, 4, 2**21, 4)
    (tmp_path / "train.beton").write_bytes(data)
    with pytest.raises(UserError, match="an image's data cross a page's border"):
        read_table(tmp_path / "train.beton")


def test_a_capacity_that_was_not_used_leaves_a_sound_file(tmp_path):
    writer = Writer(tmp_path, "train", 1000)
    writer.add(Sample(1, 1, False, b"abc"), -1)
    writer.close()
    table = read_table(tmp_path / "train.beton")
    assert (table.labels.tolist(), table.sizes.tolist(), table.lengths.tolist()) == ([-1], [[1, 1]], [3])


# What is refused

HEADER, FIELDS, ROW = 24, 2 * 1041, 24


def put(data: bytearray, place: int, value: int, width: int) -> None:
    data[place : place + width] = value.to_bytes(width, "little")


def row(index: int) -> int:
    """Offset of a sample's row in the table: mode, width, height, start of the data; then the label."""
    return HEADER + FIELDS + ROW * index


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data, end: put(data, 0, 3, 2), "version 3 instead of 2"),
        (lambda data, end: put(data, 2, 3, 2), "3 fields instead of 2"),
        (lambda data, end: put(data, 4, 2**21 + 1, 4), "a page size of 2097153"),
        (lambda data, end: put(data, 4, 0, 4), "a page size of 0"),
        (lambda data, end: put(data, 8, 5, 8), "its allocation table is not one of 5 samples"),
        (lambda data, end: put(data, 8, 2**62, 8), "its table lies outside the file"),
        (lambda data, end: put(data, 16, 2**63, 8), "its table lies outside the file"),
        (lambda data, end: put(data, 16, end + 1, 8), "its allocation table is not one of 4 samples"),
        (lambda data, end: put(data, HEADER, 4, 1), "its fields are not image and label"),
        (lambda data, end: put(data, HEADER + 1, 0, 1), "its fields are not image and label"),
        (lambda data, end: put(data, row(1), 2, 1), "an image is neither JPEG nor raw"),
        (lambda data, end: put(data, row(1), 1, 1), "a raw image has too few pixels"),
        (lambda data, end: put(data, row(0) + 1, 0, 2), "an image has no pixels"),
        (lambda data, end: put(data, row(0) + 1, 25, 2), "a raw image has too few pixels"),
        (lambda data, end: put(data, row(2) + 5, 77, 8), "its two tables disagree"),
        (lambda data, end: put(data, row(1) + 3, 60_000, 2), "greatest height and width"),
        (lambda data, end: put(data, row(1) + 16, 2, 8), "labels 0 to 2, the manifest allows 0 to 1"),
        (lambda data, end: put(data, row(1) + 16, 2**64 - 2, 8), "labels -2 to 1"),
        (lambda data, end: put(data, end, 1, 8), "its allocation table is out of order"),
        (lambda data, end: put(data, end + 24 + 16, 0, 8), "an image's data lie outside the file"),
        (lambda data, end: put(data, end + 24 + 16, 2**64 - 1, 8), "an image's data lie outside the file"),
        (lambda data, end: put(data, end + 3 * 24 + 16, end, 8), "an image's data lie outside the file"),
        (lambda data, end: put(data, end + 16, 20 * 24 * 3 + 1, 8), "images' data overlap"),
    ],
)
def test_a_damaged_beton_is_refused(copy, damage, message):
    folder = copy("ffcv")
    path = folder / "train.beton"
    data = bytearray(path.read_bytes())
    damage(data, len(data) - 4 * 24)
    path.write_bytes(data)
    refused(folder, message)


@pytest.mark.parametrize("start", [0, 100, HEADER + FIELDS, 2**40, 2**64 - 10])
def test_a_sample_may_not_lie_outside_the_data(copy, start):
    folder = copy("ffcv")
    path = folder / "train.beton"
    data = bytearray(path.read_bytes())
    put(data, row(0) + 5, start, 8)
    put(data, len(data) - 4 * 24 + 8, start, 8)
    path.write_bytes(data)
    refused(folder, "an image's data lie (outside the file|inside the table)")


@pytest.mark.parametrize("length", [0, 10, 24, 2000, 2106, 2200, 5000])
def test_a_cut_beton_is_refused_even_if_the_manifest_agrees(copy, length):
    folder = copy("ffcv")
    path = folder / "val.beton"
    path.write_bytes(path.read_bytes()[:length])
    renew_manifest(folder)
    if length == 0:
        refused(folder, "the bytes of val.beton must be a whole number of at least 1")
    else:
        refused(folder, "val.beton: damaged or not a .beton file")
