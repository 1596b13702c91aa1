"""Draw what training sees: images and their augmented views.

The sheet has one row per image, first the original, then its two views in each epoch.

Example:
  vssl views -c cifar10_fast augment.gray=0.5 --out views.png
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.augment.views import Augment
from pipelines.files import check_writable, write_atomically
from pipelines.formats.packed import open_reader
from pipelines.loading.build import build_loader
from vssl.commands.arguments import whole
from vssl.config import ConfigParser
from vssl.engine.build import open_data
from vssl.engine.config import Config, load_config
from vssl.report.pictures import fit, to_pixels
from vssl.runtime.processes import World

_CELL = 96  # smallest side of a view on the sheet, in pixels
_GAP = 4  # pixels between cells; four times as much between epochs


def main(words: Sequence[str] | None = None, prog: str | None = None) -> None:
    arguments = _parse(words, prog)
    check_writable(arguments.out)
    config = load_config(arguments.config, arguments.overrides)
    packed = open_data(config, World())
    count = min(arguments.images, packed.splits["train"].count)
    data = dataclasses.replace(config.data, batch_size=count, limit=count)
    augment = Augment(config.augment, data.image_size)
    loader = build_loader(
        data, config.augment, packed, "train", train=True, seed=config.train.seed, device=torch.device("cpu")
    )
    views: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for epoch in range(arguments.epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            both = augment.views(batch.pixels, batch.size, batch.index, config.train.seed, epoch).full
            pixels = to_pixels(both, config.augment)
            for index, first, second in zip(batch.index.tolist(), *pixels.chunk(2), strict=True):
                views.setdefault(index, []).append((first.numpy(), second.numpy()))
    loader.close()
    reader = open_reader(packed, "train")
    rows = [(reader.image(index), views[index]) for index in sorted(views)]
    reader.close()
    sheet = draw_sheet(rows, data.image_size)
    write_atomically(arguments.out, lambda temporary: sheet.save(temporary, "PNG"))
    print(f"{arguments.out}: {len(rows)} images, two views of each in {arguments.epochs} epochs")


def _parse(words: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    parser = ConfigParser(Config, prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.png")
    parser.add_argument("--images", type=whole(1), default=8, metavar="N", help="default: 8")
    parser.add_argument("--epochs", type=whole(1), default=4, metavar="N", help="default: 4")
    return parser.parse_config_args(words)


def draw_sheet(rows: list[tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]], side: int) -> Image.Image:
    """Draw originals (any size) and their pairs of views (``side`` pixels) in rows; small images are magnified."""
    cell = side * max(1, -(-_CELL // side))
    pair = 2 * cell + _GAP
    epochs = len(rows[0][1])
    width = cell + epochs * (4 * _GAP + pair)
    sheet = Image.new("RGB", (width + 2 * _GAP, len(rows) * (cell + _GAP) + _GAP), "white")
    for number, (original, pairs) in enumerate(rows):
        top = _GAP + number * (cell + _GAP)
        sheet.paste(fit(original, cell), (_GAP, top))
        for epoch, views in enumerate(pairs):
            left = _GAP + cell + 4 * _GAP + epoch * (pair + 4 * _GAP)
            for view, pixels in enumerate(views):
                sheet.paste(fit(pixels, cell), (left + view * (cell + _GAP), top))
    return sheet
