"""Protocols that judge a frozen backbone, one file each; ``tools/evaluate.py`` offers them."""

import importlib
from typing import Protocol

from pipelines.formats.packed import Packed
from vssl.evaluation.offline import OfflineEvaluation

__all__ = ["PROTOCOLS", "EvaluationProtocol", "find_protocol"]

# --protocol, which is also the module's name, and what it measures.
PROTOCOLS = {
    "knn": "weighted kNN (k = 20, T = 0.07, cosine), and how features use their space",
    "linear": "linear classification of cached features, the best of many learning rates",
    "uncertainty": "what the variance of each embedding knows (VSSL): selective accuracy, foreign images",
}


class EvaluationProtocol(Protocol):
    """What a module of this package has."""

    takes_foreign: bool  # whether ``foreign`` means anything to it

    def measure(self, evaluation: OfflineEvaluation, foreign: Packed | None = None) -> dict:
        """Plain values for a JSON file: those of ``OfflineEvaluation.report`` and the protocol's own.

        Args:
            foreign: a data set of other images (its val, else its train split); None: none.

        Raises:
            UserError: the run lacks what the protocol needs.
        """

    def describe(self, report: dict) -> list[str]:
        """Lines for a person, behind the accuracies."""


def find_protocol(name: str) -> EvaluationProtocol:
    """The module of one of ``PROTOCOLS``."""
    return importlib.import_module(f"vssl.evaluation.protocols.{name}")
