"""Write an HTML page that says whether pretraining worked, with the evidence.

Several runs are compared. The page needs no network and no scripts: open it in any browser.

Examples:
  vssl report runs/demo --out report.html
  vssl report runs/vssl runs/byol --data data/photos --out report.html
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipelines.files import check_writable, write_atomically
from vssl.report.page import write_page
from vssl.report.run import read_run
from vssl.report.verdict import describe_verdict


def main(words: Sequence[str] | None = None, prog: str | None = None) -> None:
    arguments = _parse(words, prog)
    check_writable(arguments.out)
    runs = [read_run(path, arguments.data, arguments.device) for path in dict.fromkeys(arguments.runs)]
    content = write_page(runs)
    write_atomically(
        arguments.out, lambda temporary: temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
    )
    for run in runs:
        print(f"{run.path}: {describe_verdict(run.measured.figures)}")
    print(arguments.out)


def _parse(words: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html")
    parser.add_argument("--data", type=Path, metavar="PACKED_DIR", help="default: each run's data.dir")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(words)
