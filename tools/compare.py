#!/usr/bin/env python
"""This project side by side with its peers, and its methods with each other.

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
from tools.command import positive, whole
from tools.results import add_json, add_plot
from vssl.config import add_config_arguments
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
    images.add_argument("--source", type=Path, metavar="DIR", help="JPEG files, in folders or not; repeated as needed")
    images.add_argument("--packed", type=Path, metavar="DIR", help="small images, packed with --format resident")
    add("--work", type=Path, default=Path("data/compare"), metavar="DIR", help="keeps them; default: data/compare")
    add("--images", type=whole(1), metavar="N", help="per epoch; default: 1000, packed: 10000 or all there are")
    add("--max-resolution", type=whole(0), default=400, metavar="N", help="longest side; 0: as they are; default: 400")
    add("--image-size", type=whole(1), metavar="N", help="side of a view; default: 224, packed: that of the images")
    add("--batch-size", type=whole(1), default=128, metavar="N", help="default: 128")
    add("--workers", type=whole(0), default=0, metavar="N", help="threads or processes of each; default: all cores")
    add("--repeats", type=whole(1), default=5, metavar="N", help="epochs measured of each, in turn; default: 5")
    add("--only", nargs="+", metavar="LOADER", help=f"some of: {'; '.join(loaders.CANDIDATES)}".replace("%", "%%"))
    add_json(by_loader)
    add_plot(by_loader)

    by_method = what.add_parser(
        "methods",
        help="the methods with each other: accuracies, images per second, memory",
        description=methods.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    by_method.set_defaults(compare=methods.compare_methods)
    add_config_arguments(by_method, Config)
    add = by_method.add_argument
    add("--seeds", nargs="+", type=whole(0), default=[0], metavar="N", help="of every arm; default: 0")
    arms = f"repeatable; default: {', '.join(COMPARED)}"
    add("--arm", action="append", metavar="'NAME key=value ...'", help=arms)
    add("--work", type=Path, default=Path("runs/compare"), metavar="DIR", help="keeps the runs; default: runs/compare")
    add("--repeats", type=whole(0), default=5, metavar="N", help="blocks of images/s, 0: none; default: 5")
    add("--seconds", type=positive, default=5.0, metavar="S", help="a block lasts; default: 5")
    add_json(by_method)
    add_plot(by_method, "draw them")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
