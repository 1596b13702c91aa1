#!/usr/bin/env python
"""Compare our loaders with others', and our methods with each other.

Examples:
  python tools/compare.py loaders --source /data/imagenet/train/n01440764
  python tools/compare.py loaders --source photos --max-resolution 0 --json loaders.json --plot loaders.png
  python tools/compare.py loaders --packed data/cifar10-resident
  python tools/compare.py methods -c configs/cifar10_fast.yaml --seeds 0 1 2 --json methods.json --plot methods.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.errors import run_command
from tools.bench import loaders, methods
from vssl.commands.arguments import positive, whole
from vssl.commands.results import add_json, add_plot
from vssl.config_arguments import add_config_arguments
from vssl.engine.config import Config
from vssl.methods import COMPARED


def main() -> None:
    arguments = _parse()
    arguments.compare(arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True, metavar="WHAT")
    by_loader = what.add_parser(
        "loaders",
        help="images per second of our loaders and others' on the CPU",
        description=loaders.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    by_loader.set_defaults(compare=loaders.compare_loaders)
    add = by_loader.add_argument
    images = by_loader.add_mutually_exclusive_group(required=True)
    images.add_argument(
        "--source", type=Path, metavar="DIR", help="JPEG files, in folders or not; used repeatedly if too few"
    )
    images.add_argument("--packed", type=Path, metavar="DIR", help="small images, packed with --format resident")
    add(
        "--work",
        type=Path,
        default=Path("data/compare"),
        metavar="DIR",
        help="for the prepared images; default: data/compare",
    )
    add("--images", type=whole(1), metavar="N", help="per epoch; default: 1000, packed: at most 10000")
    add("--max-resolution", type=whole(0), default=400, metavar="N", help="longest side; 0: unchanged; default: 400")
    add("--image-size", type=whole(1), metavar="N", help="side of a view; default: 224, packed: that of the images")
    add("--batch-size", type=whole(1), default=128, metavar="N", help="default: 128")
    add("--workers", type=whole(0), default=0, metavar="N", help="threads or processes per loader; default: all cores")
    add("--repeats", type=whole(1), default=5, metavar="N", help="measured epochs per loader, in turn; default: 5")
    add(
        "--only",
        nargs="+",
        metavar="LOADER",
        help=f"only these, of: {'; '.join(loaders.CANDIDATES)}".replace("%", "%%"),
    )
    add_json(by_loader)
    add_plot(by_loader)

    by_method = what.add_parser(
        "methods",
        help="accuracies, images per second and memory of our methods",
        description=methods.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    by_method.set_defaults(compare=methods.compare_methods)
    add_config_arguments(by_method, Config)
    add = by_method.add_argument
    add("--seeds", nargs="+", type=whole(0), default=[0], metavar="N", help="seeds of every arm; default: 0")
    arms = f"repeatable; default: {', '.join(COMPARED)}"
    add("--arm", action="append", metavar="'NAME key=value ...'", help=arms)
    add("--work", type=Path, default=Path("runs/compare"), metavar="DIR", help="for the runs; default: runs/compare")
    add("--repeats", type=whole(0), default=5, metavar="N", help="blocks that measure images/s; 0: none; default: 5")
    add("--seconds", type=positive, default=5.0, metavar="S", help="seconds per block; default: 5")
    add_json(by_method)
    add_plot(by_method, "write a chart")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
