"""Measure every stage of a run and name the bottleneck.

Each stage is measured alone, then all together, and compared with the limits of the hardware.

Examples:
  vssl throughput -c demo
  vssl throughput -c in100_fast data.workers=8 --json in100.json --trace in100.trace
  torchrun --standalone --nproc-per-node 2 -m vssl throughput -c demo
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.files import write_atomically, write_json
from vssl.charts import save_chart
from vssl.commands.arguments import positive, whole
from vssl.commands.results import add_json, add_plot, check_outputs, report_head
from vssl.config_arguments import ConfigParser
from vssl.engine.config import Config, load_config
from vssl.profile.charts import draw_stages
from vssl.profile.stages import StageProfiler
from vssl.profile.summary import summarise
from vssl.runtime.processes import World, join_world


def main(words: Sequence[str] | None = None, prog: str | None = None) -> None:
    # Looked up (so no abbreviations), because only the first process may print what parsing prints.
    with join_world(alone="--exchange" in (sys.argv if words is None else words)) as world:
        _measure(_parse(words, prog), world)


def _measure(arguments: argparse.Namespace, world: World) -> None:
    check_outputs(arguments.json, arguments.plot, arguments.trace, allow_dirty=arguments.allow_dirty)
    profiler = StageProfiler(
        load_config(arguments.config, arguments.overrides),
        repeats=arguments.repeats,
        seconds=arguments.seconds,
        world=world,
    )
    try:
        report = {**report_head(profiler.device, world.size), **profiler.measure()}
        print(summarise(report))
        if arguments.json and world.is_main:
            write_json(arguments.json, report)
        if arguments.plot and world.is_main:
            save_chart(draw_stages(report), arguments.plot)
        if arguments.trace:
            # All take part in the steps; each writes a trace of its own.
            write_atomically(_of_rank(arguments.trace, world), profiler.trace)
    finally:
        profiler.close()


def _of_rank(path: Path, world: World) -> Path:
    return path if world.is_main else path.with_name(f"{path.name}.{world.rank}")


def _parse(words: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    parser = ConfigParser(
        Config, prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
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
    return parser.parse_config_args(words)
