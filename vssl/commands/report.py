#!/usr/bin/env python
"""Write one HTML page that says whether pretraining worked, with the evidence; several runs are compared.

The page needs no network and no scripts: open it in any browser.

Examples:
  python tools/report.py runs/demo --out report.html
  python tools/report.py runs/vssl runs/byol --data data/photos --out report.html
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.errors import run_command
from pipelines.files import check_writable, write_atomically
from vssl.report.page import write_page
from vssl.report.run import read_run
from vssl.report.verdict import describe_verdict


def main() -> None:
    arguments = _parse()
    check_writable(arguments.out)
    runs = [read_run(path, arguments.data, arguments.device) for path in dict.fromkeys(arguments.runs)]
    content = write_page(runs)
    write_atomically(arguments.out, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    for run in runs:
        print(f"{run.path}: {describe_verdict(run.measured.figures)}")
    print(arguments.out)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html")
    parser.add_argument("--data", type=Path, metavar="PACKED_DIR", help="default: each run's data.dir")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
