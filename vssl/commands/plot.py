#!/usr/bin/env python
"""Draw the curves of runs side by side: python tools/plot.py runs/a runs/b --out curves.png"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.errors import run_command
from pipelines.files import check_writable
from vssl.charts import draw_curves, save_chart
from vssl.loggers.jsonl import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    arguments = parser.parse_args()
    check_writable(arguments.out)
    save_chart(draw_curves({run: read_metrics(run) for run in arguments.runs}), arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    run_command(main)
