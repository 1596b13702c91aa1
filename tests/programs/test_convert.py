"""tools/convert.py as a user runs it, interrupts it and kills it."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pipelines.convert import convert
from support.packing import FFCV_FILES, contents, image, spoil

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: object, **options) -> subprocess.CompletedProcess:
    line = [sys.executable, ROOT / "tools/convert.py", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=60, **options)


def test_the_command_from_end_to_end(folder, tmp_path):
    out = tmp_path / "new/out"
    done = command("--dataset", "folder", "--source", folder, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "train: 8 images up to 90 x 120" in done.stdout and "images per second" in done.stdout
    again = command("--dataset", "folder", "--source", folder, "--out", out)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert again.stderr.startswith("error: ") and "--force" in again.stderr
    checked = command("--verify", "--out", out)
    assert checked.returncode == 0 and "every checksum agrees" in checked.stdout
    (out / "val.beton").write_bytes(b"short")
    broken = command("--verify", "--out", out)
    assert (broken.returncode, broken.stderr.count("\n")) == (2, 1)
    assert "val.beton: has 5 bytes" in broken.stderr


def test_the_command_reports_what_it_skipped(folder, tmp_path):
    spoil(folder / "train/cat/0.jpg")
    failed = command("--dataset", "folder", "--source", folder, "--out", tmp_path / "out")
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert failed.stderr.startswith("error: train/cat/0.jpg: ")
    Path(os.fsdecode(os.fsencode(folder / "train/cat") + b"/\xff.jpg")).touch()  # not UTF-8
    arguments = ("--dataset", "folder", "--source", folder, "--out", tmp_path / "out", "--on-error", "skip")
    skipped = command(*arguments, env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    assert skipped.returncode == 0, skipped.stderr
    assert "skipped 2; manifest.json lists all" in skipped.stdout and "train/cat/0.jpg: is damaged" in skipped.stdout
    assert "train/cat/\\udcff.jpg: is empty (0 bytes)" in skipped.stdout


def test_a_dry_run_says_what_is_there_and_packs_nothing(folder, tmp_path):
    spoil(folder / "train/cat/0.jpg")
    arguments = ("--dataset", "folder", "--source", folder, "--out", tmp_path / "out", "--preview", tmp_path / "p.png")
    done = command(*arguments, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "train: 7 images, 7 labelled, the first is train/cat/1" in done.stdout
    assert "left out: 1\n  is damaged or incomplete: 1" in done.stdout
    assert "classes: 2\n  cat: " in done.stdout and "nothing was packed" in done.stdout
    assert not (tmp_path / "out").exists()
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.mode == "RGB" and sheet.width < 1000


def slow_conversion(tmp_path: Path) -> subprocess.Popen:
    """A conversion in its own process group that takes some seconds, returned after its first samples."""
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
    """Workers may run for a moment after their parent has ended, not longer."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("workers outlived the conversion")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_conversion_leaves_nothing(tmp_path, number):
    process = slow_conversion(tmp_path)
    os.killpg(process.pid, number)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    out = tmp_path / "out"
    assert (process.returncode, errors) == (
        128 + number,
        f"stopped: nothing was packed, {out} is as it was before\n",
    )
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
    assert set(contents(tmp_path / "out")) == FFCV_FILES
