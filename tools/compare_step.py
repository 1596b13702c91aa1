#!/usr/bin/env python
"""Compare our BYOL step with a plain one: eager, AMP, channels_last, written with torchvision and torch.optim.

Example:
  python tools/compare_step.py -c configs/cifar10_fast.yaml --json step.json
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.errors import run_command
from pipelines.files import write_json
from tools.bench import step
from vssl.commands.arguments import positive, whole
from vssl.commands.results import add_json, check_outputs, report_head
from vssl.config import to_dict
from vssl.config_arguments import ConfigParser
from vssl.engine.config import Config, load_config, resolve
from vssl.runtime.device import resolve_device


def main() -> None:
    arguments = _parse()
    check_outputs(arguments.json, allow_dirty=arguments.allow_dirty)
    same = ["method.name=byol", "optim.name=sgd", "eval.probe_lr=0", "train.accumulate=1"]
    config = resolve(load_config(arguments.config, [*arguments.overrides, *same]))
    device = resolve_device(config.train.device)
    head = report_head(device)
    rates = step.measure(config, device, arguments.repeats, arguments.seconds)
    print(step.summarise(rates))
    if arguments.json:
        write_json(arguments.json, {**head, "config": to_dict(config), "candidates": step.describe(rates)})


def _parse() -> argparse.Namespace:
    parser = ConfigParser(Config, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json(parser)
    parser.add_argument("--repeats", type=whole(1), default=5, metavar="N", help="blocks per candidate; default: 5")
    parser.add_argument("--seconds", type=positive, default=2.0, metavar="S", help="seconds per block; default: 2")
    return parser.parse_config_args()


if __name__ == "__main__":
    run_command(main)
