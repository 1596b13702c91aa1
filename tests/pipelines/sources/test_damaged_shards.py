"""Shards in forms that other readers lose samples of: they are read whole, or refused."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import UserError
from pipelines.images import decode
from pipelines.sources import load_source
from pipelines.sources.base import read_file


def number(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PAIRS = [[(f"{i:04}.png", number(i)), (f"{i:04}.cls", b"%d" % (i % 3))] for i in range(12)]
GOOD = [file for pair in PAIRS for file in pair]


def tar(files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def load(tmp_path, data):
    data = data if isinstance(data, bytes) else tar(data)
    (tmp_path / "train-0.tar").write_bytes(data)
    return load_source("webdataset", tmp_path)


def numbers_and_labels(source):
    """The number that is drawn in each image, with its class."""
    train = source.splits["train"]
    drawn = [decode(read_file(image))[0].getpixel((0, 0))[0] for image in train.images]
    return {n: source.classes[label] if label >= 0 else None for n, label in zip(drawn, train.labels, strict=True)}


EXPECTED = {i: str(i % 3) for i in range(12)}


def header(data: bytes, name=b"0006.png") -> int:
    return data.index(name) // 512 * 512


DATA = tar(GOOD)
DAMAGED = {
    "a changed bit in a header": (DATA[: header(DATA) + 150] + b"\x7f" + DATA[header(DATA) + 151 :], "damaged header"),
    "a header of zeros": (DATA[: header(DATA)] + bytes(512) + DATA[header(DATA) + 512 :], "further data follow"),
    "a cut between members": (DATA[: header(DATA)], "without an end marker"),
    "a cut inside a header": (DATA[: header(DATA) + 100], "damaged header"),
    "a cut inside data": (DATA[: header(DATA) + 520], "cannot be read|without an end marker"),
    "joined archives": (DATA + DATA, "further data follow an end marker, as in joined archives"),
    "one block of zeros at the end": (DATA[: len(DATA.rstrip(b"\0")) // 512 * 512 + 1024], "without an end marker"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_shard_that_is_not_read_to_its_end_is_refused(tmp_path, name):
    data, message = DAMAGED[name]
    with pytest.raises(UserError, match=rf"train-0.tar: .*({message})"):
        load(tmp_path, data)


def test_the_usual_endings_are_read(tmp_path):
    end = len(DATA.rstrip(b"\0")) // 512 * 512 + 512
    for zeros in (1024, 10240, 512 * 7):
        assert numbers_and_labels(load(tmp_path, DATA[:end] + bytes(zeros))) == EXPECTED


def test_files_of_a_sample_belong_together_wherever_they_lie(tmp_path):
    assert numbers_and_labels(load(tmp_path, [pair[0] for pair in PAIRS] + [pair[1] for pair in PAIRS])) == EXPECTED
    order = np.random.default_rng(0).permutation(len(GOOD))
    assert numbers_and_labels(load(tmp_path, [GOOD[i] for i in order])) == EXPECTED


def test_a_key_that_comes_again_is_another_sample(tmp_path):
    again = [("0000.png", number(50)), ("0000.cls", b"2")]
    assert numbers_and_labels(load(tmp_path, [*GOOD, *again])) == EXPECTED | {50: "2"}


@pytest.mark.parametrize("prefix", ["", "./", "__MACOSX/"])
def test_what_macos_adds_is_left_out(tmp_path, caplog, prefix):
    files = [file for name, data in sorted(GOOD) for file in ((f"{prefix}._{name}", b"\0\5\26\7"), (name, data))]
    assert numbers_and_labels(load(tmp_path, files)) == EXPECTED
    assert "ignored 24 files" in caplog.text


def test_a_label_without_an_image_is_refused(tmp_path):
    source = load(tmp_path, [*GOOD, ("0012.cls", b"1")])
    assert source.splits["train"].unusable == {"train-0.tar/0012.cls": "is a label without an image"}


def img2dataset(facts):
    return [f for i in range(4) for f in ((f"{i:09}.png", number(i)), (f"{i:09}.txt", b"a"), (f"{i:09}.json", facts))]


@pytest.mark.parametrize("facts", [{"caption": "a", "url": "http://x/y.jpg"}, {"labels": [1]}, [1, 2], 1.5, 7, None])
def test_json_without_a_label_means_no_label(tmp_path, facts):
    found = numbers_and_labels(load(tmp_path, img2dataset(json.dumps(facts).encode())))
    assert found == dict.fromkeys(range(4))


@pytest.mark.parametrize("label", [b"caf\xe9", b""])
def test_the_reason_is_said_where_no_sample_can_be_used(tmp_path, label):
    with pytest.raises(UserError, match=r"the first: train-0.tar/0.png has a label that cannot be read"):
        load(tmp_path, [("0.png", number(0)), ("0.cls", label)])


@pytest.mark.parametrize("format", ["BMP", "TIFF", "GIF", "PPM"])
def test_shards_hold_what_folders_hold(tmp_path, format):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(buffer, format)
    assert numbers_and_labels(load(tmp_path, [(f"0.{format.lower()}", buffer.getvalue()), ("0.cls", b"a")])) == {9: "a"}


# Names with several dots


def test_the_last_suffix_counts_where_a_sample_has_one_image(tmp_path):
    files = [file for i in range(3) for file in ((f"{i}.input.png", number(i)), (f"{i}.cls", b"a"))]
    assert numbers_and_labels(load(tmp_path, files)) == {0: "a", 1: "a", 2: "a"}


def test_names_of_cameras(tmp_path):
    files = [(f"IMG.2024.{i:02}.png", number(i)) for i in range(3)]
    labels = [(f"IMG.2024.{i:02}.cls", b"%d" % i) for i in range(3)]
    assert numbers_and_labels(load(tmp_path, files)) == {0: None, 1: None, 2: None}
    assert numbers_and_labels(load(tmp_path, files + labels)) == {0: "0", 1: "1", 2: "2"}


def test_the_plain_image_is_preferred_to_masks(tmp_path):
    files = [("0.png", number(0)), ("0.seg.png", number(99)), ("0.cls", b"a")]
    assert numbers_and_labels(load(tmp_path, files)) == {0: "a"}


def test_several_images_of_a_sample_are_refused(tmp_path):
    source = load(tmp_path, [*GOOD, ("x.input.png", number(0)), ("x.target.png", number(99))])
    assert set(source.splits["train"].unusable.values()) == {"is one of 2 images of its sample"}
