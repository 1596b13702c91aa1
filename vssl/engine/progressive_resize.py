"""Progressive resolution: small views first, full-size views at the end."""

__all__ = ["STAGES", "view_side"]

STAGES = 4  # equal parts of a run; the step is compiled again for each


def view_side(epoch: int, epochs: int, first: int, full: int) -> int:
    """Side of a view in pixels in an epoch: from ``first`` to ``full`` in ``STAGES`` stages, in multiples of 8; the
    last epoch always has ``full``.

    A convolution costs in proportion to the area of its input: small views are cheap, and larger views then refine the
    network (progressive resizing: Howard et al. on DAWNBench, 2018; ffcv's ImageNet recipe).
    From 128 to 224 pixels an epoch costs 0.65 of a full one on average.

    Args:
        epoch: from 0 to ``epochs`` - 1.
        first: side in the first stage; 0: ``full`` from the start.
    """
    stage = epoch * STAGES // epochs
    if first == 0 or stage == STAGES - 1 or epoch == epochs - 1:
        return full
    side = first + (full - first) * stage / (STAGES - 1)
    return min(full, 8 * round(side / 8))
