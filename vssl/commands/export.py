#!/usr/bin/env python
"""Export a run's backbone with torchvision's keys: python tools/export.py runs/cifar10 --out backbone.safetensors"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.errors import run_command
from pipelines.files import check_writable
from vssl.engine.checkpoint import export_backbone, load_newest
from vssl.models.weights import backbone_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run directory or a checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    arguments = parser.parse_args()
    check_writable(arguments.out)
    state = load_newest(arguments.source)
    weights = backbone_weights(state["method"])
    export_backbone(weights, arguments.out)
    print(f"{arguments.out}: {len(weights)} tensors of step {state['step']}")


if __name__ == "__main__":
    run_command(main)
