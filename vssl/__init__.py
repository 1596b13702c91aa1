"""Variational Self-Supervised Learning: the method, its models, and the engine that trains them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vssl.inference import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    # At use: whoever imports one module of the package should not wait for all of them.
    if name == "load":
        from vssl.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
