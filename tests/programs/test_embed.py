"""Embeddings of pictures that are not packed: every form that ``embed`` takes, and tools/embed.py."""

import contextlib
import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import vssl
from pipelines.convert import convert
from pipelines.errors import UserError
from pipelines.images import ImageError
from pipelines.loading.build import build_loader
from pipelines.loading.pictures import Picture, decode_ahead
from support.packing import image, spoil
from support.programs import run_program
from support.training import save_untrained, small_config
from vssl.engine.checkpoint import export_backbone
from vssl.evaluation.features import extract_features
from vssl.inference import Pretrained
from vssl.models.weights import backbone_weights


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    return save_untrained(small_config(digits, tmp_path_factory.mktemp("runs") / "run", "data.batch_size=4"))


@pytest.fixture(scope="module")
def model(run):
    return vssl.load(run, device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with a picture of each kind."""
    root = tmp_path_factory.mktemp("pictures")
    exif = Image.Exif()
    exif[0x0112] = 6
    see_through = image(2, 12, 20).convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize((20, 12)))
    deep = np.asarray(image(3, 15, 11).convert("L")).astype(np.uint16) * 257
    (root / "a" / "deeper").mkdir(parents=True)
    (root / "b").mkdir()
    image(0, 14, 30).save(root / "a" / "rotated.jpg", exif=exif)
    image(1, 30, 14).save(root / "a" / "rgb.png")
    see_through.save(root / "a" / "alpha.png")
    see_through.convert("LA").save(root / "a" / "deeper" / "gray-alpha.png")
    Image.fromarray(deep).save(root / "b" / "16-bit.png")
    image(4, 9, 9).convert("L").save(root / "b" / "gray.jpg")
    image(5, 16, 24).convert("CMYK").save(root / "b" / "cmyk.jpg")
    image(6, 21, 21).quantize(16).save(root / "b" / "palette.gif")
    return root


@pytest.fixture
def paths(pictures):
    """In sorted order, the files of a folder before its subfolders."""
    names = ["a/alpha", "a/rgb", "a/rotated", "a/deeper/gray-alpha", "b/16-bit", "b/cmyk", "b/gray", "b/palette"]
    return [next(pictures.glob(f"{name}.*")) for name in names]


@pytest.fixture
def parquet():
    return pytest.importorskip("pyarrow.parquet")


def embed(*arguments):
    return run_program("tools/embed.py", *arguments, "--device", "cpu")


# vssl.load(RUN).embed


def test_pictures_are_converted_as_for_a_packed_data_set(model, pictures, tmp_path):
    packed = convert("folder", pictures, tmp_path / "packed", format="resident", workers=1).packed
    data = dataclasses.replace(model.config.data, loader="auto")
    settings = {"train": False, "seed": 0, "device": torch.device("cpu")}
    with contextlib.closing(build_loader(data, model.config.augment, packed, "train", **settings)) as loader:
        expected, _ = extract_features(
            model.backbone, loader, model.augment.evaluate, autocast=lambda: torch.autocast("cpu", enabled=False)
        )
    assert_close(model.features(pictures), expected)


def test_pil_images_are_converted_as_their_files(model, paths):
    pairs = [Picture(path.name, content) for path in paths for content in (str(path), Image.open(path))]
    (decoded,) = decode_ahead(pairs, len(pairs), model.config.data)
    for (name, pixels), (_, same) in zip(decoded[::2], decoded[1::2], strict=True):
        difference = np.abs(pixels.astype(int) - same).max()
        assert difference <= (2 if name.endswith(".jpg") else 0)  # two versions of the same JPEG decoder
    assert dict(decoded)["rotated.jpg"].shape == (30, 14, 3)


def test_one_by_one_or_together_in_any_form(model, pictures, paths):
    alone = [model.embed(path) for path in paths]
    mean, variance = (torch.cat(part) for part in zip(*alone, strict=True))
    pixels = [np.array(Image.open(path)) for path in paths[1:2]]
    forms = [
        pictures,
        str(pictures),
        paths,
        map(str, paths),
        [pictures / "a", (path for path in paths[4:])],
        [paths[0], pixels[0], *paths[2:]],
        [Image.open(paths[0]), torch.from_numpy(pixels[0]), *paths[2:]],
        [paths[0], np.stack(pixels), *paths[2:]],
        [paths[0], pixels[0][:, ::-1][:, ::-1], *paths[2:]],
    ]
    for form in forms:
        together = model.embed(form)
        assert_close(together.mean, mean)
        assert_close(together.variance, variance)
    assert_close(model.embed(pixels[0]).mean, mean[1:2])
    assert_close(model.embed(paths, batch_size=3).mean, mean)


def test_normalised_floats_may_be_an_array(model):
    normalised = torch.randn(6, 3, 8, 8)
    assert_close(model.features(normalised.numpy()), model.features(normalised))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are no images"),
        (iter(()), "there are no images"),
        (np.zeros((0, 8, 8, 3), np.uint8), "there are no images"),
        (torch.zeros(0, 3, 8, 8), "there are no images"),
        (np.zeros((8, 8), np.uint8), r"images must be uint8 \[H, W, 3\] or \[N, H, W, 3\], not uint8 \[8, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), r"not uint8 \[8, 8, 4\]"),
        (np.zeros((0, 8, 3), np.uint8), r"not uint8 \[0, 8, 3\]"),
        (np.zeros((8, 8, 3), np.int64), r"not int64 \[8, 8, 3\]"),
        ([np.zeros((8, 8, 3), np.float32)], r"not float32 \[8, 8, 3\]"),
        (np.zeros((8, 8, 3), np.float32), r"normalised images must be \[N, 3, 8, 8\], not \[8, 8, 3\]"),
        (torch.zeros(3, 8, 8), r"normalised images must be \[N, 3, 8, 8\], not \[3, 8, 8\]"),
        (None, "an image must be a path, a PIL image or an array, not NoneType"),
        (b"\xff\xd8", "not bytes"),
        ([1, 2], "not int"),
    ],
)
def test_what_is_no_image_is_refused(model, images, message):
    with pytest.raises(ValueError, match=message):
        model.embed(images)


def test_a_missing_or_damaged_picture_is_named(model, paths, tmp_path):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.png"
    image(0, 40, 40).save(broken)
    spoil(broken)
    for images, message in [
        ([*paths, tmp_path / "absent.jpg"], "absent.jpg: cannot be read: No such file or directory"),
        (broken, "broken.png: cannot be decoded"),
        ([paths[0], Image.open(broken)], "broken.png: cannot be decoded"),
        ([paths[0], Image.fromarray(np.zeros((4, 4), np.int32))], r"images\[1\]: has 32-bit pixels"),
        (tmp_path / "empty", "empty: holds no image"),
    ]:
        with pytest.raises(UserError, match=message):
            model.embed(images)


def test_a_long_iterator_is_read_as_it_is_needed(model):
    taken, seen = 0, []

    def pixels():
        nonlocal taken
        for value in range(40):
            taken += 1
            yield np.full((9, 9, 3), value, np.uint8)

    hook = model.backbone.register_forward_hook(lambda *_: seen.append(taken))
    assert len(model.features(pixels(), batch_size=2)) == 40
    hook.remove()
    assert len(seen) == 20 and all(count <= 2 * (batch + 3) for batch, count in enumerate(seen))


def test_large_pictures_are_scaled_down_in_memory(model, tmp_path):
    image(0, 60, 200).save(tmp_path / "wide.png")
    data = dataclasses.replace(model.config.data, canvas=100)
    same = [str(tmp_path / "wide.png"), Image.open(tmp_path / "wide.png"), np.array(Image.open(tmp_path / "wide.png"))]
    ((first, *others),) = decode_ahead([Picture("wide", content) for content in same], 8, data)
    assert first[0] == "wide" and first[1].shape == (30, 100, 3)
    assert all((pixels == first[1]).all() for _, pixels in others)


def test_why_a_picture_cannot_be_used_is_its_result(model):
    pictures = [Picture("here", np.zeros((2, 2, 3), np.uint8)), Picture("gone", "absent.jpg")]
    ((good, bad),) = decode_ahead(pictures, 8, model.config.data)
    assert good[1].shape == (2, 2, 3) and bad[0] == "gone" and isinstance(bad[1], ImageError)


# tools/embed.py


def test_a_row_for_every_picture(run, model, pictures, paths, tmp_path, parquet):
    out = tmp_path / "new" / "e.parquet"
    done = embed(run, pictures, "--out", out, "--batch-size", 3)
    assert (done.returncode, done.stdout) == (0, f"{out}: 8 images\n")
    file = parquet.ParquetFile(out)
    rows, vectors = file.read(), "fixed_size_list<element: float>[8]"
    assert rows.schema.names == ["path", "mean", "variance"]
    assert list(map(str, rows.schema.types)) == ["string", vectors, vectors]
    assert file.num_row_groups == 3 and list(out.parent.iterdir()) == [out]
    assert rows["path"].to_pylist() == [path.relative_to(pictures).as_posix() for path in paths]
    mean, variance = model.embed(paths)
    assert_close(torch.tensor(rows["mean"].to_pylist()), mean)
    assert_close(torch.tensor(rows["variance"].to_pylist()), variance)


def test_a_single_picture(run, paths, tmp_path, parquet):
    assert embed(run, paths[0], "--out", tmp_path / "e.parquet").returncode == 0
    assert parquet.read_table(tmp_path / "e.parquet")["path"].to_pylist() == ["alpha.png"]


def test_an_unusable_picture_ends_it_or_is_skipped(run, tmp_path, parquet):
    source, out = tmp_path / "source", tmp_path / "e.parquet"
    source.mkdir()
    for number in range(6):
        image(number, 20, 20).save(source / f"{number}.png")
    spoil(source / "2.png")
    (source / "4.png").unlink()
    os.mkfifo(source / "4.png")
    failed = embed(run, source, "--out", out, "--batch-size", 1)
    assert (failed.returncode, failed.stdout) == (2, "") and os.listdir(tmp_path) == ["source"]
    assert failed.stderr.startswith("error: 2.png: cannot be decoded") and failed.stderr.count("\n") == 1
    assert failed.stderr.endswith("(--on-error skip leaves it out)\n")
    skipped = embed(run, source, "--out", out, "--batch-size", 1, "--on-error", "skip")
    assert skipped.returncode == 0 and f"{out}: 4 images\nskipped 2:\n  2.png: cannot be" in skipped.stdout
    assert skipped.stdout.endswith("\n  4.png: is not a regular file\n")
    assert parquet.read_table(out)["path"].to_pylist() == ["0.png", "1.png", "3.png", "5.png"]


def test_a_file_is_replaced_only_with_force_and_only_when_the_new_one_is_whole(run, paths, tmp_path, parquet):
    out = tmp_path / "e.parquet"
    out.write_text("mine")
    refused = embed(run, paths[0], "--out", out)
    assert (refused.returncode, refused.stderr) == (2, f"error: {out}: already exists; --force replaces it\n")
    assert embed(run, tmp_path / "absent.jpg", "--out", out, "--force").returncode == 2
    assert out.read_text() == "mine"
    assert embed(run, paths[0], "--out", out, "--force").returncode == 0
    assert parquet.read_table(out).num_rows == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_leaves_nothing(run, pictures, tmp_path, monkeypatch, number, parquet):
    calls, compute = [], Pretrained.embed

    def stop_at_the_third(*arguments, **options):
        calls.append(None)
        if len(calls) == 3:
            assert len(os.listdir(tmp_path)) == 1  # under a temporary name
            signal.raise_signal(number)
        return compute(*arguments, **options)

    monkeypatch.setattr(Pretrained, "embed", stop_at_the_third)
    done = embed(run, pictures, "--out", tmp_path / "e.parquet", "--batch-size", 2)
    assert done.returncode == 128 + number
    assert done.stderr == f"stopped: {tmp_path / 'e.parquet'} was not written\n"
    assert os.listdir(tmp_path) == []


def test_without_a_variance_the_features_are_written(digits, run, pictures, tmp_path, parquet):
    byol = save_untrained(small_config(digits, tmp_path / "byol", "method.name=byol"))
    export = Path(run, "backbone.safetensors")
    export_backbone(backbone_weights(vssl.load(run).method.state_dict()), export)
    out = tmp_path / "f.parquet"
    for source, reason in ((byol, "method.name=byol has no variance"), (export, f"{export} is a backbone alone")):
        refused = embed(source, pictures, "--out", out)
        assert refused.returncode == 2 and not out.exists()
        assert refused.stderr.startswith(f"error: {reason}") and refused.stderr.count("\n") == 1
        assert refused.stderr.endswith("--features writes the backbone's features instead\n")
        assert embed(source, pictures, "--out", out, "--features", "--force").returncode == 0
        rows = parquet.read_table(out)
        assert rows.schema.names == ["path", "features"]
        assert_close(torch.tensor(rows["features"].to_pylist()), vssl.load(source, device="cpu").features(pictures))
        out.unlink()
