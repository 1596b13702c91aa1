"""Packed data sets: one module for each format, and what they share."""

from typing import Literal, get_args

__all__ = ["FORMATS", "FormatName"]

FormatName = Literal["ffcv", "dali", "resident"]
FORMATS: tuple[str, ...] = get_args(FormatName)
