"""Measurements for the page: a bounded number of images, embedded by the trained network, by the same network before
training, and by no network (raw pixels)."""

import contextlib
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from pipelines.errors import UserError
from pipelines.formats.packed import Packed
from pipelines.loading.base import BaseLoader
from pipelines.loading.build import build_loader
from vssl.engine.build import initial_method
from vssl.evaluation.accuracy import accuracies
from vssl.evaluation.feature_statistics import effective_rank, rankme
from vssl.evaluation.features import extract_features
from vssl.evaluation.knn import knn_predict, nearest_neighbours
from vssl.inference import Pretrained
from vssl.report.pictures import to_pixels

__all__ = ["BANK", "NEIGHBOURS", "NETWORKS", "QUERIES", "Figures", "Images", "Measurement", "measure", "spread"]

BANK, QUERIES = 5000, 2000  # images at most
NEIGHBOURS, _SHOWN, _VIEWED = 5, 20, 6  # neighbours per query; queries shown with them; images shown with their views
_HELD_OUT = 0.2  # share of train that stands in for a missing val
_PIXELS = 32  # largest side of the images that are compared by their pixels
_SEED = 0  # selects images and draws views; the same for every run, to compare runs on one data set

NETWORKS = {
    "trained": "trained network",
    "untrained": "the same network before training",
    "pixels": f"raw pixels, at most {_PIXELS} x {_PIXELS}",
}


@dataclass(frozen=True)
class Images:
    """Which images were embedded: ``split`` names the packed split, ``index`` int64 [N] the positions in it, in
    ascending order, ``labels`` int64 [N] the classes (-1: none)."""

    split: str
    index: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Figures:
    """Quality of one network's features.

    Attributes:
        knn: kNN accuracy of the queries as ``accuracies`` reports it; None without labels.
        correct: bool [M], whether kNN recognised a query; None without labels.
        matched: bool [M], whether the second view nearest to a query's first view is the query's own.
        rankme, effective_rank: of the queries' features, as in ``vssl.evaluation.feature_statistics``.
    """

    knn: dict | None
    correct: Tensor | None
    matched: Tensor
    rankme: float
    effective_rank: float


@dataclass(frozen=True)
class Measurement:
    """All measurements of a run.

    Attributes:
        packed: the data set.
        queries, bank: the images that are looked up, and the images that are searched.
        figures: by the names of ``NETWORKS``.
        features: of the queries, by the trained network, float32 [M, F].
        shown: rows of some queries, int64 [up to 20], and ``neighbours``: the rows in ``bank`` of the images nearest to
            each, [up to 20, up to 5], with their cosine ``similarity``.
        viewed: rows of some queries, int64 [up to 6], and ``views``: of each view, full ones first, uint8
            [up to 6, side, side, 3].
    """

    packed: Packed
    queries: Images
    bank: Images
    figures: dict[str, Figures]
    features: Tensor
    shown: np.ndarray
    neighbours: Tensor
    similarity: Tensor
    viewed: np.ndarray
    views: list[Tensor]

    @property
    def labelled(self) -> bool:
        return self.figures["trained"].knn is not None


class _SideBySide(nn.Module):
    """Several frozen networks as one: [N, 3, S, S] -> their features side by side, [N, sum of widths]."""

    def __init__(self, networks: list[nn.Module], image_size: int, device: torch.device) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks).to(device).eval().requires_grad_(False)
        self.eval()
        probe = torch.zeros(1, 3, image_size, image_size, device=device)
        self.widths = [network(probe).shape[1] for network in networks]

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([network(images).float() for network in self.networks], dim=1)


class _Part(NamedTuple):
    """Some images and their features by all networks, [N, sum of widths]."""

    images: Images
    features: Tensor


def measure(model: Pretrained, packed: Packed) -> Measurement:
    """Embed at most ``BANK`` images of train and ``QUERIES`` of val (without val: a fifth of train), and compare.

    Raises:
        UserError: the data set has too few images.
    """
    config = model.config
    pixels = nn.Sequential(nn.AdaptiveAvgPool2d(min(config.data.image_size, _PIXELS)), nn.Flatten())
    before = _untrained(model, packed)
    networks = _SideBySide([model.backbone, before, pixels], config.data.image_size, model.device)
    queries, bank = _embed(model, networks, packed)
    if min(len(queries.images), len(bank.images)) < 2:
        raise UserError(f"{packed.dir}: a report needs 2 images to look up and 2 to compare them with; it has fewer")
    viewed = spread(len(queries.images), _VIEWED)
    features, pictures = _embed_views(model, networks, packed, queries.images, viewed)
    splits = [part.split(networks.widths, dim=-1) for part in (queries.features, bank.features, features)]
    labelled = all(bool((part.images.labels >= 0).all()) for part in (queries, bank))
    classes = len(packed.classes) if labelled else 0
    figures = {
        name: _compare(ours, others, views, queries.images, bank.images, classes)
        for name, ours, others, views in zip(NETWORKS, *splits, strict=True)
    }
    ours, others = splits[0][0], splits[1][0]
    shown = spread(len(ours), _SHOWN)
    similarity, neighbours = nearest_neighbours(others, ours[shown], NEIGHBOURS)
    return Measurement(
        packed=packed,
        queries=queries.images,
        bank=bank.images,
        figures=figures,
        features=ours,
        shown=shown,
        neighbours=neighbours,
        similarity=similarity,
        viewed=viewed,
        views=pictures,
    )


def _untrained(model: Pretrained, packed: Packed) -> nn.Module:
    """The backbone that the run began with, its BatchNorm statistics measured on augmented views of train.

    Training also measures these statistics; they alone make features more useful and multiply their RankMe.
    Without them, a run that learned nothing would seem to have helped.
    """
    config = model.config
    if config.model.weights and not Path(config.model.weights).exists():
        print(
            f"the weights that the run began with are gone ({config.model.weights}): random ones stand for the network "
            "before training",
            file=sys.stderr,
        )
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, weights=""))
    backbone = initial_method(config).student.backbone.to(model.device)
    with _loader(model, packed, "train", BANK) as loader:
        update_bn((model.augment.views(b.pixels, b.size, b.index, _SEED, 0).full for b in loader), backbone)
    return backbone


def _compare(queries: Tensor, bank: Tensor, views: Tensor, looked_up: Images, known: Images, classes: int) -> Figures:
    """The figures of one network from its features [M, F], [N, F] and [V, M, F]; ``classes``: 0 without labels."""
    knn = correct = None
    if classes:
        votes = knn_predict(bank, known.labels, queries, classes)
        knn, correct = accuracies(votes, looked_up.labels), votes.argmax(dim=1) == looked_up.labels
    nearest = nearest_neighbours(views[1], views[0], 1)[1][:, 0]
    matched = nearest == torch.arange(len(nearest), device=nearest.device)
    return Figures(knn, correct, matched, rankme(queries).item(), effective_rank(queries).item())


def _embed(model: Pretrained, networks: _SideBySide, packed: Packed) -> tuple[_Part, _Part]:
    """Queries and bank."""
    if "val" in packed.splits:
        limits = {"val": QUERIES, "train": BANK}
        queries, bank = (_embed_split(model, networks, packed, split, limit) for split, limit in limits.items())
        return queries, bank
    both = _embed_split(model, networks, packed, "train", QUERIES + BANK)
    count = len(both.images)
    chosen = np.random.default_rng(_SEED).permutation(count) < min(QUERIES, _HELD_OUT * count)
    return _select(both, chosen), _select(both, ~chosen)


def _select(part: _Part, chosen: np.ndarray) -> _Part:
    """The rows that ``chosen``, bool [N], selects."""
    rows = torch.from_numpy(chosen).to(part.features.device)
    images = Images(part.images.split, part.images.index[chosen], part.images.labels[rows])
    return _Part(images, part.features[rows])


def _embed_split(model: Pretrained, networks: _SideBySide, packed: Packed, split: str, limit: int) -> _Part:
    """At most ``limit`` images of a split, without augmentation."""
    with _loader(model, packed, split, limit) as loader:
        features, labels = extract_features(networks, loader, model.augment.evaluate, contextlib.nullcontext)
        return _Part(Images(split, loader.sampler.indices, labels), features)


@torch.no_grad()
def _embed_views(
    model: Pretrained, networks: _SideBySide, packed: Packed, images: Images, viewed: np.ndarray
) -> tuple[Tensor, list[Tensor]]:
    """Features [V, M, sum of widths] of the full views of each of the images, and all views of the rows ``viewed`` as
    pixels, uint8 [len(viewed), side, side, 3] of each view."""
    wanted = torch.from_numpy(images.index).to(model.device)
    drawn = wanted[viewed]
    features, pictures = [], []
    with _loader(model, packed, images.split, QUERIES if images.split == "val" else QUERIES + BANK) as loader:
        for batch in loader:
            rows = torch.isin(batch.index, wanted)
            if rows.any():
                index = batch.index[rows]
                views = model.augment.views(batch.pixels[rows], batch.size[rows], index, _SEED, 0)
                features.append(networks(views.full).unflatten(0, (-1, len(index))))
                each = [view for group in views if group is not None for view in group.split(len(index))]
                pictures.append([view[torch.isin(index, drawn)].cpu() for view in each])
    pixels = [to_pixels(torch.cat(parts), model.config.augment) for parts in zip(*pictures, strict=True)]
    return torch.cat(features, dim=1), pixels


def _loader(model: Pretrained, packed: Packed, split: str, limit: int) -> contextlib.closing[BaseLoader]:
    """At most ``limit`` images of a split in packed order, read by the loader that suits its format."""
    data = dataclasses.replace(model.config.data, loader="auto")
    augment, device = model.config.augment, model.device
    return contextlib.closing(
        build_loader(data, augment, packed, split, train=False, seed=_SEED, device=device, limit=limit)
    )


def spread(count: int, most: int) -> np.ndarray:
    """At most ``most`` indices spread evenly over ``range(count)``, ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
