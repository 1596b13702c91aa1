"""The same images for every loader: photographs as files, .beton and shards; small images as an array."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipelines.convert import convert
from pipelines.errors import UserError
from pipelines.formats.packed import MANIFEST, Packed, open_packed
from pipelines.images import DEFAULT_QUALITY, ImageError, PackingRecipe, prepare

__all__ = ["Photographs", "Pixels", "open_pixels", "prepare_photographs"]


@dataclass(frozen=True)
class Photographs:
    files: list[Path]  # JPEG files, one per image
    ffcv: Packed
    dali: Packed

    def describe(self) -> dict:
        """Plain values for a report."""
        megabytes = sum(file.stat().st_size for file in self.files) / 1e6
        return {"count": len(self.files), "mean_kilobytes": round(1e3 * megabytes / len(self.files), 1)}


@dataclass(frozen=True)
class Pixels:
    """The first ``count`` training images of a packed data set of format resident."""

    packed: Packed
    count: int

    @property
    def side(self) -> int:
        """The longest side of all images, in pixels."""
        split = self.packed.splits["train"]
        return max(split.max_height, split.max_width)

    def describe(self) -> dict:
        """Plain values for a report."""
        return {"count": self.count, "side": self.side, "dataset": self.packed.dataset}


def open_pixels(dir: Path, count: int) -> Pixels:
    """The first images, at most ``count``. Raises UserError for a data set of another format."""
    packed = open_packed(dir)
    if packed.format != "resident":
        raise UserError(f"{dir} has format {packed.format}: pack the images with --format resident")
    return Pixels(packed, min(count, packed.splits["train"].count))


def prepare_photographs(source: Path, work: Path, count: int, max_resolution: int | None, workers: int) -> Photographs:
    """Make ``count`` JPEG files from those under ``source``, repeated if too few, and pack them, unless already done.

    Args:
        work: output folder; every combination of the other arguments has its own folder in it.
        max_resolution: scale larger images down to this longest side and encode them again. None: keep the files.

    Raises:
        UserError: ``source`` has no JPEG files, or one of them cannot be used.
    """
    originals = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:count]
    if not originals:
        raise UserError(f"{source}: no .jpg or .jpeg files there")
    identity = "\n".join(f"{path.relative_to(source)} {path.stat().st_size}" for path in originals)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    folder = work / f"{count}-{max_resolution or 'original'}-{digest}"
    images = folder / "images"
    if not images.exists():
        _write_files(originals, images, count, max_resolution)
    packed = {format: folder / format for format in ("ffcv", "dali")}
    for format, out in packed.items():
        if not (out / MANIFEST).exists():
            convert("folder", images, out, format=format, workers=workers)
    return Photographs(sorted(images.iterdir()), *(open_packed(out) for out in packed.values()))


def _write_files(originals: list[Path], images: Path, count: int, max_resolution: int | None) -> None:
    recipe = PackingRecipe(max_resolution, DEFAULT_QUALITY if max_resolution else None, raw_pixels=0, max_side=65_500)
    partial = images.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number, path in enumerate(originals):
        try:
            data = prepare(path.read_bytes(), recipe).data
        except ImageError as error:
            raise UserError(f"{path}: {error}") from error
        for copy in range(number, count, len(originals)):
            (partial / f"{copy:06}.jpg").write_bytes(data)
    partial.rename(images)
