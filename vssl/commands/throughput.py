#!/usr/bin/env python
"""Measure every stage of a run, alone and together, compare with the hardware's limits, and name the bottleneck.

Examples:
  python tools/throughput.py -c configs/demo.yaml
  python tools/throughput.py -c configs/in100_fast.yaml data.workers=8 --json in100.json --trace in100.trace
  torchrun --standalone --nproc-per-node 2 tools/throughput.py -c configs/demo.yaml
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.errors import run_command
from pipelines.files import write_atomically, write_json
from vssl.commands.arguments import positive, whole
from vssl.commands.results import add_json, add_plot, check_outputs, report_head
from vssl.config import ConfigParser
from vssl.engine.config import Config, load_config
from vssl.profile.bottleneck import summarise
from vssl.profile.stages import Throughput
from vssl.runtime.processes import World, join_world


def main() -> None:
    # Looked up (so no abbreviations), because only the first process may print what parsing prints.
    with join_world(alone="--exchange" in sys.argv) as world:
        _measure(_parse(), world)


def _measure(arguments: argparse.Namespace, world: World) -> None:
    check_outputs(arguments.json, arguments.plot, arguments.trace, allow_dirty=arguments.allow_dirty)
    throughput = Throughput(
        load_config(arguments.config, arguments.overrides),
        repeats=arguments.repeats,
        seconds=arguments.seconds,
        world=world,
    )
    try:
        report = {**report_head(throughput.device, world.size), **throughput.measure()}
        print(summarise(report))
        if arguments.json and world.is_main:
            write_json(arguments.json, report)
        if arguments.plot and world.is_main:
            from vssl.charts import draw_stages, save_chart  # at use: nothing else here needs matplotlib

            save_chart(draw_stages(report), arguments.plot)
        if arguments.trace:
            # All take part in the steps; each writes a trace of its own.
            write_atomically(_of_rank(arguments.trace, world), throughput.trace)
    finally:
        throughput.close()


def _of_rank(path: Path, world: World) -> Path:
    return path if world.is_main else path.with_name(f"{path.name}.{world.rank}")


def _parse() -> argparse.Namespace:
    parser = ConfigParser(
        Config, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_json(parser)
    add_plot(parser)
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a trace of five steps, for ui.perfetto.dev")
    parser.add_argument(
        "--exchange",
        action="store_true",
        help="a single process exchanges with itself what several would: what does the exchange cost on one GPU?",
    )
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
