"""What the hardware could do, what the run does, and what is in the way."""

from vssl.throughput.report import draw, summarise
from vssl.throughput.stages import Throughput
from vssl.throughput.timing import Rate, Timer

__all__ = ["Rate", "Throughput", "Timer", "draw", "summarise"]
