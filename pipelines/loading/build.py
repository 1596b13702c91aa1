"""Choose a loader by configuration and manifest."""

import torch

from pipelines.augment.views import Augment
from pipelines.batch import Loader
from pipelines.config import AugmentConfig, DataConfig
from pipelines.errors import UserError
from pipelines.formats.packed import Packed
from pipelines.loading.dali import DaliLoader
from pipelines.loading.ffcv import FfcvLoader
from pipelines.loading.resident import ResidentLoader
from pipelines.loading.sampler import Sampler
from pipelines.loading.torch import TorchLoader

__all__ = ["build_loader"]

# data.loader: the packed formats that it reads, and its class. Every format's own loader bears the format's name.
_LOADERS = {
    "ffcv": (("ffcv",), FfcvLoader),
    "dali": (("dali",), DaliLoader),
    "resident": (("resident",), ResidentLoader),
    "torch": (("ffcv", "dali", "resident"), TorchLoader),
}


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
) -> Loader:
    """Make the loader of a split.

    Args:
        data, augment: as configured; ``data.loader`` "auto" follows the format of ``packed``.
        split: "train" or "val".
        train: shuffled, ``data.drop_last`` observed; V = 1 from resident, V = 2 from torch, from ffcv and dali as
            ``data.crops`` says. False: packed order, every image once, V = 1. ``data.limit`` holds for the split
            "train" either way: the same images.
        seed: of the order and of the crops.
        device: where batches go.
        rank, world_size: the slice of each batch of ``data.batch_size`` that this process gets.

    Raises:
        UserError: a loader that does not exist, cannot read the format, or cannot run here; a value out of range; a
            split that is absent, empty, or smaller than a batch.
    """
    for key, least in {"batch_size": 1, "workers": 0, "prefetch": 1, "image_size": 1, "canvas": 1, "limit": 0}.items():
        if getattr(data, key) < least:
            raise UserError(f"data.{key}={getattr(data, key)} must be at least {least}")
    name = packed.format if data.loader == "auto" else data.loader
    if name not in _LOADERS:
        raise UserError(f"data.loader={data.loader} is none of auto, {', '.join(_LOADERS)}")
    formats, loader = _LOADERS[name]
    if packed.format not in formats:
        raise UserError(
            f"data.loader={name} reads format {' or '.join(formats)}, {packed.dir} is {packed.format}: "
            "set data.loader=auto or pack the data in another format"
        )
    if split not in packed.splits:
        raise UserError(f"{packed.dir}: has no split {split!r}, only {', '.join(packed.splits)}")
    sampler = Sampler(
        packed.splits[split].count,
        data.batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        shuffle=train,
        drop_last=train and data.drop_last,
        limit=data.limit if split == "train" else 0,
    )
    return loader(packed, split, sampler, data, Augment(augment, data.image_size), device, train=train)
