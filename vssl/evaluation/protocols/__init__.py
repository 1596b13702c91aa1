"""Protocols that evaluate a frozen backbone, one file each; ``tools/evaluate.py --protocol`` selects one."""

import importlib
from typing import Protocol

from pipelines.formats.packed import Packed
from vssl.evaluation.offline import OfflineEvaluation

__all__ = ["PROTOCOLS", "EvaluationProtocol", "find_protocol"]

# The value of --protocol, which is also the module's name, and what it measures.
PROTOCOLS = {
    "knn": "weighted kNN (k = 20, T = 0.07, cosine), and how well features use their dimensions",
    "linear": "linear classification of cached features; a tenth of train selects the learning rate",
    "uncertainty": "what the variance of each embedding knows (VSSL): selective accuracy, foreign images",
}


class EvaluationProtocol(Protocol):
    """What a module of this package must define."""

    def measure(self, evaluation: OfflineEvaluation, foreign: Packed | None = None) -> dict:
        """Plain values for a JSON file: those of ``OfflineEvaluation.report`` and of the protocol.

        Args:
            foreign: a data set of out-of-distribution images (its val split, or train if it has no val); None: none.

        Raises:
            UserError: the run lacks what the protocol needs.
        """

    def describe(self, report: dict) -> list[str]:
        """Lines of text to print after the accuracies."""


def find_protocol(name: str) -> EvaluationProtocol:
    """The module of one of ``PROTOCOLS``."""
    return importlib.import_module(f"vssl.evaluation.protocols.{name}")
