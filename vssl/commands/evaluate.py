"""Evaluate a trained backbone on a labelled packed data set.

Examples:
  vssl evaluate runs/cifar10 --protocol knn protocol.k=200 protocol.temperature=0.1
  vssl evaluate runs/cifar10/backbone.safetensors --protocol linear --data data/cifar100-resident
  vssl evaluate runs/cifar10 --protocol uncertainty --ood data/cifar100-resident
  vssl evaluate resnet50.pth --protocol knn --config in100_fast model.backbone=resnet50
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.files import write_json
from pipelines.formats.packed import open_packed
from vssl.charts import save_chart
from vssl.commands.arguments import whole
from vssl.commands.results import add_json, add_plot, check_outputs, report_head
from vssl.config import value_to_yaml
from vssl.evaluation.offline import OfflineEvaluation
from vssl.evaluation.protocols import PROTOCOLS, build_protocol, explain_protocols, find_protocol
from vssl.evaluation.protocols.base import EvaluationProtocol
from vssl.inference import load
from vssl.runtime.memory import explain_out_of_memory


def main(words: Sequence[str] | None = None, prog: str | None = None) -> None:
    arguments = _parse(words, prog)
    check_outputs(arguments.json, arguments.plot, allow_dirty=arguments.allow_dirty)
    protocol = build_protocol(arguments.protocol, arguments.options)
    model = load(
        arguments.source,
        device=arguments.device,
        config=arguments.config,
        overrides=arguments.overrides,
        teacher=arguments.teacher,
    )
    packed = open_packed(arguments.data or model.config.data.dir)
    evaluation = OfflineEvaluation(model, packed, arguments.batch_size)
    head = report_head(model.device)
    with explain_out_of_memory(f"lower --batch-size {evaluation.batch_size}"):
        report = protocol.measure(evaluation)
    _print(report, protocol.describe(report))
    if arguments.json:
        write_json(arguments.json, {**head, **report})
    if arguments.plot:
        save_chart(protocol.chart(report), arguments.plot)


def _parse(words: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    asked = {"-h", "--help"} & set(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog="Protocols and their keys:\n" + explain_protocols() if asked else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="RUN_OR_CHECKPOINT",
        help="a run directory (its newest checkpoint), a checkpoint, an exported backbone, or a file of torchvision or "
        "timm",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="of the protocol (protocol.k=5) and of the config",
    )
    parser.add_argument(
        "--protocol",
        required=True,
        metavar="{" + ",".join(PROTOCOLS) + "}",
        help="or package.module:NAME, a class of your own",
    )
    parser.add_argument("--data", type=Path, metavar="PACKED_DIR", help="default: the run's data.dir")
    parser.add_argument(
        "--ood", type=Path, metavar="PACKED_DIR", help="out-of-distribution images: short for protocol.ood"
    )
    add_json(parser)
    add_plot(parser, "write a chart of the report; default: beside the --json file, if the protocol draws one")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="network and transform; default: the run's config.yaml"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--teacher", action="store_true", help="the teacher's weights, as in DINO's paper")
    parser.add_argument("--batch-size", type=whole(1), metavar="N", help="images per forward pass; default: the run's")
    arguments = parser.parse_intermixed_args(words)
    protocol = find_protocol(arguments.protocol)
    arguments.options = [override for override in arguments.overrides if override.startswith("protocol.")]
    arguments.overrides = [override for override in arguments.overrides if not override.startswith("protocol.")]
    if arguments.ood:
        if not hasattr(protocol.Options, "ood"):
            parser.error(f"--ood: --protocol {arguments.protocol} has no option protocol.ood")
        arguments.options.append(f"protocol.ood={value_to_yaml(str(arguments.ood))}")
    draws = protocol.chart is not EvaluationProtocol.chart
    if arguments.plot and not draws:
        parser.error(f"--plot: --protocol {arguments.protocol} draws no chart")
    if draws and arguments.json and not arguments.plot:
        arguments.plot = arguments.json.with_suffix(".png")
    return arguments


def _print(report: dict, more: list[str]) -> None:
    name, (low, high) = report["protocol"], report["top1_interval"]
    print(f"{name} top-1: {report['top1']:.4f}  (95 %: {low:.4f} to {high:.4f}, {report['count']:,} images)")
    print(f"{name} top-5: {report['top5']:.4f}")
    print(*more, sep="\n")
