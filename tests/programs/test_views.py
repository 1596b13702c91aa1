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


def test_the_digits_are_packed_when_they_are_absent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_program("views", "-c", "demo", "--out", "views.png", "--images", 2, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "views.png").is_file() and (tmp_path / "data/digits-resident/manifest.json").is_file()
