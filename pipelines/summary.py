"""What a conversion has read: images, classes, what was left out or converted, and a contact sheet of it."""

import io
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw

from pipelines.files import write_atomically
from pipelines.images import Sample

__all__ = ["Summary", "draw_sheet"]

_CELL = 64  # longest side of a picture on the sheet, in pixels
_PER_CLASS = 4
_MOST_CLASSES = 1000  # on a sheet
_LINE = 14  # height of a name, in pixels
_GAP = 6
_MOST_LINES = 20  # classes and reasons that are listed


@dataclass
class Summary:
    """Filled image by image; holds counts, and small copies of a few images of each class if ``sheet`` is true."""

    classes: tuple[str, ...]
    sheet: bool = False
    counts: dict[str, Counter[int]] = field(default_factory=dict)  # by split: images by label, -1: none
    first: dict[str, str] = field(default_factory=dict)  # by split: its first image, which shows how it was recognised
    left_out: Counter[str] = field(default_factory=Counter)  # by reason
    changes: Counter[str] = field(default_factory=Counter)  # by kind; an image may count several times
    thumbnails: dict[int, list[Image.Image]] = field(default_factory=dict)  # by label

    def add(self, split: str, file: str, sample: Sample, label: int, changes: list[str]) -> None:
        """Count an image."""
        self.counts.setdefault(split, Counter())[label] += 1
        self.first.setdefault(split, file)
        self.changes.update(changes)
        if self.sheet and label < _MOST_CLASSES:
            kept = self.thumbnails.setdefault(label, [])
            if len(kept) < _PER_CLASS:
                kept.append(_thumbnail(sample))

    def leave_out(self, reason: str) -> None:
        """Count what cannot be used; reasons that differ only behind a colon are one."""
        self.left_out[reason.partition(":")[0]] += 1

    def lines(self) -> list[str]:
        """For people: splits, classes with counts, reasons and kinds."""
        lines = []
        for split, counts in self.counts.items():
            labelled = sum(count for label, count in counts.items() if label >= 0)
            total = counts.total()
            labels = f"{labelled:,} labelled" if labelled else "no labels"
            lines.append(f"{split}: {total:,} images, {labels}, the first is {self.first[split]}")
        lines += _some("classes", [(name, self._per_split(index)) for index, name in enumerate(self.classes)])
        lines += _some("left out", [(reason, f"{count:,}") for reason, count in self.left_out.most_common()])
        lines += _some("converted", [(kind, f"{count:,}") for kind, count in self.changes.most_common()])
        return lines

    def _per_split(self, label: int) -> str:
        return ", ".join(f"{counts[label]:,} {split}" for split, counts in self.counts.items())


def draw_sheet(summary: Summary, path: Path) -> None:
    """Write a PNG with up to four images of each class, upright and in RGB as they are packed, scaled to 64 pixels.

    At most 1000 classes are drawn, in their order.
    """
    labels = sorted(summary.thumbnails)
    width, height = _PER_CLASS * (_CELL + 2) + _GAP, _CELL + _LINE + _GAP
    columns = max(1, round(math.sqrt(len(labels) * height / width)))
    sheet = Image.new("RGB", (columns * width + _GAP, -(-len(labels) // columns) * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for place, label in enumerate(labels):
        left, top = _GAP + place % columns * width, _GAP + place // columns * height
        name = summary.classes[label] if label >= 0 else "no label"
        draw.text((left, top), name.encode("ascii", "backslashreplace").decode()[:40], "black")
        for number, image in enumerate(summary.thumbnails[label]):
            sheet.paste(image, (left + number * (_CELL + 2), top + _LINE))
    write_atomically(path, lambda temporary: sheet.save(temporary, "PNG"))


def _thumbnail(sample: Sample) -> Image.Image:
    if sample.jpeg:
        image: Image.Image = Image.open(io.BytesIO(sample.data)).convert("RGB")
    else:
        image = Image.frombytes("RGB", (sample.width, sample.height), sample.data)
    image.thumbnail((_CELL, _CELL))
    return image


def _some(title: str, entries: list[tuple[str, str]]) -> list[str]:
    """The first entries below a title; none if there are none."""
    more = [f"  ... and {len(entries) - _MOST_LINES:,} more"] if len(entries) > _MOST_LINES else []
    shown = [f"  {name}: {count}" for name, count in entries[:_MOST_LINES]]
    return [f"{title}: {len(entries):,}", *shown, *more] if entries else []
