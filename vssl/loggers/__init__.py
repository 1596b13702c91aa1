"""Where a run's figures go, one file each; ``train.loggers`` selects some of them."""

from pipelines.parts import find_part
from vssl.loggers.base import Logger

__all__ = ["DEFAULT", "LOGGERS", "find_logger"]

# An entry of train.loggers, which is also the name of the module, and the class in it. ``jsonl`` and ``progress`` are
# part of every run.
LOGGERS = {
    "tensorboard": "TensorBoard",
}
DEFAULT = ("tensorboard",)  # of train.loggers; its library may be missing


def find_logger(name: str) -> type[Logger]:
    """The class of one of ``LOGGERS`` or at ``package.module:NAME``. Raises UserError as ``find_part``."""
    import_paths = {name: f"{__name__}.{name}:{member}" for name, member in LOGGERS.items()}
    return find_part("train.loggers", name, import_paths, Logger)
