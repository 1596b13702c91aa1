#!/usr/bin/env python
"""Run every measurement that needs a GPU: step by step, each in under ten minutes, into results/gpu/STEP.json.

Speeds are measured on random pixels, which are packed first. Steps that need real images are left out where these are
missing. Environment variables name the packed data sets: C10 (default data/cifar10-resident) for the trainings, IN100
(data/in100-ffcv) and IN100_DALI (data/in100-dali) for loading. A step whose file exists is skipped: call the program
again to continue, or delete the file to measure again. A training that ran out of time continues at the
next call.

Examples:
  python tools/gpu.py --minutes 9
  C10=/data/c10 python tools/gpu.py throughput-32 train-vssl
  python tools/gpu.py --smoke
"""

import argparse
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from pipelines.errors import UserError, run_command
from tools.bench import gpu
from vssl.commands.arguments import exit_on_signals, positive
from vssl.commands.results import add_allow_dirty, check_outputs


def main() -> int:
    started = time.monotonic()
    arguments = _parse()
    exit_on_signals()
    results = gpu.SMOKE / "results" if arguments.smoke else Path("results/gpu")
    names = [step.name for step in gpu.build_steps(arguments.smoke, results)]
    for name in arguments.steps:
        if name not in names:
            raise UserError(f"no step {name!r}; there are {', '.join(names)}")
    if not arguments.smoke and not torch.cuda.is_available():
        raise UserError("torch sees no GPU here; make gpu SMOKE=1 tries a small version of every step on a CPU")
    wanted = arguments.steps or names
    check_outputs(*(results / f"{name}.json" for name in wanted), allow_dirty=arguments.allow_dirty)
    gpu.prepare(arguments.smoke)
    failed, left_out = [], []
    for name in wanted:
        print(f"== {name}", flush=True)
        try:
            left = 60.0 * arguments.minutes - (time.monotonic() - started)
            outcome = gpu.measure(name, arguments.smoke, results, left)
        except gpu.StepFailed as failure:
            failed.append(name)
            outcome = f"failed, {failure}"
        except gpu.LeftOut as reason:
            left_out.append(name)
            outcome = f"left out, {reason}"
        print(f"== {name}: {outcome}", flush=True)
    if left_out:
        print(f"left out: {', '.join(left_out)}")
    if len(left_out) == len(wanted):
        raise UserError("nothing was measured: every step was left out, for the reasons above")
    print(f"failed: {', '.join(failed)}" if failed else f"every {'other ' if left_out else ''}step is done")
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help="default: all, in order")
    parser.add_argument(
        "--minutes", type=positive, default=math.inf, metavar="M", help="start no step that may end after M minutes"
    )
    parser.add_argument(
        "--smoke", action="store_true", help=f"a small version of every step on a CPU, into {gpu.SMOKE}"
    )
    add_allow_dirty(parser)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
