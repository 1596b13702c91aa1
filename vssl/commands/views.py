"""Draw what training sees: images and their augmented views.

The sheet has one row per image, first the original, then its views in each epoch: full ones, then local ones.

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
from vssl.config_arguments import ConfigParser
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
    views: dict[int, list[list[np.ndarray]]] = {}  # by image: in each epoch, its views
    for epoch in range(arguments.epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            groups = augment.views(batch.pixels, batch.size, batch.index, config.train.seed, epoch)
            pixels = [to_pixels(group, config.augment) for group in groups if group is not None]
            each = [view.numpy() for group in pixels for view in group.split(len(batch.index))]
            for place, index in enumerate(batch.index.tolist()):
                views.setdefault(index, []).append([view[place] for view in each])
    loader.close()
    reader = open_reader(packed, "train")
    rows = [(reader.image(index), views[index]) for index in sorted(views)]
    reader.close()
    sheet = draw_sheet(rows, data.image_size)
    write_atomically(arguments.out, lambda temporary: sheet.save(temporary, "PNG"))
    number = sum(group.count for group in augment.groups)
    print(f"{arguments.out}: {len(rows)} images, {number} views of each in {arguments.epochs} epochs")


def _parse(words: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    parser = ConfigParser(Config, prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.png")
    parser.add_argument("--images", type=whole(1), default=8, metavar="N", help="default: 8")
    parser.add_argument("--epochs", type=whole(1), default=4, metavar="N", help="default: 4")
    return parser.parse_config_args(words)


def draw_sheet(rows: list[tuple[np.ndarray, list[list[np.ndarray]]]], side: int) -> Image.Image:
    """Draw originals (any size) and, of each epoch, their views (of at most ``side`` pixels) in rows; small images are
    magnified."""
    cell = side * max(1, -(-_CELL // side))
    epochs, number = len(rows[0][1]), len(rows[0][1][0])
    block = number * (cell + _GAP) - _GAP  # the views of an epoch
    width = cell + epochs * (4 * _GAP + block)
    sheet = Image.new("RGB", (width + 2 * _GAP, len(rows) * (cell + _GAP) + _GAP), "white")
    for row, (original, blocks) in enumerate(rows):
        top = _GAP + row * (cell + _GAP)
        sheet.paste(fit(original, cell), (_GAP, top))
        for epoch, views in enumerate(blocks):
            left = _GAP + cell + 4 * _GAP + epoch * (block + 4 * _GAP)
            for view, pixels in enumerate(views):
                sheet.paste(fit(pixels, cell), (left + view * (cell + _GAP), top))
    return sheet
