"""Evaluation of a finished run: kNN, linear classification and uncertainty, on any labelled packed data set."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipelines.batch import Loader
from pipelines.errors import UserError
from pipelines.formats.packed import Packed
from pipelines.loading.build import build_loader
from vssl.evaluation.accuracy import accuracies
from vssl.evaluation.features import extract_features
from vssl.evaluation.health import alignment, feature_std, rankme, uniformity
from vssl.evaluation.knn import knn_predict
from vssl.evaluation.linear import linear_predict, select_and_fit
from vssl.evaluation.uncertainty import SCORES, calibration, score_report
from vssl.inference import Pretrained

__all__ = ["OfflineEvaluation"]


class OfflineEvaluation:
    """Trains classifiers on the whole training split (``data.limit`` does not hold) and measures them on val.

    Features are computed once a split, of images without augmentation, and stay on the device. Every protocol returns
    plain values for a JSON file.

    Args:
        model: what to evaluate.
        packed: a data set whose train and val have labels.
        batch_size: images a forward pass; None: the run's.

    Raises:
        UserError: there are no such splits.
    """

    def __init__(self, model: Pretrained, packed: Packed, batch_size: int | None = None) -> None:
        self.model, self.packed = model, packed
        self.batch_size = batch_size or model.config.data.batch_size
        self._features: dict[str, tuple[Tensor, Tensor]] = {}
        for split in ("train", "val"):
            if split not in packed.splits or not packed.splits[split].labelled or packed.splits[split].count < 2:
                raise UserError(f"{packed.dir}: evaluation needs the splits train and val with labels, not so {split}")

    def knn(self, *, k: int = 20, temperature: float = 0.07) -> dict:
        """Weighted kNN by cosine similarity, and the health of val's features."""
        votes, labels = self._knn_votes(k, temperature)
        features, _ = self._split("val")
        return self._report("knn", votes, labels) | {
            "k": k,
            "temperature": temperature,
            "feature_std": feature_std(features).item(),
            "rankme": rankme(features).item(),
            "uniformity": uniformity(features).item(),
            "alignment": alignment(*self._two_views()).item(),
        }

    def linear(self, *, epochs: int = 100, seed: int = 0) -> dict:
        """Linear classification of the cached features; the learning rate is chosen on a part of train."""
        features, labels = self._split("train")
        weights, held_out = select_and_fit(features, labels, len(self.packed.classes), epochs=epochs, seed=seed)
        features, labels = self._split("val")
        return self._report("linear", linear_predict(weights, features)[0], labels) | {
            "epochs": epochs,
            "seed": seed,
            "learning_rate": max(held_out, key=held_out.__getitem__),
            "held_out_top1": {f"{rate:.4g}": top1 for rate, top1 in held_out.items()},
        }

    def uncertainty(self, foreign: Packed | None = None) -> dict:
        """What the variance knows: kNN accuracy among the most certain images, and the detection of foreign ones, for
        each of ``SCORES``; and whether it is as large as the errors it predicts.

        Args:
            foreign: a data set of other images (its val, else its train split); None: none.

        Raises:
            UserError: the run has no variance.
        """
        method = self.model.trained_method()
        ours, theirs = method.posterior(self._split("val")[0]), None
        votes, labels = self._knn_votes()
        correct = votes.argmax(dim=1) == labels
        report = self._report("uncertainty", votes, labels)
        if foreign is not None:
            split = "val" if "val" in foreign.splits else "train"
            theirs = method.posterior(self._extract(foreign, split)[0])
            report["ood"] = {"dataset": foreign.dataset, "split": split, "count": len(theirs.mean)}
        report["scores"] = {
            name: score_report(correct, score(*ours), theirs and score(*theirs)) for name, score in SCORES.items()
        }
        report["calibration"] = calibration(*self._errors())
        return report

    def _report(self, protocol: str, scores: Tensor, labels: Tensor) -> dict:
        config = self.model.config
        return {
            "protocol": protocol,
            **accuracies(scores, labels),
            "train_count": self.packed.splits["train"].count,
            "dataset": self.packed.dataset,
            "source": str(self.model.source),
            "step": self.model.step,
            "method": config.method.name,
            "backbone": config.model.backbone,
        }

    def _knn_votes(self, k: int = 20, temperature: float = 0.07) -> tuple[Tensor, Tensor]:
        """Votes [N, classes] and labels [N] of val."""
        queries, labels = self._split("val")
        bank, bank_labels = self._split("train")
        classes = len(self.packed.classes)
        return knn_predict(bank, bank_labels, queries, classes, k=k, temperature=temperature), labels

    def _split(self, split: str) -> tuple[Tensor, Tensor]:
        if split not in self._features:
            self._features[split] = self._extract(self.packed, split)
        return self._features[split]

    def _extract(self, packed: Packed, split: str) -> tuple[Tensor, Tensor]:
        with self._loader(packed, split) as loader:
            return extract_features(self.model.backbone, loader, self.model.augment.evaluate, contextlib.nullcontext)

    def _two_views(self) -> tuple[Tensor, Tensor]:
        """Features [N, F] of both augmented views of val's images."""
        return self._of_views(lambda views: self.model.backbone(views).chunk(2))

    def _errors(self) -> tuple[Tensor, Tensor]:
        """A dimension's predicted variance and squared error, means over both views of each of val's images, [N]."""

        def compare(views: Tensor) -> tuple[Tensor, Tensor]:
            (mean, logvar), target = self.model.trained_method().predict(views)
            variance, error = logvar.exp().mean(dim=1), (mean - target).square().mean(dim=1)
            return variance.unflatten(0, (2, -1)).mean(dim=0), error.unflatten(0, (2, -1)).mean(dim=0)

        return self._of_views(compare)

    @torch.no_grad()
    def _of_views(self, compute: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The two results of ``compute``, [B, ...] each, of both augmented views [2B, 3, S, S]: those of all of val."""
        augment, results = self.model.augment, []
        with self._loader(self.packed, "val") as loader:
            for batch in loader:
                results.append(compute(augment.views(batch.pixels, batch.size, batch.index, seed=0, epoch=0)))
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))

    def _loader(self, packed: Packed, split: str) -> contextlib.closing[Loader]:
        config = self.model.config
        # The run's loader reads the run's data; another data set may have another format.
        loader = config.data.loader if packed.dir == Path(config.data.dir) else "auto"
        data = dataclasses.replace(config.data, limit=0, batch_size=self.batch_size, loader=loader)
        seed, device = config.train.seed, self.model.device
        return contextlib.closing(
            build_loader(data, config.augment, packed, split, train=False, seed=seed, device=device)
        )
