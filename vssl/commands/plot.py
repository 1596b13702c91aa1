"""Draw the curves of runs side by side.

Example:
  vssl plot runs/a runs/b --out curves.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipelines.files import check_writable
from vssl.charts import save_chart
from vssl.loggers.jsonl import read_metrics
from vssl.report.charts import draw_curves


def main(words: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    arguments = parser.parse_args(words)
    check_writable(arguments.out)
    save_chart(draw_curves({run: read_metrics(run) for run in arguments.runs}), arguments.out)
    print(arguments.out)
