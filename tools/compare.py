#!/usr/bin/env python
"""This project side by side with its peers, and its methods with each other.

Examples:
  python tools/compare.py loaders --source /data/imagenet/train/n01440764
  python tools/compare.py loaders --source photos --max-resolution 0 --json loaders.json --plot loaders.png
  python tools/compare.py loaders --packed data/cifar10-resident
  python tools/compare.py methods -c configs/cifar10_fast.yaml --seeds 0 1 2 --json methods.json --plot methods.png
"""

import argparse
import json
import shlex
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.config import DataConfig
from pipelines.errors import UserError, run_command
from pipelines.files import write_atomically
from pipelines.loading.threads import worker_count
from tools.bench import loaders, methods
from tools.bench.images import Photographs, Pixels, open_pixels, prepare_photographs
from vssl.engine.environment import describe_environment


def main() -> None:
    arguments = _parse()
    arguments.compare(arguments)


def compare_loaders(arguments: argparse.Namespace) -> None:
    names = _choose(arguments.only, Pixels if arguments.packed else Photographs)
    data = DataConfig(batch_size=arguments.batch_size, workers=arguments.workers)
    data = replace(data, workers=worker_count(data), drop_last=False)
    if arguments.packed:
        images = open_pixels(arguments.packed, arguments.images or 10_000)
        described = images.describe()
    else:
        longest = arguments.max_resolution or None
        images = prepare_photographs(arguments.source, arguments.work, arguments.images or 1000, longest, data.workers)
        described = {"max_resolution": longest, **images.describe()}
    data = replace(data, image_size=arguments.image_size or (images.side if arguments.packed else 224))
    rates = loaders.measure(images, data, names, arguments.repeats)
    print(loaders.summarise(rates))
    if arguments.json:
        report = {
            "command": shlex.join(["python", *sys.argv]),
            "environment": {**describe_environment(loaders.CPU, world_size=1), "lightly": _version("lightly")},
            "images": described,
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
        title = f"{described['count']:,} images, {data.image_size} pixels a view, {data.workers} workers"
        write_atomically(arguments.plot, lambda file: loaders.draw(rates, title, file))


def _choose(names: list[str] | None, kind: type) -> list[str]:
    """Those named, or all that read such images, as far as they are installed; one line for each that is not."""
    chosen = []
    for name in names or [name for name, candidate in loaders.CANDIDATES.items() if kind in candidate.reads]:
        if name not in loaders.CANDIDATES:
            raise UserError(f"no loader {name!r}; there are {'; '.join(loaders.CANDIDATES)}")
        candidate = loaders.CANDIDATES[name]
        if kind not in candidate.reads:
            raise UserError(f"{name!r} reads {' or '.join(map(_option, candidate.reads))}, not {_option(kind)}")
        if candidate.installed():
            chosen.append(name)
        else:
            print(f"left out: {name}; pip install -r requirements.txt -r requirements-compare.txt -c constraints.txt")
    return chosen


def _option(kind: type) -> str:
    return {Photographs: "--source", Pixels: "--packed"}[kind]


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
        help="images per second of our loaders and others' on the CPU",
        description=loaders.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    by_loader.set_defaults(compare=compare_loaders)
    add = by_loader.add_argument
    images = by_loader.add_mutually_exclusive_group(required=True)
    images.add_argument("--source", type=Path, metavar="DIR", help="JPEG files, in folders or not; repeated as needed")
    images.add_argument("--packed", type=Path, metavar="DIR", help="small images, packed with --format resident")
    add("--work", type=Path, default=Path("data/compare"), metavar="DIR", help="keeps them; default: data/compare")
    add("--images", type=_whole(1), metavar="N", help="an epoch; default: 1000, packed: 10000 or all there are")
    add("--max-resolution", type=_whole(0), default=400, metavar="N", help="longest side; 0: as they are; default: 400")
    add("--image-size", type=_whole(1), metavar="N", help="side of a view; default: 224, packed: that of the images")
    add("--batch-size", type=_whole(1), default=128, metavar="N", help="default: 128")
    add("--workers", type=_whole(0), default=0, metavar="N", help="threads or processes of each; default: all cores")
    add("--repeats", type=_whole(1), default=5, metavar="N", help="epochs measured of each, in turn; default: 5")
    add("--only", nargs="+", metavar="LOADER", help=f"some of: {'; '.join(loaders.CANDIDATES)}".replace("%", "%%"))
    add("--json", type=Path, metavar="FILE", help="write the figures")
    add("--plot", type=Path, metavar="FILE.png", help="write a bar chart")

    by_method = what.add_parser(
        "methods",
        help="the methods with each other: accuracies, images per second, memory",
        description=methods.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    by_method.set_defaults(compare=methods.compare_methods)
    add = by_method.add_argument
    add("-c", "--config", required=True, metavar="FILE", help="a YAML file, see configs/")
    add("overrides", nargs="*", metavar="key=value", help="for every arm, e.g. data.limit=20000 train.epochs=10")
    add("--seeds", nargs="+", type=_whole(0), default=[0], metavar="N", help="of every arm; default: 0")
    add(
        "--arm",
        action="append",
        metavar="'NAME key=value ...'",
        help="repeatable; default: the three methods",
    )
    add("--work", type=Path, default=Path("runs/compare"), metavar="DIR", help="keeps the runs; default: runs/compare")
    add("--repeats", type=_whole(0), default=5, metavar="N", help="blocks of images/s, 0: none; default: 5")
    add("--seconds", type=float, default=5.0, metavar="S", help="a block lasts; default: 5")
    add("--json", type=Path, metavar="FILE", help="write the figures")
    add("--plot", type=Path, metavar="FILE.png", help="draw them")
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
