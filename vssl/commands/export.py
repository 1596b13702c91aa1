"""Export a run's backbone with torchvision's keys.

Example:
  vssl export runs/cifar10 --out backbone.safetensors
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import UserError
from pipelines.files import check_writable
from vssl.engine.checkpoint import export_backbone, load_newest
from vssl.models.weights import backbone_weights


def main(words: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run directory or a checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    parser.add_argument("--teacher", action="store_true", help="the teacher's weights, as in DINO's paper")
    arguments = parser.parse_args(words)
    check_writable(arguments.out)
    state = load_newest(arguments.source)
    weights = backbone_weights(state["method"], teacher=arguments.teacher)
    if not weights:
        raise UserError(f"{arguments.source}: its method has no teacher")
    export_backbone(weights, arguments.out)
    which = "the teacher at " if arguments.teacher else ""
    print(f"{arguments.out}: {len(weights)} tensors of {which}step {state['step']}")
