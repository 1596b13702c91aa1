"""Readers: random access to packed images in every format."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize

from pipelines.errors import UserError
from pipelines.formats.packed import open_packed, open_reader
from support.damage import DAMAGES, damaged
from support.loading import FORMATS, psnr


def test_readers_give_what_was_packed(folders, packed):
    originals = sorted((folders / "tiny" / "train").glob("*/*.png"))
    for form in FORMATS:
        reader = open_reader(packed("tiny", form), "train")
        assert reader.labels.dtype == np.int64
        assert reader.sizes.dtype == np.int32
        assert reader.labels.tolist() == ["ab".index(path.parent.name) for path in originals]
        for index, path in enumerate(originals):
            np.testing.assert_array_equal(reader.image(index), np.asarray(Image.open(path)))
        reader.close()
        reader.close()


def test_opening_jpegs_keeps_torchs_number_of_threads(packed):
    program = """
import sys, torch
from pipelines.formats.packed import open_packed, open_reader
torch.set_num_threads(3)
open_reader(open_packed(sys.argv[1]), "train")
print(torch.get_num_threads())
"""
    command = [sys.executable, "-c", program, str(packed("photographs", "ffcv").dir)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr


@pytest.mark.parametrize("form", ["ffcv", "dali"])
def test_reader_decodes_jpegs_as_pillow_does(folders, packed, form):
    reader = open_reader(packed("photographs", form), "train")
    for index, path in enumerate(sorted((folders / "photographs" / "train").glob("*/*.jpg"))):
        expected = torch.tensor(np.asarray(Image.open(path)))
        image = torch.from_numpy(reader.image(index))
        assert list(image.shape[:2]) == reader.sizes[index].tolist() == list(expected.shape[:2])
        assert psnr(image, expected) > 38  # ffcv takes the faster of two DCTs


@pytest.mark.parametrize("denominator", [2, 4, 8])
def test_reader_decodes_at_a_reduced_scale(packed, denominator):
    reader = open_reader(packed("photographs", "ffcv"), "train")
    scratch, psnrs = np.empty(3 * 200 * 200, np.uint8), []
    for index, (height, width) in enumerate(reader.sizes.tolist()):
        small = torch.from_numpy(reader.decode(index, scratch, denominator))
        assert small.shape == (-(-height // denominator), -(-width // denominator), 3)
        full = torch.from_numpy(reader.image(index)).permute(2, 0, 1)
        psnrs.append(psnr(small, resize(full, list(small.shape[:2]), antialias=True).permute(1, 2, 0)))
    assert np.median(psnrs) > 28


def test_reader_never_writes_beyond_a_scratch_that_is_too_small(packed):
    with pytest.raises(ValueError, match="reshape"):
        open_reader(packed("photographs", "ffcv"), "train").decode(0, np.empty(100, np.uint8))


@pytest.mark.parametrize("name", ["tiny", "photographs"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_pickled_reader_holds_no_pixels(packed, name, form):
    reader = open_reader(packed(name, form), "val")
    data = pickle.dumps(reader)
    assert len(data) < 4096
    np.testing.assert_array_equal(pickle.loads(data).image(3), reader.image(3))


def test_reading_jpegs_without_ffcv_says_what_to_do(folders, monkeypatch):
    for module in ("ffcv", "ffcv.libffcv"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"train\.beton: reading its JPEGs needs ffcv.*--format resident"):
        open_reader(open_packed(folders / "photographs-ffcv"), "train")
    assert open_reader(open_packed(folders / "tiny-ffcv"), "train").image(0).shape == (16, 16, 3)


def test_an_absent_split_is_named(packed):
    with pytest.raises(UserError, match="has no split 'test', only train, val"):
        open_reader(packed("tiny", "resident"), "test")


@pytest.mark.parametrize("change", DAMAGES)
def test_a_damaged_jpeg_is_an_error_that_names_the_sample(packed, tmp_path, change):
    broken = damaged(packed("photographs", "ffcv"), tmp_path, change, 17, trusted=True)
    reader = open_reader(broken, "train")
    with pytest.raises(UserError, match=r"train\.beton: the JPEG data of sample 17 are damaged, pack the data again"):
        reader.image(17)
    reader.image(16), reader.image(18)
    with pytest.raises(UserError, match="sample 17"):
        reader.decode(17, np.empty(3 * 200 * 200, np.uint8), 2)


@pytest.mark.parametrize("change", DAMAGES)
def test_a_damaged_jpeg_in_a_shard_is_an_error_that_names_the_sample(packed, tmp_path, change):
    broken = damaged(packed("photographs", "dali"), tmp_path, change, 17, trusted=True)
    reader = open_reader(broken, "train")
    with pytest.raises(UserError, match=r"train-000000\.tar: sample 17 .*, pack the data again"):
        reader.image(17)
    reader.image(16), reader.image(18)
