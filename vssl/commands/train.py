"""Pretrain a backbone.

Examples:
  vssl train -c cifar10_fast method.name=byol
  vssl train -c cifar10_fast --resume auto
  torchrun --standalone --nproc-per-node 2 -m vssl train -c in100_fast
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vssl.config import to_yaml
from vssl.config_arguments import ConfigParser
from vssl.engine.config import Config, load_config, resolve
from vssl.engine.trainer import Stopped, Trainer
from vssl.runtime.memory import explain_out_of_memory
from vssl.runtime.processes import World, join_world


def main(words: Sequence[str] | None = None, prog: str | None = None) -> int:
    with join_world() as world:
        return _train(_parse(words, prog), world)


def _parse(words: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    parser = ConfigParser(Config, prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--resume", metavar="auto|RUN_OR_CHECKPOINT", help="continue the run in run.dir, or from what this path holds"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    return parser.parse_config_args(words)


def _train(arguments: argparse.Namespace, world: World) -> int:
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(to_yaml(resolve(config)), end="")
        return 0
    # After a restart by torchrun --max-restarts the run continues by itself.
    resume = arguments.resume or ("auto" if world.restarts else None)
    data, train = config.data, config.train
    remedy = f"lower data.batch_size={data.batch_size}, or raise train.accumulate={train.accumulate}"
    try:
        with explain_out_of_memory(remedy):
            trainer = Trainer(config, resume, world)
            trainer.fit()
    except Stopped as stop:
        print(f"{stop}: saved at step {trainer.step}; continue with --resume auto", file=sys.stderr)
        return stop.code
    if trainer.knn_first is not None:
        print(f"kNN top-1 untrained: {trainer.knn_first:.3f}")
        print(f"kNN top-1 trained: {trainer.knn_last:.3f}")
    for path in sorted(Path(config.run.dir).rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            print(path)
    return 0
