"""Linear classification of cached features; a held-out part of train selects the learning rate."""

from pipelines.formats.packed import Packed
from vssl.evaluation.linear import linear_predict, select_and_fit
from vssl.evaluation.offline import OfflineEvaluation

__all__ = ["describe", "measure"]


def measure(evaluation: OfflineEvaluation, foreign: Packed | None = None, *, epochs: int = 100, seed: int = 0) -> dict:
    """As ``EvaluationProtocol.measure``; ``epochs`` and ``seed`` as in ``select_and_fit``."""
    features, labels = evaluation.features("train")
    classes = len(evaluation.packed.classes)
    weights, held_out = select_and_fit(features, labels, classes, epochs=epochs, seed=seed)
    features, labels = evaluation.features("val")
    return evaluation.report("linear", linear_predict(weights, features)[0], labels) | {
        "epochs": epochs,
        "seed": seed,
        "learning_rate": max(held_out, key=held_out.__getitem__),
        "held_out_top1": {f"{rate:.4g}": top1 for rate, top1 in held_out.items()},
    }


def describe(report: dict) -> list[str]:
    return [f"learning_rate: {report['learning_rate']:.4g}"]
