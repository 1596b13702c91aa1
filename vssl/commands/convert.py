"""Pack a data set for training: decode, check and store its images once.

Examples:
  vssl convert --dataset cifar10
  vssl convert --dataset in100 --source /data/imagenet --max-resolution 400
  vssl convert --dataset folder --source photos --out data/photos --val-fraction 0.1 --on-error skip
  vssl convert --dataset folder --source photos --dry-run --preview photos.png
  vssl convert --verify --out data/photos
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.convert import Report, convert, examine, verify
from pipelines.files import check_writable
from pipelines.formats import FORMATS
from pipelines.formats.packed import Packed
from pipelines.parts import OWN, is_own
from pipelines.sources import SOURCES
from vssl.commands.arguments import exit_on_signals, fraction, whole


def main(words: Sequence[str] | None = None, prog: str | None = None) -> None:
    arguments = _parse(words, prog)
    exit_on_signals()
    out = arguments.out or Path("data") / f"{arguments.dataset}-{arguments.format}".replace(":", "-")
    if arguments.verify:
        _print_packed(verify(out, arguments.workers))
        print("every checksum agrees and every sample decodes")
        return
    if arguments.preview is not None:
        check_writable(arguments.preview)
    if arguments.dry_run:
        summary = examine(
            arguments.dataset,
            arguments.source,
            format=arguments.format,
            max_resolution=arguments.max_resolution,
            quality=arguments.quality,
            workers=arguments.workers,
            val_fraction=arguments.val_fraction,
            no_labels=arguments.no_labels,
            preview=arguments.preview,
        )
        print(*summary.lines(), "nothing was packed (--dry-run)", sep="\n")
        return
    former = _identity(out)
    try:
        report = convert(
            arguments.dataset,
            arguments.source,
            out,
            format=arguments.format,
            max_resolution=arguments.max_resolution,
            quality=arguments.quality,
            workers=arguments.workers,
            on_error=arguments.on_error,
            val_fraction=arguments.val_fraction,
            no_labels=arguments.no_labels,
            force=arguments.force,
            preview=arguments.preview,
        )
    except SystemExit:  # by a signal
        done = f"{out} is complete" if _identity(out) != former else f"nothing was packed, {out} is as it was before"
        print(f"stopped: {done}", file=sys.stderr)
        raise
    _print_report(report)


def _identity(out: Path) -> int | None:
    """Differs between a folder and the one that replaces it; None: there is none."""
    return out.stat().st_ino if out.exists() else None


def _dataset(name: str) -> str:
    if name not in SOURCES and not is_own(name):
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SOURCES)}, and not {OWN}")
    return name


def _parse(words: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dataset",
        type=_dataset,
        metavar="{" + ",".join(SOURCES) + "}",
        help="or package.module:NAME, a function of your own; needed unless --verify has --out",
    )
    parser.add_argument("--source", type=Path, metavar="DIR", help="folder of the images; for CIFAR also the archive")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: data/<dataset>-<format>")
    parser.add_argument("--format", choices=FORMATS, default="ffcv", help="default: ffcv")
    parser.add_argument(
        "--max-resolution", type=whole(1, 65_500), metavar="N", help="scale images down to a longest side of N pixels"
    )
    parser.add_argument(
        "--quality",
        type=whole(1, 100),
        metavar="Q",
        help="encode every image as a JPEG of quality Q (default: keep JPEG files as they are and images up to 64 x 64 "
        "without loss, encode others at 90)",
    )
    parser.add_argument("--workers", type=whole(0, 1024), default=0, metavar="N", help="processes; default: all cores")
    parser.add_argument(
        "--on-error",
        choices=("fail", "skip"),
        default="fail",
        help="what to do with an unusable image or an empty class folder; default: fail",
    )
    parser.add_argument(
        "--val-fraction",
        type=fraction,
        metavar="F",
        help="hold out this part of each class as val, the same images every time; for sources that have no val",
    )
    parser.add_argument("--no-labels", action="store_true", help="pack all images without labels, for folders by date")
    parser.add_argument("--dry-run", action="store_true", help="read and decode everything and say what, pack nothing")
    parser.add_argument(
        "--preview", type=Path, metavar="F.png", help="draw a contact sheet: a few images of every class, as packed"
    )
    parser.add_argument("--force", action="store_true", help="replace a packed data set at --out")
    parser.add_argument("--verify", action="store_true", help="convert nothing; check the packed data set at --out")
    arguments = parser.parse_args(words)
    if arguments.dataset is None and not (arguments.verify and arguments.out):
        parser.error("--verify needs --out or --dataset" if arguments.verify else "--dataset is required")
    return arguments


def _print_report(report: Report) -> None:
    _print_packed(report.packed)
    count = sum(split.count for split in report.packed.splits.values())
    print(f"{count / report.seconds:,.0f} images per second")
    print(*report.summary.lines(), sep="\n")
    if report.skipped:
        print(f"skipped {len(report.skipped)}; manifest.json lists all:")
        for entry in report.skipped[:5]:
            print(f"  {entry['file']}: {entry['reason']}")


def _print_packed(packed: Packed) -> None:
    print(f"{packed.dir}: {packed.dataset} as {packed.format}, {len(packed.classes)} classes")
    for name, split in packed.splits.items():
        size = sum(entry.bytes for entry in split.files.values()) / 1e6
        print(f"  {name}: {split.count:,} images up to {split.max_width} x {split.max_height}, {size:,.1f} MB")
