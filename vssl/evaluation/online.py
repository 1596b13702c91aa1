"""Evaluation while a run goes on: kNN of the student's backbone, and the online probe's accuracy."""

import torch
from torch import nn

from pipelines.augment import Augment
from pipelines.build import build_loader
from pipelines.packed import Packed
from vssl.evaluation.features import extract_features
from vssl.evaluation.knn import knn_predict
from vssl.evaluation.probe import OnlineProbe

__all__ = ["OnlineEvaluation"]


class OnlineEvaluation:
    """Measures an encoder on the validation split, against the training images of the run as the bank.

    Args:
        config: the run's ``Config``.
        packed: the run's data set; nothing can be measured without labels and a validation split.
        augment: gives the evaluation transform.
        autocast: gives the context to run the backbone in.
    """

    def __init__(self, config, packed: Packed, augment: Augment, device: torch.device, autocast) -> None:
        self.config, self.packed, self.augment = config, packed, augment
        self.device, self.autocast = device, autocast
        splits = packed.splits
        self.possible = "val" in splits and splits["val"].labelled and splits["train"].labelled

    def _features(self, backbone: nn.Module, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        data = self.config.data
        loader = build_loader(
            data, self.config.augment, self.packed, split, train=False, seed=self.config.train.seed, device=self.device
        )
        try:
            return extract_features(backbone, loader, self.augment.evaluate, self.autocast)
        finally:
            loader.close()

    def measure(self, backbone: nn.Module, probe: OnlineProbe | None) -> dict[str, float]:
        """``knn_top1`` and, with a probe, ``online_top1``, in [0, 1]."""
        bank, bank_labels = self._features(backbone, "train")
        queries, labels = self._features(backbone, "val")
        settings = self.config.eval
        votes = knn_predict(
            bank, bank_labels, queries, len(self.packed.classes), k=settings.k, temperature=settings.temperature
        )
        measured = {"knn_top1": (votes.argmax(dim=1) == labels).float().mean().item()}
        if probe is not None:
            measured["online_top1"] = probe.top1(queries, labels).item()
        return measured
