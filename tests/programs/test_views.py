"""The contact sheet of tools/views.py."""

import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from support.programs import run_program

NOTHING_RANDOM = ["augment.scale=[1, 1]", "augment.ratio=[1, 1]", "augment.jitter=0", "augment.gray=0"]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return run_program("tools/views.py", "-c", "configs/demo.yaml", "data.image_size=8", *arguments)


def test_sheet_shows_originals_and_their_views(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "views.png"
    result = run(f"data.dir={digits}", *NOTHING_RANDOM, "--out", str(out), "--images", "3", "--epochs", "2")
    assert result.returncode == 0, result.stderr
    assert "3 images" in result.stdout
    assert list(tmp_path.iterdir()) == [out]
    sheet = np.asarray(Image.open(out))
    cell, gap = 96, 4  # 8 pixels, each magnified 12 times
    assert sheet.shape == (3 * (cell + gap) + gap, 2 * gap + cell + 2 * (4 * gap + 2 * cell + gap), 3)
    lefts = [4, 4 + 96 + 16, 4 + 96 + 16 + 100, 4 + 96 + 16 + 212, 4 + 96 + 16 + 312]
    originals = []
    for top in (4, 104, 204):
        original, *views = (sheet[top : top + cell, left : left + cell] for left in lefts)
        assert all(np.array_equal(view, original) for view in views)
        assert np.array_equal(original[::12, ::12].repeat(12, axis=0).repeat(12, axis=1), original)
        originals.append(original.tobytes())
    assert len(set(originals)) == 3


def test_sheet_shows_all_views_of_both_groups(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "views.png"
    many = ("augment.views=3", "augment.local_views=2", "augment.local_size=4", "augment.local_scale=[1, 1]")
    result = run(f"data.dir={digits}", *NOTHING_RANDOM, *many, "--out", str(out), "--images", "1", "--epochs", "1")
    assert "1 images, 5 views of each in 1 epochs" in result.stdout
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (2 * 4 + 96, 2 * 4 + 96 + 4 * 4 + 5 * 100 - 4, 3)
    original, *views = (sheet[4:100, left : left + 96] for left in (4, *range(116, 616, 100)))
    assert all(np.array_equal(view, original) for view in views[:3])
    assert np.array_equal(views[3], views[4])  # four pixels a side, each magnified 24 times
    assert np.array_equal(views[3][::24, ::24].repeat(24, axis=0).repeat(24, axis=1), views[3])


def test_the_digits_are_packed_when_they_are_absent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_program("views", "-c", "demo", "--out", "views.png", "--images", 2, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "views.png").is_file() and (tmp_path / "data/digits-resident/manifest.json").is_file()
