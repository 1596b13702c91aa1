"""Checks before a run starts: sizes must fit together."""

from pipelines.errors import UserError
from pipelines.formats.packed import Packed
from vssl.engine.config import Config
from vssl.methods.base import Method
from vssl.runtime.processes import World

__all__ = ["check_sizes", "explain_micro_batches"]

_ALONE = "leaves BatchNorm (and losses that compare images) a single image, whose variance is 0"


def check_sizes(config: Config, packed: Packed, world: World) -> None:
    """Raise UserError if views would shrink, if the processes would get unequal parts of a (micro-)batch (means and
    batch statistics need equal parts), or if BatchNorm would see a single image.
    """
    if config.train.first_size > config.data.image_size:
        raise UserError(
            f"train.first_size={config.train.first_size} must not exceed data.image_size={config.data.image_size}"
        )
    data, parts = config.data, world.size * config.train.accumulate
    if data.batch_size % parts:
        raise UserError(
            f"data.batch_size={data.batch_size} cannot be shared equally by {world.size} processes with "
            f"train.accumulate={config.train.accumulate}: make it a multiple of {parts}"
        )
    if _smallest_part(data.batch_size, config, world) < 2:
        least = 2 * (config.train.accumulate if config.model.sync_batchnorm else parts)
        raise UserError(
            f"data.batch_size={data.batch_size} {_ALONE}: make it at least "
            f"{least} (processes: {world.size}, train.accumulate={config.train.accumulate})"
        )
    count = packed.splits["train"].count
    rest = min(data.limit or count, count) % data.batch_size
    if data.drop_last or rest == 0:
        return
    if rest % world.size:
        raise UserError(
            f"with data.drop_last=false the last batch of an epoch has {rest} images, which {world.size} processes "
            "cannot share equally: set data.drop_last=true, or another data.limit or number of processes"
        )
    if _smallest_part(rest, config, world) < 2:
        raise UserError(
            f"with data.drop_last=false the last batch of an epoch, {rest} images, {_ALONE}: set data.drop_last=true, "
            f"or another data.limit (processes: {world.size}, train.accumulate={config.train.accumulate})"
        )


def _smallest_part(images: int, config: Config, world: World) -> int:
    """The fewest of ``images``, a batch over all processes, that share the statistics of a BatchNorm."""
    last = max(1, images // world.size // config.train.accumulate)
    return last * world.size if config.model.sync_batchnorm else last


def explain_micro_batches(config: Config, method: Method) -> str:
    """What ``train.accumulate`` means for a method whose loss compares the images of a batch; empty: nothing."""
    parts, images = config.train.accumulate, config.data.batch_size
    if parts == 1 or not method.micro_batch:
        return ""
    return (
        f"train.accumulate={parts} micro-batches of {images // parts} images: {method.micro_batch}, which is not the "
        f"loss of {images} images"
    )
