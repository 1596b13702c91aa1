#!/usr/bin/env python
"""Measure every stage of a run alone and all together, against what the hardware gives, and name the bottleneck.

Examples:
  python tools/throughput.py -c configs/demo.yaml
  python tools/throughput.py -c configs/in100_fast.yaml data.workers=8 --json in100.json --trace in100.trace
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.errors import run_command
from pipelines.files import write_atomically
from tools.bench.report import draw, summarise
from tools.bench.throughput import Throughput
from vssl.config import load_config


def main() -> None:
    arguments = _parse()
    throughput = Throughput(
        load_config(arguments.config, arguments.overrides), repeats=arguments.repeats, seconds=arguments.seconds
    )
    try:
        report = {"command": shlex.join(["python", *sys.argv]), **throughput.measure()}
        print(summarise(report))
        if arguments.json:
            text = json.dumps(report, indent=2) + "\n"
            write_atomically(arguments.json, lambda temporary: temporary.write_text(text))
        if arguments.plot:
            write_atomically(arguments.plot, lambda temporary: draw(report, temporary))
        if arguments.trace:
            write_atomically(arguments.trace, throughput.trace)
    finally:
        throughput.close()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.dir=c10 data.workers=8")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="write a bar chart")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a trace of five steps, for ui.perfetto.dev")
    parser.add_argument("--repeats", type=_positive(int), default=5, metavar="N", help="blocks a stage; default: 5")
    parser.add_argument(
        "--seconds", type=_positive(float), default=1.0, metavar="S", help="a block lasts; at least a batch; default: 1"
    )
    return parser.parse_intermixed_args()


def _positive(number: type):
    def positive(text: str) -> float:
        value = number(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} must be greater than 0")
        return value

    positive.__name__ = "number"  # argparse's message names it
    return positive


if __name__ == "__main__":
    run_command(main)
