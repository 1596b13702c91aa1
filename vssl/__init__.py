"""Variational Self-Supervised Learning: the method, its models, and the engine that trains them."""

import importlib

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Imported on first use: importing one module of the package must not load all of them.
    if name == "load":
        return importlib.import_module("vssl.inference").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
