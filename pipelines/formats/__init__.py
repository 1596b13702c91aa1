"""Packed data sets: a folder or module for each format, and what they share.

To add a format: a folder or module here with the members of ``protocol.Format``, and its name below.
"""

import importlib
from typing import Literal, cast, get_args

from pipelines.errors import UserError
from pipelines.formats.protocol import Format

__all__ = ["FORMATS", "FormatName", "find_format"]

FormatName = Literal[
    "ffcv",
    "dali",
    "resident",
]
FORMATS: tuple[str, ...] = get_args(FormatName)


def find_format(name: str) -> Format:
    """Import a format when it is needed: the module ``pipelines.formats.<name>``.

    Raises:
        UserError: there is no such format.
    """
    if name not in FORMATS:
        raise UserError(f"--format {name} is none of {', '.join(FORMATS)}")
    return cast(Format, importlib.import_module(f"{__name__}.{name}"))
