#!/usr/bin/env python
"""Measure every stage of a run, alone and together, compare with the hardware's limits, and name the bottleneck.

Examples:
  python tools/throughput.py -c configs/demo.yaml
  python tools/throughput.py -c configs/in100_fast.yaml data.workers=8 --json in100.json --trace in100.trace
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.errors import run_command
from pipelines.files import write_atomically, write_json
from tools.bench.report import summarise
from tools.bench.throughput import Throughput
from tools.command import positive, whole
from tools.results import add_json, add_plot, check_outputs, report_head
from vssl.config import ConfigParser
from vssl.engine.config import Config, load_config


def main() -> None:
    arguments = _parse()
    check_outputs(arguments.json, arguments.plot, arguments.trace, allow_dirty=arguments.allow_dirty)
    throughput = Throughput(
        load_config(arguments.config, arguments.overrides), repeats=arguments.repeats, seconds=arguments.seconds
    )
    try:
        report = {**report_head(throughput.device), **throughput.measure()}
        print(summarise(report))
        if arguments.json:
            write_json(arguments.json, report)
        if arguments.plot:
            from tools.charts import draw_stages, save_chart  # at use: nothing else here needs matplotlib

            save_chart(draw_stages(report), arguments.plot)
        if arguments.trace:
            write_atomically(arguments.trace, throughput.trace)
    finally:
        throughput.close()


def _parse() -> argparse.Namespace:
    parser = ConfigParser(Config, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json(parser)
    add_plot(parser)
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a trace of five steps, for ui.perfetto.dev")
    parser.add_argument("--repeats", type=whole(1), default=5, metavar="N", help="blocks per stage; default: 5")
    parser.add_argument(
        "--seconds",
        type=positive,
        default=1.0,
        metavar="S",
        help="seconds per block, which has at least one batch; default: 1",
    )
    return parser.parse_config_args()


if __name__ == "__main__":
    run_command(main)
