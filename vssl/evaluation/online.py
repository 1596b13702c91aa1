"""Evaluation during training: kNN of the student's backbone, and the accuracy of the online probe."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from pipelines.batch import Loader
from pipelines.formats.packed import Packed
from vssl.evaluation.config import EvalConfig
from vssl.evaluation.features import extract_features
from vssl.evaluation.knn import knn_predict
from vssl.evaluation.probe import OnlineProbe
from vssl.runtime.processes import World

__all__ = ["OnlineEvaluation"]


class OnlineEvaluation:
    """Evaluates an encoder on the validation split, with the training images of the run as the kNN bank.

    Args:
        settings: of kNN.
        packed: the run's data set.
        open_loader: gives an evaluation loader of this process's part of a split; it is closed after use.
        prepare: ``Augment.evaluate``: (pixels, size) to normalised images.
        autocast: returns the context in which to run the backbone.
        world: the processes that share the work; each one takes a part of every batch and searches the whole bank.

    Attributes:
        reason: why the data set cannot be evaluated on; None if it can.
    """

    def __init__(
        self,
        settings: EvalConfig,
        packed: Packed,
        open_loader: Callable[[str], Loader],
        prepare: Callable[[Tensor, Tensor], Tensor],
        autocast: Callable[[], AbstractContextManager],
        world: World | None = None,
    ) -> None:
        self.settings, self.packed, self.world = settings, packed, world or World()
        self._open_loader, self._prepare, self._autocast = open_loader, prepare, autocast
        train, val = packed.splits["train"], packed.splits.get("val")
        self.reason: str | None = None
        if not train.labelled:
            self.reason = f"{packed.dir} has no labels"
        elif val is None or not val.labelled:
            self.reason = f"{packed.dir} has no labelled split val"

    def _features(self, backbone: nn.Module, split: str, each: Callable[[], object]) -> tuple[Tensor, Tensor]:
        """Features and labels of this process's part of a split."""
        with contextlib.closing(self._open_loader(split)) as loader:
            return extract_features(backbone, loader, self._prepare, self._autocast, each)

    def measure(
        self, backbone: nn.Module, probe: OnlineProbe | None, each: Callable[[], object] = lambda: None
    ) -> dict[str, float]:
        """``knn_top1`` and, with a probe, ``online_top1``, in [0, 1]. ``each``: as for ``extract_features``."""
        bank, bank_labels = (self.world.gather(part) for part in self._features(backbone, "train", each))
        queries, labels = self._features(backbone, "val", each)
        k, temperature = self.settings.k, self.settings.temperature
        votes = knn_predict(bank, bank_labels, queries, len(self.packed.classes), k=k, temperature=temperature)
        answers = {"knn_top1": votes} | ({} if probe is None else {"online_top1": probe(queries)})
        hits = torch.stack([(scores.argmax(dim=1) == labels).sum() for scores in answers.values()])
        shares = self.world.sum(hits).tolist()
        return {name: hit / self.packed.splits["val"].count for name, hit in zip(answers, shares, strict=True)}
