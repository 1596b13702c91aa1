#!/usr/bin/env python
"""Evaluate a frozen backbone on a labelled packed data set.

Protocols:
  knn          weighted kNN (k = 20, T = 0.07, cosine), and how features use their space
  linear       linear classification of cached features, the best of many learning rates
  uncertainty  what the variance of each embedding knows (VSSL only): selective accuracy, foreign images

Examples:
  python tools/evaluate.py runs/cifar10 --protocol knn
  python tools/evaluate.py runs/cifar10/backbone.safetensors --protocol linear --data data/cifar100-resident
  python tools/evaluate.py runs/cifar10 --protocol uncertainty --ood data/cifar100-resident
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.errors import run_command
from pipelines.files import write_json
from pipelines.formats.packed import open_packed
from tools.command import whole
from tools.results import add_json, add_plot, check_outputs, report_head
from vssl.evaluation.offline import OfflineEvaluation
from vssl.inference import load


def main() -> None:
    arguments = _parse()
    check_outputs(arguments.json, arguments.plot, allow_dirty=arguments.allow_dirty)
    model = load(arguments.source, device=arguments.device, config=arguments.config)
    packed = open_packed(arguments.data or model.config.data.dir)
    evaluation = OfflineEvaluation(model, packed, arguments.batch_size)
    head = report_head(model.device)
    if arguments.protocol == "uncertainty":
        report = evaluation.uncertainty(arguments.ood and open_packed(arguments.ood))
    else:
        report = getattr(evaluation, arguments.protocol)()
    _print(report)
    if arguments.json:
        write_json(arguments.json, {**head, **report})
    if arguments.plot:
        from tools.charts import draw_uncertainty, save_chart  # at use: nothing else here needs matplotlib

        save_chart(draw_uncertainty(report), arguments.plot)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source",
        type=Path,
        metavar="RUN_OR_CHECKPOINT",
        help="a run directory (its newest), a checkpoint, or an export",
    )
    parser.add_argument("--protocol", required=True, choices=("knn", "linear", "uncertainty"))
    parser.add_argument("--data", type=Path, metavar="PACKED_DIR", help="default: the run's data.dir")
    parser.add_argument("--ood", type=Path, metavar="PACKED_DIR", help="uncertainty: foreign images to tell apart")
    add_json(parser)
    add_plot(parser, "uncertainty: draw it; default: FILE.png beside --json")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: the run's config.yaml")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--batch-size", type=whole(1), metavar="N", help="images per forward pass; default: the run's")
    arguments = parser.parse_args()
    if arguments.protocol != "uncertainty" and (arguments.ood or arguments.plot):
        parser.error("--ood and --plot belong to --protocol uncertainty")
    if arguments.protocol == "uncertainty" and arguments.json and not arguments.plot:
        arguments.plot = arguments.json.with_suffix(".png")
    return arguments


def _print(report: dict) -> None:
    low, high = report["top1_interval"]
    print(
        f"{report['protocol']} top-1: {report['top1']:.4f}  (95 %: {low:.4f} to {high:.4f}, {report['count']:,} images)"
    )
    print(f"{report['protocol']} top-5: {report['top5']:.4f}")
    for name in ("feature_std", "rankme", "uniformity", "alignment", "learning_rate"):
        if name in report:
            print(f"{name}: {report[name]:.4g}")
    for name, score in report.get("scores", {}).items():
        half = score["most_certain_half"]
        print(f"by {name}, the most certain half: {half['top1']:.4f} +- {half['standard_error']:.4f}", end="")
        print(f", better than all by {half['difference']:+.4f} +- {half['difference_standard_error']:.4f}", end="")
        print(f"; area under the curve: {score['area']:.4f}")
        if score["ood_auroc"] is not None:
            print(f"by {name}, AUROC against {report['ood']['dataset']}: {score['ood_auroc']:.4f}")
    if "calibration" in report:
        calibration = report["calibration"]
        print(f"squared error over predicted variance: {calibration['ratio']:.3f}", end="")
        print(f", rank correlation over the images: {calibration['correlation']:.3f}")


if __name__ == "__main__":
    run_command(main)
