#!/usr/bin/env python
"""Draw the curves of runs side by side: python tools/plot.py runs/a runs/b --out curves.png"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.errors import UserError, run_command
from pipelines.files import check_writable
from tools.charts import draw_curves, save_chart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    arguments = parser.parse_args()
    check_writable(arguments.out)
    save_chart(draw_curves({run: _read(run / "metrics.jsonl") for run in arguments.runs}), arguments.out)
    print(arguments.out)


def _read(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


if __name__ == "__main__":
    run_command(main)
