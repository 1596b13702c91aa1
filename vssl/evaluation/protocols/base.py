"""The interface between ``evaluate`` and an evaluation protocol: options in, a report out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from vssl.evaluation.offline import OfflineEvaluation

__all__ = ["EvaluationProtocol", "ProtocolOptions"]


@dataclass(frozen=True)
class ProtocolOptions:
    """The constants of a protocol: fields made by ``option``, which are the keys ``protocol.*`` of the command line."""


class EvaluationProtocol(ABC):
    """A way to judge a trained model. The first line of its docstring appears in ``--help``.

    Args:
        options: an instance of ``Options``; None: its defaults.
    """

    Options: ClassVar[type[ProtocolOptions]] = ProtocolOptions

    def __init__(self, options: ProtocolOptions | None = None) -> None:
        self.options: Any = options or self.Options()  # an instance of ``Options``

    @abstractmethod
    def measure(self, evaluation: OfflineEvaluation) -> dict:
        """Plain values for a JSON file: those of ``OfflineEvaluation.report`` and of the protocol.

        It may use features that are computed once, or the model and loaders of either split, augmented or not, to
        train a copy of the backbone.

        Raises:
            UserError: the model or the data lack what the protocol needs.
        """

    def describe(self, report: dict) -> list[str]:
        """Lines of text to print after the accuracies."""
        return []

    def chart(self, report: dict) -> Any:
        """A matplotlib figure of the report, if this protocol draws one."""
        return None
