"""The basis of all protocols: a model, its features of a labelled packed data set, loaders, and the common report."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipelines.batch import Batch, Loader, Views
from pipelines.errors import UserError
from pipelines.formats.packed import Packed
from pipelines.loading.build import build_loader
from vssl.evaluation.accuracy import accuracies
from vssl.evaluation.features import extract_features
from vssl.evaluation.knn import knn_predict
from vssl.evaluation.model import FrozenModel

__all__ = ["OfflineEvaluation"]


class OfflineEvaluation:
    """The features of the whole training split (``data.limit`` is ignored) and of val.

    They are computed once per split, from images without augmentation, and stay on the device.

    Args:
        model: the model to evaluate; frozen: a protocol that trains it takes a copy.
        packed: a data set with the splits train and val, both labelled.
        batch_size: images per forward pass; None: the run's.

    Raises:
        UserError: a split is missing, has no labels or has fewer than 2 images.
    """

    def __init__(self, model: FrozenModel, packed: Packed, batch_size: int | None = None) -> None:
        self.model, self.packed = model, packed
        self.batch_size = batch_size or model.config.data.batch_size
        self._features: dict[str, tuple[Tensor, Tensor]] = {}
        for split in ("train", "val"):
            if split not in packed.splits or not packed.splits[split].labelled or packed.splits[split].count < 2:
                raise UserError(
                    f"{packed.dir}: evaluation needs labelled images in train and val, 2 of each; {split} has fewer"
                )

    def report(self, protocol: str, scores: Tensor, labels: Tensor) -> dict:
        """The common part of every report: accuracy of scores [N, classes] for labels int64 [N], and the source."""
        config = self.model.config
        return {
            "protocol": protocol,
            **accuracies(scores, labels),
            "train_count": self.packed.splits["train"].count,
            "dataset": self.packed.dataset,
            "source": str(self.model.source),
            "step": self.model.step,
            "method": self.model.trained_by,
            "backbone": config.model.backbone,
        }

    def features(self, split: str) -> tuple[Tensor, Tensor]:
        """The backbone's features float32 [N, F] and labels int64 [N] of train or val, computed once."""
        if split not in self._features:
            self._features[split] = self.extract(self.packed, split)
        return self._features[split]

    def extract(self, packed: Packed, split: str) -> tuple[Tensor, Tensor]:
        """Features [N, F] and labels [N] of any split of any data set."""
        with self.loader(split, packed=packed) as loader:
            return extract_features(self.model.backbone, loader, self.model.augment.evaluate, contextlib.nullcontext)

    def knn_votes(self, *, k: int = 20, temperature: float = 0.07) -> Tensor:
        """kNN votes [N, classes] for the images of val, with train as the bank; arguments as in ``knn_predict``."""
        bank, labels = self.features("train")
        queries, _ = self.features("val")
        return knn_predict(bank, labels, queries, len(self.packed.classes), k=k, temperature=temperature)

    def images(self, limit: int) -> Tensor:
        """The first ``limit`` images of val, normalised, float32 [N, 3, S, S] on the device."""
        found: list[Tensor] = []
        with self.loader("val") as loader:
            for batch in loader:
                found.append(self.model.augment.evaluate(batch.pixels, batch.size))
                if sum(map(len, found)) >= limit:
                    break
        return torch.cat(found)[:limit]

    @torch.no_grad()
    def of_views(self, compute: Callable[[Tensor, int], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Apply ``compute`` to the full views of each batch of val and join its results.

        Args:
            compute: from the views [V * B, 3, S, S], view after view, and B to tensors [B, ...].

        Returns:
            as many tensors [N, ...].
        """
        results = []
        with self.loader("val") as loader:
            for batch in loader:
                results.append(compute(self.views(batch).full, len(batch.index)))
        return tuple(map(torch.cat, zip(*results, strict=True)))

    def views(self, batch: Batch, seed: int = 0, epoch: int = 0) -> Views:
        """The augmented views of a batch."""
        return self.model.augment.views(batch.pixels, batch.size, batch.index, seed, epoch)

    def loader(
        self, split: str, *, train: bool = False, seed: int = 0, packed: Packed | None = None
    ) -> contextlib.closing[Loader]:
        """A context that gives a loader of a split, whose batches are on the model's device, and closes it.

        Args:
            train: shuffled by (``seed``, epoch), for ``views``. False: packed order, every image once.
            packed: another data set than the one that is evaluated.
        """
        config, packed = self.model.config, packed or self.packed
        # data.loader suits the run's own data; another data set may have another format.
        loader = config.data.loader if packed.dir == Path(config.data.dir) else "auto"
        data = dataclasses.replace(config.data, limit=0, batch_size=self.batch_size, loader=loader)
        device = self.model.device
        return contextlib.closing(
            build_loader(data, config.augment, packed, split, train=train, seed=seed, device=device)
        )
