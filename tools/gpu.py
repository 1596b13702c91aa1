#!/usr/bin/env python
"""Run every measurement that needs a GPU: step by step, each in under nine minutes, into results/gpu/STEP.json.

A step whose file exists is skipped, so that an interrupted call can be continued; delete the file to measure again. A
training that ran out of time continues at the next call.

Environment variables name the packed data sets: C10 (default data/cifar10-resident), IN100
(data/in100-ffcv), IN100_DALI (data/in100-dali).

Examples:
  python tools/gpu.py
  C10=/data/c10 python tools/gpu.py throughput-cifar10 train-vssl
  python tools/gpu.py --smoke
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from pipelines.errors import UserError, run_command
from tools.bench import gpu
from tools.results import add_allow_dirty, check_outputs


def main() -> int:
    arguments = _parse()
    results = gpu.SMOKE / "results" if arguments.smoke else Path("results/gpu")
    names = [step.name for step in gpu.build_steps(arguments.smoke, results)]
    for name in arguments.steps:
        if name not in names:
            raise UserError(f"no step {name!r}; there are {', '.join(names)}")
    if not arguments.smoke and not torch.cuda.is_available():
        raise UserError("torch sees no GPU here; make gpu SMOKE=1 tries a small version of every step on a CPU")
    wanted = arguments.steps or names
    check_outputs(*(results / f"{name}.json" for name in wanted), allow_dirty=arguments.allow_dirty)
    if arguments.smoke:
        gpu.prepare_smoke()
    failed = []
    for name in wanted:
        print(f"== {name}", flush=True)
        try:
            print(f"== {name}: {gpu.measure(name, arguments.smoke, results)}", flush=True)
        except gpu.StepFailed as failure:
            print(f"== {name}: failed, {failure}", flush=True)
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all steps are done or left out")
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help="default: all, in order")
    parser.add_argument(
        "--smoke", action="store_true", help=f"a small version of every step on a CPU, into {gpu.SMOKE}"
    )
    add_allow_dirty(parser)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
