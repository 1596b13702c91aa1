"""Is the variance an uncertainty? Errors, calibration, corruptions and out-of-distribution images, with controls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.formats.packed import open_packed
from pipelines.options import option
from vssl.evaluation.charts import draw_uncertainty
from vssl.evaluation.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from vssl.evaluation.offline import OfflineEvaluation
from vssl.evaluation.protocols.base import EvaluationProtocol, ProtocolOptions
from vssl.evaluation.uncertainty import (
    calibration,
    nearest_is_right,
    rank_correlation,
    score_report,
    uncertainty_scores,
)

__all__ = ["Uncertainty", "UncertaintyOptions"]

CORRUPTED = 500  # images, each in 20 states
MEANINGLESS = 0.1  # below this rank correlation with the error, the variance is uninformative


@dataclass(frozen=True)
class UncertaintyOptions(ProtocolOptions):
    ood: str = option("", "a packed data set of out-of-distribution images: its val split, or train if it has no val")
    temperature: float | None = option(
        None, "temperature of the decoder's scores; null: that of the method, or 0.1 if it has none", low=1e-6
    )


class Uncertainty(EvaluationProtocol):
    """Quality of each embedding's variance: selective accuracy, corruptions, out-of-distribution images.

    For methods whose ``posterior`` and ``predict`` give a variance.
    """

    Options = UncertaintyOptions

    def measure(self, evaluation: OfflineEvaluation) -> dict:
        """For each of ``uncertainty_scores`` its ``score_report`` and, under ``corruptions``, the rank correlation with
        the strength of each; R@1; the calibration, which compares the predicted variance with the observed squared
        error."""
        ood = open_packed(self.options.ood) if self.options.ood else None
        method = evaluation.model.trained_method()
        bank, _ = evaluation.features("train")
        features, labels = evaluation.features("val")
        bank_means = torch.cat([method.posterior(part).mean for part in bank.split(8192)])
        temperature = self.options.temperature or getattr(method.options, "temperature", 0.1)

        def scores(features: Tensor) -> dict[str, Tensor]:
            return uncertainty_scores(method.posterior(features), features, bank_means, bank, temperature=temperature)

        votes = evaluation.knn_votes()
        correct, found = votes.argmax(dim=1) == labels, nearest_is_right(features, labels)
        report = evaluation.report("uncertainty", votes, labels) | {"r_at_1": found.float().mean().item()}
        theirs = None
        if ood is not None:
            split = "val" if "val" in ood.splits else "train"
            theirs = scores(evaluation.extract(ood, split)[0])
            report["ood"] = {"dataset": ood.dataset, "split": split, "count": len(theirs["variance"])}
        report["scores"] = {
            name: score_report(correct, found, score, None if theirs is None else theirs[name])
            for name, score in scores(features).items()
        }
        for name, correlations in _corruptions(evaluation, scores).items():
            report["scores"][name]["corruptions"] = correlations
        report["calibration"] = calibration(*_errors(evaluation))
        return report

    def chart(self, report: dict) -> Any:
        return draw_uncertainty(report)

    def describe(self, report: dict) -> list[str]:
        lines = [f"R@1, the nearest other image has the right label: {report['r_at_1']:.4f}"]
        for name, score in report["scores"].items():
            half = score["most_certain_half"]
            lines.append(
                f"by {name}, the most certain half: {half['top1']:.4f} +- {half['standard_error']:.4f}, better than "
                f"all by {half['difference']:+.4f} +- {half['difference_standard_error']:.4f}; "
                f"AURC {score['aurc']:.4f}, E-AURC {score['e_aurc']:.4f}"
            )
            if score["r_auroc"] is not None:
                lines.append(f"by {name}, R-AUROC: {score['r_auroc']:.4f} +- {score['r_auroc_standard_error']:.4f}")
            if score["ood_auroc"] is not None:
                lines.append(f"by {name}, AUROC against {report['ood']['dataset']}: {score['ood_auroc']:.4f}")
            found = ", ".join(f"{corruption} {value:+.2f}" for corruption, value in score["corruptions"].items())
            lines.append(f"by {name}, rank correlation with the strength of corruptions: {found}")
        groups = report["calibration"]
        lines.append(
            f"squared error over predicted variance: {groups['ratio']:.3f}, ENCE over tenths of the images: "
            f"{groups['ence']:.3f}, rank correlation over the images: {groups['correlation']:.3f}"
        )
        return lines + _warnings(report)


def _corruptions(
    evaluation: OfflineEvaluation, scores: Callable[[Tensor], dict[str, Tensor]]
) -> dict[str, dict[str, float]]:
    """For each score and corruption, the rank correlation over images and strengths (0 to 5) of score and strength."""
    config, device = evaluation.model.config.augment, evaluation.model.device
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (config.mean, config.std))
    images = (evaluation.images(CORRUPTED) * std + mean).clamp(0, 1)
    strengths = torch.arange(STRENGTHS + 1).repeat_interleave(len(images))
    found: dict[str, dict[str, float]] = {}
    for corruption in CORRUPTIONS:
        parts = [
            scores(evaluation.model.features((corrupt(images, corruption, strength) - mean) / std))
            for strength in range(STRENGTHS + 1)
        ]
        for name in parts[0]:
            correlation = rank_correlation(strengths, torch.cat([part[name] for part in parts]))
            found.setdefault(name, {})[corruption] = correlation
    return found


def _errors(evaluation: OfflineEvaluation) -> tuple[Tensor, Tensor]:
    """Predicted variance and squared error of each image of val, means over dimensions and pairs of views, [N] each."""
    method = evaluation.model.trained_method()

    def compare(views: Tensor, images: int) -> tuple[Tensor, Tensor]:
        (mean, logvar), target = method.predict(views)
        variance, error = logvar.exp().mean(dim=1), (mean - target).square().mean(dim=1)
        return variance.view(-1, images).mean(dim=0), error.view(-1, images).mean(dim=0)

    return evaluation.of_views(compare)


def _warnings(report: dict) -> list[str]:
    """Warnings, as text, where the variance is uninformative."""
    variance, lines = report["scores"]["variance"], []
    if report["calibration"]["correlation"] < MEANINGLESS:
        lines.append("warning: the variance does not follow the error that it should predict")
    if variance["r_auroc"] is not None and variance["r_auroc"] < 0.5 + 2 * variance["r_auroc_standard_error"]:
        lines.append("warning: the variance does not tell right neighbours from wrong ones")
    return lines
