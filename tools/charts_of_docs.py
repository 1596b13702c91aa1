#!/usr/bin/env python
"""Draw every chart of the docs from the figures in results/: python tools/charts_of_docs.py [--out docs]"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from matplotlib.figure import Figure

from pipelines.errors import run_command
from pipelines.files import check_writable
from tools.bench.charts import draw_loaders, draw_methods
from tools.bench.methods import ACCURACIES, Arm, Measured
from vssl.charts import save_chart

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"


def _read(name: str) -> dict:
    report: dict = json.loads((RESULTS / name).read_text())
    return report


def join_arms(parts: list[dict]) -> dict:
    """One arm of a report of ``tools/compare.py methods`` from the same arm in several, in the order of its seeds."""
    measured = Measured(Arm("", ()), [run for part in parts for run in part["runs"]])
    return {
        "config": parts[0]["config"],
        "runs": measured.runs,
        "mean": {key: measured.mean(key) for key in ACCURACIES},
        "standard_error": {key: measured.standard_error(key) for key in ACCURACIES},
    }


def _compare(predictor: str, *no_predictor: str) -> Callable[[], Figure]:
    """The first method of a comparison, VSSL, in its default form without a predictor; the others with theirs."""

    def draw() -> Figure:
        arms = _read(f"methods/{predictor}.json")["arms"]
        first = next(iter(arms))
        arms[first] = join_arms([_read(f"methods/{name}.json")["arms"][f"{first}_nopred"] for name in no_predictor])
        return draw_methods({"arms": arms})

    return draw


CHARTS: dict[str, Callable[[], Figure]] = {
    "loaders.png": lambda: draw_loaders(_read("loaders/photographs-amd-avx2.json")),
    "loaders-32.png": lambda: draw_loaders(_read("loaders/pixels-32-amd-avx512.json")),
    "methods.png": _compare(
        "cifar10-10-epochs-predictor-seeds-0-to-4",
        "cifar10-10-epochs-no-predictor-seeds-0-to-3",
        "cifar10-10-epochs-no-predictor-seed-4",
    ),
    "methods-40-epochs.png": _compare(
        "cifar10-40-epochs-predictor-seeds-0-to-1",
        "cifar10-40-epochs-no-predictor-seed-0",
        "cifar10-40-epochs-no-predictor-seed-1",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", metavar="DIR", help="where to write the PNG files")
    arguments = parser.parse_args()
    for name in CHARTS:
        check_writable(arguments.out / name)
    for name, draw in CHARTS.items():
        save_chart(draw(), arguments.out / name)
        print(arguments.out / name)


if __name__ == "__main__":
    run_command(main)
