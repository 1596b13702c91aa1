"""Evaluation during training: kNN of the student's backbone, and the accuracy of the online probe."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from pipelines.augment.views import Augment
from pipelines.formats.packed import Packed
from pipelines.loading.build import build_loader
from vssl.engine.config import Config
from vssl.evaluation.features import extract_features
from vssl.evaluation.knn import knn_predict
from vssl.evaluation.probe import OnlineProbe
from vssl.runtime.processes import World

__all__ = ["OnlineEvaluation"]


class OnlineEvaluation:
    """Evaluates an encoder on the validation split, with the training images of the run as the kNN bank.

    Args:
        config: the run's.
        packed: the run's data set.
        augment: gives the evaluation transform.
        autocast: returns the context in which to run the backbone.
        world: the processes that share the work; each one takes a part of every batch and searches the whole bank.

    Attributes:
        obstacle: why nothing can be measured; None: it can.
    """

    def __init__(
        self,
        config: Config,
        packed: Packed,
        augment: Augment,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
        world: World | None = None,
    ) -> None:
        self.config, self.packed, self.augment = config, packed, augment
        self.device, self.autocast, self.world = device, autocast, world or World()
        train, val = packed.splits["train"], packed.splits.get("val")
        self.obstacle: str | None = None
        if not train.labelled:
            self.obstacle = f"{packed.dir} has no labels"
        elif val is None or not val.labelled:
            self.obstacle = f"{packed.dir} has no labelled split val"

    def _features(self, backbone: nn.Module, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and labels of this process's part of a split."""
        loader = build_loader(
            self.config.data,
            self.config.augment,
            self.packed,
            split,
            train=False,
            seed=self.config.train.seed,
            device=self.device,
            rank=self.world.rank,
            world_size=self.world.size,
        )
        try:
            return extract_features(backbone, loader, self.augment.evaluate, self.autocast)
        finally:
            loader.close()

    def measure(self, backbone: nn.Module, probe: OnlineProbe | None) -> dict[str, float]:
        """``knn_top1`` and, with a probe, ``online_top1``, in [0, 1]."""
        bank, bank_labels = (self.world.gather(part) for part in self._features(backbone, "train"))
        queries, labels = self._features(backbone, "val")
        settings = self.config.eval
        votes = knn_predict(
            bank, bank_labels, queries, len(self.packed.classes), k=settings.k, temperature=settings.temperature
        )
        answers = {"knn_top1": votes} | ({} if probe is None else {"online_top1": probe(queries)})
        hits = torch.stack([(scores.argmax(dim=1) == labels).sum() for scores in answers.values()])
        shares = self.world.sum(hits).tolist()
        return {name: hit / self.packed.splits["val"].count for name, hit in zip(answers, shares, strict=True)}
