"""Choose a loader by configuration and manifest."""

import torch

from pipelines.augment.views import Augment
from pipelines.config import AugmentConfig, DataConfig
from pipelines.errors import UserError
from pipelines.formats import FORMATS, find_format
from pipelines.formats.packed import Packed, open_reader
from pipelines.loading.base import BaseLoader
from pipelines.loading.reference import TorchLoader
from pipelines.loading.sampler import Sampler
from pipelines.options import check_options

__all__ = ["build_loader"]


def build_loader(
    data: DataConfig,
    augment: AugmentConfig,
    packed: Packed,
    split: str,
    *,
    train: bool,
    seed: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
) -> BaseLoader:
    """Make the loader of a split.

    Args:
        data, augment: as configured. ``data.loader``: "torch" reads every format, any other loader only the format of
            the same name. "auto": the loader of the format of ``packed``, or "torch" if that format has none.
        split: "train" or "val".
        train: shuffled, with ``data.drop_last``; resident hands over whole images (C = 1), for the other loaders
            ``data.crops`` decides. False: packed order, every image once, C = 1.
        seed: of the order and of the crops.
        device: where batches go.
        rank, world_size: this process gets slice ``rank`` of ``world_size`` of each batch of ``data.batch_size``.
        limit: use only so many images, selected by ``seed``, the same whether ``train`` or not; 0: all. None:
            ``data.limit`` for the split "train", all images of "val".

    Raises:
        UserError: a loader that does not exist, cannot read the format, or cannot run here; a value out of range; a
            split that is absent, empty, or smaller than a batch.
    """
    check_options(data, "data")
    loader = _find_loader(data.loader, packed)
    reader = open_reader(packed, split)
    if limit is None:
        limit = data.limit if split == "train" else 0
    sampler = Sampler(
        packed.splits[split].count,
        data.batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        shuffle=train,
        drop_last=train and data.drop_last,
        limit=limit,
    )
    return loader(packed, split, reader, sampler, data, Augment(augment, data.image_size), device, train=train)


def _find_loader(name: str, packed: Packed) -> type[BaseLoader]:
    """The class that ``data.loader`` means for a packed data set."""
    if name == "torch":
        return TorchLoader
    if name not in ("auto", *FORMATS):
        raise UserError(f"data.loader={name} is none of auto, {', '.join(FORMATS)}, torch")
    if name not in ("auto", packed.format):
        raise UserError(
            f"data.loader={name} reads format {name}, {packed.dir} is {packed.format}: "
            "set data.loader=auto or pack the data in another format"
        )
    return find_format(packed.format).find_loader() or TorchLoader
