"""What was packed is what is trained on: any changed bit of a sample is noticed when the sample is first read."""

import multiprocessing
import shutil
import struct
import tarfile
import zlib

import numpy as np
import pytest

from pipelines.convert import convert, verify
from pipelines.errors import UserError
from pipelines.formats import checksums as module
from pipelines.formats.checksums import Checksums, checksum, checksum_file
from pipelines.formats.ffcv.format import read_table
from pipelines.formats.packed import measure_split, open_packed, open_reader, write_manifest
from support.damage import damaged, flip_bit
from support.loading import FORMATS, epoch_of
from support.packing import refused, renew_manifest

COUNT = 43
EVERY = [(form, name) for form in FORMATS for name in ("tiny", "photographs")]


@pytest.fixture
def flipped(packed, tmp_path):
    """``flipped(format, name, *indices)``: a copy with one bit flipped in each of these samples, or in all."""

    def flip(form, name, *indices):
        rng = np.random.default_rng(7)
        return damaged(packed(name, form), tmp_path, flip_bit(rng), *(indices or range(COUNT)))

    return flip


def noticed(index):
    return pytest.raises(UserError, match=rf"train.*: sample {index} does not match its checksum in train-crc32.npy")


# What is stored


def test_a_checksum_is_the_crc32_of_label_height_width_and_stored_bytes(folder, tmp_path):
    def expected(label, size, data):
        return zlib.crc32(struct.pack("<qii", label, *size) + data)

    for form in FORMATS:
        convert("folder", folder, tmp_path / form, format=form, workers=1)
    sums = {form: np.load(tmp_path / form / "train-crc32.npy") for form in FORMATS}
    assert {array.dtype for array in sums.values()} == {np.dtype(np.uint32)}

    table, data = read_table(tmp_path / "ffcv/train.beton"), (tmp_path / "ffcv/train.beton").read_bytes()
    places = zip(table.starts.tolist(), table.lengths.tolist(), strict=True)
    stored = {"ffcv": [data[start : start + length] for start, length in places]}
    stored["resident"] = [row.tobytes() for row in np.load(tmp_path / "resident/train.npy")]
    with tarfile.open(tmp_path / "dali/train-000000.tar") as tar:
        stored["dali"] = [tar.extractfile(file).read() for file in tar if not file.name.endswith("cls")]
    for form in FORMATS:
        rows = zip(table.labels.tolist(), table.sizes.tolist(), stored[form], strict=True)
        assert sums[form].tolist() == [expected(*row) for row in rows], form


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3, np.uint32), r"holds uint32 \[3\] instead of uint32 \[4\]"),
        (np.zeros(4, np.int64), r"holds int64 \[4\] instead of uint32 \[4\]"),
        (None, "damaged or not a .npy file"),
    ],
)
def test_checksums_that_do_not_belong_to_the_split_are_refused(copy, form, array, message):
    folder = copy(form)
    path = folder / checksum_file("val")
    np.save(path, array) if array is not None else path.write_bytes(b"x" * path.stat().st_size)
    renew_manifest(folder)
    refused(folder, f"val-crc32.npy: {message}")


# What is noticed


@pytest.mark.parametrize(("form", "name"), EVERY)
def test_a_reader_notices_every_flipped_bit(flipped, form, name):
    reader = open_reader(flipped(form, name), "train")
    for _ in range(2):  # every time, not only the first
        for index in range(COUNT):
            with noticed(index):
                reader.image(index)


@pytest.mark.parametrize("form", ["ffcv", "dali"])
@pytest.mark.parametrize("name", ["tiny", "photographs"])
@pytest.mark.parametrize("train", [True, False])
def test_a_loader_stops_at_every_flipped_bit(build, flipped, form, name, train):
    loader = build(form, flipped(form, name), train=train, batch_size=1, workers=1)
    for batches, (index,) in enumerate(list(loader.sampler.remaining())):
        loader.load_state_dict({"seed": 5, "epoch": 0, "batches": batches})
        with noticed(index):
            next(iter(loader))


@pytest.mark.parametrize(("form", "name"), EVERY)
def test_the_torch_loader_stops_at_flipped_bits(build, flipped, form, name):
    loader = build("torch", flipped(form, name), batch_size=1, workers=1, prefetch=1)
    for batches, (index,) in list(enumerate(loader.sampler.remaining()))[:: COUNT // 4]:
        loader.load_state_dict({"seed": 5, "epoch": 0, "batches": batches})
        with noticed(index):
            next(iter(loader))


@pytest.mark.parametrize("name", ["tiny", "photographs"])
def test_resident_data_are_compared_before_training(build, flipped, name):
    for index in (0, 17, COUNT - 1):
        broken = flipped("resident", name, index)
        with noticed(index):
            build("resident", broken)
        shutil.rmtree(broken.dir)


def change_array(name, change):
    def in_place(folder):
        array = np.load(folder / name)
        change(array)
        np.save(folder / name, array)

    return in_place


def change_beton(place, value):
    """In the row of sample 17 in the table."""

    def in_place(folder):
        data = bytearray((folder / "train.beton").read_bytes())
        data[24 + 2 * 1041 + 24 * 17 + place] = value
        (folder / "train.beton").write_bytes(data)

    return in_place


def put(place, value):
    return lambda array: array.__setitem__(place, value)


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("ffcv", change_beton(16, 1)),
        ("dali", change_array("train-labels.npy", put(17, 1))),
        ("resident", change_array("train-labels.npy", put(17, 1))),
        ("resident", change_array("train-sizes.npy", put((17, 0), 15))),
        *((form, change_array("train-crc32.npy", put(17, 0))) for form in FORMATS),
    ],
)
def test_a_changed_label_size_or_checksum_is_noticed_too(packed, tmp_path, form, change):
    good = packed("tiny", form)
    assert open_reader(good, "train").labels[17] == 0
    folder = shutil.copytree(good.dir, tmp_path / "changed")
    change(folder)
    reader = open_reader(open_packed(folder), "train")
    reader.image(16), reader.image(18)
    with noticed(17):
        reader.image(17)


@pytest.mark.parametrize(("form", "name"), EVERY)
def test_verify_compares_checksums_of_samples(flipped, form, name):
    """Damage between the writing of a sample and the SHA-256 of its file."""
    broken = flipped(form, name, 17)
    broken.splits["train"] = measure_split(broken.dir, form, "train")
    write_manifest(broken, [])
    open_packed(broken.dir, verify=True)
    with noticed(17):
        verify(broken.dir, workers=1)


# What it costs


@pytest.mark.parametrize("form", ["ffcv", "dali"])
@pytest.mark.parametrize("train", [True, False])
def test_a_sample_is_compared_once(build, monkeypatch, form, train):
    calls = []
    monkeypatch.setattr(module, "checksum", lambda *sample: calls.append(sample) or checksum(*sample))
    loader = build(form, train=train, drop_last=False)
    assert calls == []
    epoch_of(loader, 0)
    assert len(calls) == COUNT
    epoch_of(loader, 1)
    assert len(calls) == COUNT


def test_processes_that_are_forked_share_what_was_compared(packed):
    packed = packed("tiny", "resident")
    reader = open_reader(packed, "train")
    shared = Checksums(packed.dir, "train", reader.labels, reader.sizes)
    rows = np.load(packed.dir / "train.npy")
    child = multiprocessing.get_context("fork").Process(target=shared.check, args=(17, rows[17], packed.dir))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert shared.unchecked(np.arange(16, 19)).tolist() == [16, 18]
