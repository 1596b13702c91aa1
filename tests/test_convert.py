"""Conversion: what is stored, what is refused, and that a data set appears whole or not at all."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import format_dali
from pipelines.convert import _map_in_order, convert, pack_digits_if_absent, verify
from pipelines.errors import UserError
from pipelines.format_ffcv import iter_samples, read_table
from pipelines.format_resident import open_arrays
from pipelines.images import decode
from pipelines.packed import FORMATS, open_packed
from pipelines.sources import load_source

ROOT = Path(__file__).resolve().parents[1]


def image(seed: int, height: int, width: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes in train and val; JPEG and PNG, of several sizes, small and large."""
    sizes = [(70, 90), (20, 30), (120, 65), (8, 8)]
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            place = tmp_path / "source" / split / name
            place.mkdir(parents=True)
            for number, (height, width) in enumerate(sizes):
                suffix = ("jpg", "png")[(number + label) % 2]
                image(10 * label + number, height, width).save(place / f"{number}.{suffix}")
    return tmp_path / "source"


def spoil(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def command(*arguments: object, **options) -> subprocess.CompletedProcess:
    line = [sys.executable, ROOT / "tools/convert.py", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=60, **options)


# ------------------------------------------------------------------------------------------------ what is stored


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


def test_resident_lays_images_top_left_on_the_largest_canvas(folder, tmp_path):
    packed = convert("folder", folder, tmp_path / "out", format="resident", workers=1).packed
    source = load_source("folder", folder).splits["train"]
    pixels, labels, sizes = open_arrays(tmp_path / "out", "train")
    assert (pixels.shape, pixels.dtype) == ((8, 120, 90, 3), np.uint8)
    assert (packed.splits["train"].max_height, packed.splits["train"].max_width) == (120, 90)
    assert labels.tolist() == source.labels.tolist()
    for row, (height, width), path in zip(pixels, sizes.tolist(), source.images, strict=True):
        original = np.asarray(decode(Path(path).read_bytes())[0])
        assert original.shape == (height, width, 3)
        assert (row[:height, :width] == original).all()
        assert not row[height:].any() and not row[:, width:].any()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if "train" in path.name) == [
        "train-labels.npy",
        "train-sizes.npy",
        "train.npy",
    ]


@pytest.fixture
def shards(folder, tmp_path, monkeypatch) -> Path:
    """The folder in the dali format, several shards a split."""
    monkeypatch.setattr(format_dali, "_SHARD_BYTES", 12_000)
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
    monkeypatch.setattr(format_dali, "_SHARD_BYTES", 10_000)
    (tmp_path / "source").mkdir()
    for number in range(43):
        image(number, 40, 40).save(tmp_path / "source" / f"{number:02}.png")
    image(0, 700, 700).save(tmp_path / "source/20.jpg", quality=95)
    large = (tmp_path / "source/20.jpg").stat().st_size
    assert large > 20_000
    convert("folder", tmp_path / "source", tmp_path / "out", format="dali", workers=1)
    packed = open_packed(tmp_path / "out", verify=True)
    sizes = [entry.bytes for name, entry in packed.splits["train"].files.items() if name.endswith("tar")]
    assert len(sizes) > 2 * format_dali._AT_ONCE
    end = 10_240  # a tar file is filled up to a multiple of this
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


@pytest.mark.parametrize("format", ["ffcv", "dali", "resident"])
def test_the_same_images_give_the_same_bytes(folder, tmp_path, format):
    for number in range(80):
        image(number, 33, 44).save(folder / "train/cat" / f"many{number}.png")
    convert("folder", folder, tmp_path / "one", format=format, workers=1)
    convert("folder", folder, tmp_path / "two", format=format, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_manifest_knows_nothing_of_the_machine(folder, tmp_path):
    spoil(folder / "train/cat/0.jpg")
    convert("folder", folder, tmp_path / "out", on_error="skip", max_resolution=100, quality=80, workers=1)
    text = (tmp_path / "out/manifest.json").read_text()
    assert str(tmp_path) not in text
    manifest = json.loads(text)
    assert manifest["options"] == {"max_resolution": 100, "quality": 80}
    assert [(entry["split"], entry["file"]) for entry in manifest["skipped"]] == [("train", "train/cat/0.jpg")]
    assert manifest["splits"]["train"]["max_height"] == 100


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


def test_digits_are_packed_when_absent_and_left_alone_when_there(tmp_path):
    pack_digits_if_absent(tmp_path / "digits")
    packed = open_packed(tmp_path / "digits", verify=True)
    assert (packed.format, packed.dataset, packed.classes) == ("resident", "digits", tuple("0123456789"))
    assert {name: split.count for name, split in packed.splits.items()} == {"train": 1500, "val": 297}
    before = (tmp_path / "digits/train.npy").stat().st_mtime_ns
    pack_digits_if_absent(tmp_path / "digits")
    assert (tmp_path / "digits/train.npy").stat().st_mtime_ns == before


@pytest.mark.parametrize("format", ["ffcv", "dali", "resident"])
def test_arrays_are_stored_losslessly(tmp_path, format):
    convert("digits", None, tmp_path / "out", format=format, workers=1)
    source = load_source("digits").splits["val"]
    samples = list(FORMATS[format].iter_samples(tmp_path / "out", "val", 0, 297))
    assert all(sample.data == pixels.tobytes() for sample, pixels in zip(samples, source.images, strict=True))


# ------------------------------------------------------------------------------------------------ what is refused


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


def test_resident_refuses_large_images_unless_a_resolution_is_asked_for(folder, tmp_path):
    image(0, 20, 513).save(folder / "train/cat/large.jpg")
    with pytest.raises(UserError, match=r"train/cat/large.jpg: has 513 x 20 pixels, more than 512 a side: give --max-"):
        convert("folder", folder, tmp_path / "out", format="resident", workers=1)
    packed = convert("folder", folder, tmp_path / "out", format="resident", max_resolution=64, workers=1).packed
    assert (packed.splits["train"].max_height, packed.splits["train"].max_width) == (64, 64)


def test_resident_refuses_what_the_disk_cannot_hold(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"train would take .* GB, .* are free"):
        convert("folder", folder, tmp_path / "out", format="resident", workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tar"}, "--format tar is none of ffcv, dali, resident"),
        ({"format": "resident", "quality": 90}, "--quality means nothing to --format resident"),
    ],
)
def test_options_that_do_not_go_together(folder, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        convert("folder", folder, tmp_path / "out", **options)


# ------------------------------------------------------------------------------------------------ the folder at --out


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
    assert sorted(contents(tmp_path / "out")) == ["manifest.json", "train.beton", "val.beton"]
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
    with pytest.raises(UserError, match="is neither empty nor a packed data set alone"):
        convert("folder", folder, out, force=True, workers=1)
    assert (out if kind == "file" else out / "thesis.tex").read_text() == "mine"


def test_an_empty_folder_and_a_link_to_one_will_do(folder, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    convert("folder", folder, tmp_path / "link", workers=1)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/manifest.json").is_file()


def test_a_second_conversion_to_the_same_place_is_refused(folder, tmp_path):
    from pipelines.staging import staged

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


# ------------------------------------------------------------------------------------------------ verify


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
    """Damage that was there when the checksum was taken."""
    from pipelines.packed import measure_split, write_manifest

    packed = convert("folder", folder, tmp_path / "out", workers=1).packed
    path = tmp_path / "out/val.beton"
    table = read_table(path)
    index = int(table.jpeg.nonzero()[0][1])
    data = bytearray(path.read_bytes())
    start, length = int(table.starts[index]), int(table.lengths[index])
    data[start + length // 2 : start + length] = bytes(length - length // 2)
    path.write_bytes(data)
    packed.splits["val"] = measure_split(packed.dir, "ffcv", "val")
    write_manifest(packed, [])
    with pytest.raises(UserError, match=f"sample {index} of val is damaged or incomplete|sample {index} of val cannot"):
        verify(tmp_path / "out", workers=1)


@pytest.mark.parametrize(("place", "message"), [("header", "no header of 00000000."), ("label", "is labelled")])
def test_verify_compares_shards_with_their_tables(shards, place, message):
    from pipelines.packed import measure_split, write_manifest

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
    with pytest.raises(UserError, match=f"train-000000.tar: damaged or no shard of this data set: .*{message}"):
        verify(shards, workers=1)


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_from_end_to_end(folder, tmp_path):
    out = tmp_path / "new/out"
    done = command("--dataset", "folder", "--source", folder, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "train: 8 images up to 90 x 120" in done.stdout and "images a second" in done.stdout
    again = command("--dataset", "folder", "--source", folder, "--out", out)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert again.stderr.startswith("error: ") and "--force" in again.stderr
    checked = command("--dataset", "folder", "--out", out, "--verify")
    assert checked.returncode == 0 and "every checksum agrees" in checked.stdout
    (out / "val.beton").write_bytes(b"short")
    broken = command("--dataset", "folder", "--out", out, "--verify")
    assert (broken.returncode, broken.stderr.count("\n")) == (2, 1)
    assert "val.beton: has 5 bytes" in broken.stderr


def test_the_command_reports_what_it_skipped(folder, tmp_path):
    spoil(folder / "train/cat/0.jpg")
    failed = command("--dataset", "folder", "--source", folder, "--out", tmp_path / "out")
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert failed.stderr.startswith("error: train/cat/0.jpg: ")
    skipped = command("--dataset", "folder", "--source", folder, "--out", tmp_path / "out", "--on-error", "skip")
    assert skipped.returncode == 0
    assert "skipped 1 images" in skipped.stdout and "train/cat/0.jpg: is damaged" in skipped.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dataset", "imagenet"],
        ["--dataset", "digits", "--quality", "101"],
        ["--dataset", "digits", "--max-resolution", "0"],
        ["--dataset", "digits", "--workers", "-1"],
        ["--dataset", "digits", "--max-resolution", "large"],
        ["--dataset", "digits", "--format", "tar", "--out", "nowhere"],
        ["--dataset", "folder", "--out", "nowhere"],
    ],
)
def test_wrong_arguments_end_with_2_and_no_traceback(arguments):
    done = command(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "error: " in done.stderr.splitlines()[-1]
    assert not (ROOT / "nowhere").exists() and not (ROOT / ".nowhere.partial").exists()


def slow_conversion(tmp_path: Path) -> subprocess.Popen:
    """A conversion in its own process group that goes on for some seconds, caught after its first samples."""
    source = tmp_path / "source"
    source.mkdir()
    buffer = io.BytesIO()
    image(0, 700, 700).save(buffer, "PNG")
    for number in range(1000):
        (source / f"{number:03}.png").write_bytes(buffer.getvalue())
    line = [sys.executable, "tools/convert.py", "--dataset", "folder", "--source", source, "--out", tmp_path / "out"]
    process = subprocess.Popen(
        [*map(str, line), "--workers", "2"], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    beton = tmp_path / ".out.partial/train.beton"
    deadline = time.monotonic() + 60
    while not (beton.exists() and beton.stat().st_size > 0):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def wait_for_end_of_group(group: int) -> None:
    """Workers may outlive their parent by a moment, not more."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("workers outlived the conversion")


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_not_a_hang():
    with pytest.raises(UserError, match="a worker was killed"):
        list(_map_in_order(die, range(3), 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_conversion_leaves_nothing(tmp_path, number):
    process = slow_conversion(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, "")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    wait_for_end_of_group(process.pid)


def test_a_killed_conversions_leftovers_are_cleaned_by_the_next(tmp_path):
    process = slow_conversion(tmp_path)
    process.kill()
    process.communicate(timeout=60)
    wait_for_end_of_group(process.pid)
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.partial").exists()
    (tmp_path / ".out.partial/stray").write_text("x")
    convert("digits", None, tmp_path / "out", workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert sorted(contents(tmp_path / "out")) == ["manifest.json", "train.beton", "val.beton"]
