"""What the tests of conversion and of packed data sets share."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import UserError
from pipelines.formats.packed import open_packed

FFCV_FILES = {"manifest.json", "train.beton", "train-crc32.npy", "val.beton", "val-crc32.npy"}


def image(seed: int, height: int, width: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def tar_member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    """An empty member of an archive; a link leads out of it."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


def touch(root: Path, *files: str) -> Path:
    """Files that are no images: a source lists them by name and does not open them."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")
    return root


def spoil(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(folder: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        open_packed(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def renew_manifest(folder: Path) -> None:
    """Make sizes and checksums agree again, so that only the tables can reveal the damage."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in manifest["splits"].values():
        for file, entry in split["files"].items():
            entry["bytes"] = (folder / file).stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
