"""The engine: the step, how it is compiled and captured, and the loop around it."""

from vssl.engine.trainer import Stopped, Trainer, build_step, prepare_step

__all__ = ["Stopped", "Trainer", "build_step", "prepare_step"]
