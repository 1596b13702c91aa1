#!/usr/bin/env python
"""This project side by side with its peers, in one run.

Examples:
  python tools/compare.py loaders --source /data/imagenet/train/n01440764
  python tools/compare.py loaders --source photos --max-resolution 0 --json loaders.json --plot loaders.png
"""

import argparse
import contextlib
import json
import shlex
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparison import loaders
from comparison.images import prepare_photographs
from pipelines.errors import UserError, run_command
from pipelines.loader_base import worker_count
from pipelines.types import DataConfig
from vssl.checkpoint import write_atomically
from vssl.engine.environment import describe_environment


def main() -> None:
    arguments = _parse()
    arguments.compare(arguments)


def compare_loaders(arguments: argparse.Namespace) -> None:
    names = _choose(arguments.only or list(loaders.CANDIDATES))
    data = DataConfig(image_size=arguments.image_size, batch_size=arguments.batch_size, workers=arguments.workers)
    data = replace(data, workers=worker_count(data), drop_last=False)
    longest = arguments.max_resolution or None
    photographs = prepare_photographs(arguments.source, arguments.work, arguments.images, longest, data.workers)
    with contextlib.ExitStack() as closing:
        rates = loaders.measure(loaders.Setting(photographs, data, closing), names, arguments.repeats)
    print(loaders.summarise(rates))
    if arguments.json:
        report = {
            "command": shlex.join(["python", *sys.argv]),
            "environment": {**describe_environment(loaders.CPU, world_size=1), "lightly": _version("lightly")},
            "photographs": {"max_resolution": longest, **photographs.describe()},
            "loading": {key: getattr(data, key) for key in ("image_size", "batch_size", "workers", "prefetch")},
            "loaders": {
                name: {
                    "task": loaders.CANDIDATES[name].task,
                    "images_per_second": rate.per_second,
                    "low": rate.low,
                    "high": rate.high,
                    "repeats": rate.repeats,
                }
                for name, rate in rates.items()
            },
            "ratios": {" / ".join(pair): ratio for pair, ratio in loaders.ratios_of(rates).items()},
        }
        write_atomically(arguments.json, lambda file: file.write_text(json.dumps(report, indent=2) + "\n"))
    if arguments.plot:
        title = f"{arguments.images:,} photographs, {data.image_size} pixels a view, {data.workers} workers"
        write_atomically(arguments.plot, lambda file: loaders.draw(rates, title, file))


def _choose(names: list[str]) -> list[str]:
    """Those that are installed; one line for each that is not."""
    chosen = []
    for name in names:
        if name not in loaders.CANDIDATES:
            raise UserError(f"no loader {name!r}; there are {'; '.join(loaders.CANDIDATES)}")
        if loaders.CANDIDATES[name].installed():
            chosen.append(name)
        else:
            print(f"left out: {name}; pip install -r requirements.txt -r requirements-compare.txt -c constraints.txt")
    return chosen


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True, metavar="WHAT")
    by_loader = what.add_parser(
        "loaders",
        help="images a second of our loaders and others' on the CPU",
        description=loaders.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    by_loader.set_defaults(compare=compare_loaders)
    add = by_loader.add_argument
    add("--source", required=True, type=Path, metavar="DIR", help="JPEG files, in folders or not; repeated as needed")
    add("--work", type=Path, default=Path("data/compare"), metavar="DIR", help="keeps them; default: data/compare")
    add("--images", type=_whole(1), default=1000, metavar="N", help="an epoch; default: 1000")
    add("--max-resolution", type=_whole(0), default=400, metavar="N", help="longest side; 0: as they are; default: 400")
    add("--image-size", type=_whole(1), default=224, metavar="N", help="side of a view; default: 224")
    add("--batch-size", type=_whole(1), default=128, metavar="N", help="default: 128")
    add("--workers", type=_whole(0), default=0, metavar="N", help="threads or processes of each; default: all cores")
    add("--repeats", type=_whole(1), default=5, metavar="N", help="epochs measured of each, in turn; default: 5")
    add("--only", nargs="+", metavar="LOADER", help=f"some of: {'; '.join(loaders.CANDIDATES)}".replace("%", "%%"))
    add("--json", type=Path, metavar="FILE", help="write the figures")
    add("--plot", type=Path, metavar="FILE.png", help="write a bar chart")
    return parser.parse_args()


def _whole(low: int):
    def whole(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{value} is less than {low}")
        return value

    whole.__name__ = "whole number"  # argparse's message names it
    return whole


if __name__ == "__main__":
    run_command(main)
