"""Linear classification of cached features; a held-out part of train selects the learning rate."""

import sys
from dataclasses import dataclass

from pipelines.options import option
from vssl.evaluation.linear import LEARNING_RATES, linear_predict, select_rate
from vssl.evaluation.offline import OfflineEvaluation
from vssl.evaluation.protocols.base import EvaluationProtocol, ProtocolOptions

__all__ = ["Linear", "LinearOptions"]


@dataclass(frozen=True)
class LinearOptions(ProtocolOptions):
    epochs: int = option(100, "passes over the cached features", low=1)
    seed: int = option(0, "seed of the held-out tenth and of the order of images", low=0)


class Linear(EvaluationProtocol):
    """Linear classification of cached, standardised features; a tenth of train selects the learning rate."""

    Options = LinearOptions

    def measure(self, evaluation: OfflineEvaluation) -> dict:
        epochs, seed = self.options.epochs, self.options.seed
        features, labels = evaluation.features("train")
        classes = len(evaluation.packed.classes)
        weights, rate, held_out = select_rate(features, labels, classes, epochs=epochs, seed=seed)
        if rate in (LEARNING_RATES[0], LEARNING_RATES[-1]):
            print(
                f"the learning rate {rate:.4g} was best on the held-out images and is the end of the grid "
                f"({LEARNING_RATES[0]:.4g} to {LEARNING_RATES[-1]:.4g}): another one may be better",
                file=sys.stderr,
            )
        features, labels = evaluation.features("val")
        return evaluation.report("linear", linear_predict(weights, features)[0], labels) | {
            "epochs": epochs,
            "seed": seed,
            "learning_rate": rate,
            "held_out_top1": {f"{rate:.4g}": top1 for rate, top1 in held_out.items()},
        }

    def describe(self, report: dict) -> list[str]:
        return [f"learning_rate: {report['learning_rate']:.4g}"]
