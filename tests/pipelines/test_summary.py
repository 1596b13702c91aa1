"""The summary of a conversion: counts by split, class, reason and kind, and the contact sheet."""

import numpy as np
from PIL import Image

from pipelines.convert import convert, examine
from pipelines.images import Sample
from pipelines.summary import Summary, draw_sheet


def pictures(root):
    """Two classes of one colour each, with a transparent picture and a broken one."""
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (20, 10), colour).save(root / name / f"{i}.png")
    Image.new("RGBA", (20, 10), (0, 0, 255, 0)).save(root / "blue/0.png")
    (root / "red/0.png").write_bytes(b"x")
    return root


EXPECTED = [
    "train: 11 images, 11 labelled, the first is blue/0.png",
    "classes: 2",
    "  blue: 6 train",
    "  red: 5 train",
    "left out: 1",
    "  is not an image of a known format: 1",
    "converted: 1",
    "  empty alpha left out: 1",
]


def test_a_dry_run_and_a_conversion_say_the_same(tmp_path):
    source = pictures(tmp_path / "source")
    assert examine("folder", source, workers=1).lines() == EXPECTED
    report = convert("folder", source, tmp_path / "out", on_error="skip", workers=2)
    assert report.summary.lines() == EXPECTED


def test_the_sheet_shows_each_class_as_it_is_packed(tmp_path):
    examine("folder", pictures(tmp_path / "source"), workers=1, preview=tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png")).reshape(-1, 3)
    counts = {colour: int((pixels == colour).all(1).sum()) for colour in ((255, 0, 0), (0, 0, 255))}
    assert counts == dict.fromkeys(counts, 4 * 20 * 10)


def test_many_classes_and_names_in_any_script(tmp_path):
    names = tuple(f"\u732b {i}" for i in range(1200))
    summary = Summary(names, sheet=True)
    for label in range(1200):
        summary.add("train", "x", Sample(1, 1, False, bytes(3)), label, [])
    draw_sheet(summary, tmp_path / "sheet.png")
    assert max(Image.open(tmp_path / "sheet.png").size) < 10_000
    assert summary.lines()[-1] == "  ... and 1,180 more"


def test_without_labels_all_images_are_of_one_kind(tmp_path):
    source = pictures(tmp_path / "source")
    packed = convert("folder", source, tmp_path / "out", format="resident", on_error="skip", no_labels=True).packed
    assert packed.classes == () and np.load(tmp_path / "out/train-labels.npy").tolist() == [-1] * 11
    assert examine("folder", source, no_labels=True).lines()[0].startswith("train: 11 images, no labels")
