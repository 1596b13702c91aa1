#!/usr/bin/env python
"""Draw the curves of runs side by side: python tools/plot.py runs/a runs/b --out curves.png"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.errors import UserError, run_command

PANELS = {
    "knn_top1": "kNN top-1",
    "loss": "loss",
    "feature_std": "spread of features",
    "logvar_student": "mean log-variance",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    arguments = parser.parse_args()
    curves = {run.name: _read(run / "metrics.jsonl") for run in arguments.runs}
    _draw(curves, arguments.out)
    print(arguments.out)


def _read(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _draw(curves: dict[str, list[dict]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.2), layout="constrained")
    for axis, (key, title) in zip(axes, PANELS.items(), strict=True):
        for name, lines in curves.items():
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="." if key == "knn_top1" else None)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    run_command(main)
