"""Options: fields of a frozen dataclass that carry their bounds and the sentence that explains them."""

import dataclasses
import math
import re
from typing import Any, NamedTuple

from pipelines.errors import UserError
from pipelines.parts import OWN, is_own

__all__ = [
    "Bounds",
    "bounds_of",
    "check_options",
    "check_value",
    "default_of",
    "help_of",
    "is_path",
    "may_change",
    "option",
]


class Bounds(NamedTuple):
    """The allowed values: numbers from ``low`` to ``high``; text that is one of ``words``; the same for each entry of a
    list."""

    low: float = -math.inf
    high: float = math.inf
    ordered: bool = False  # a pair must be given as [least, greatest]
    # NAME in a word stands for any name, ``parts.OWN`` for any such place; for a closed list use a Literal type.
    words: tuple[str, ...] = ()


def option(default: Any, help: str, *, may_change: bool = False, path: bool = False, **bounds: Any) -> Any:
    """A field with its default, the sentence that explains it, and its bounds (the fields of ``Bounds``).

    ``may_change``: a resumed run may have another value. Changing any other option would make it another run. ``path``:
    the text is a path, in which a leading ``~`` means the user's home. Only an empty mapping can be the
    default of a field of type ``dict``.
    """
    metadata = {"help": help, "may_change": may_change, "path": path, "bounds": Bounds(**bounds)}
    if default == {}:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field made by ``option``."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def help_of(field: dataclasses.Field) -> str:
    """The sentence that explains a field made by ``option``."""
    return field.metadata.get("help", "")


def may_change(field: dataclasses.Field) -> bool:
    """Whether a resumed run may change the value of a field made by ``option``."""
    return field.metadata.get("may_change", False)


def is_path(field: dataclasses.Field) -> bool:
    """Whether the text of a field made by ``option`` is a path."""
    return field.metadata.get("path", False)


def bounds_of(field: dataclasses.Field) -> Bounds:
    """The bounds of a field made by ``option``; other fields have no bounds."""
    return field.metadata.get("bounds", Bounds())


def check_value(key: str, value: Any, bounds: Bounds) -> None:
    """Compare a number, a text, or each of a tuple of them with its bounds; other values pass.

    Raises:
        UserError: out of bounds, not finite, a pair out of order, or an unknown word; the message names ``key``.
    """
    patterns = [re.escape(word).replace("NAME", r"\S+") for word in bounds.words if word != OWN]
    for text in value if isinstance(value, tuple) else (value,):
        if not isinstance(text, str) or not bounds.words or (OWN in bounds.words and is_own(text)):
            continue
        if not any(re.fullmatch(pattern, text) for pattern in patterns):
            raise UserError(f"{key} must be {' or '.join(bounds.words)}, not {text!r}")
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if not math.isfinite(number):
            raise UserError(f"{key} must be a finite number, not {number}")
        if not bounds.low <= number <= bounds.high:
            limits = f"at least {bounds.low}" if bounds.high == math.inf else f"between {bounds.low} and {bounds.high}"
            raise UserError(f"{key} must be {limits}, not {number}")
    if bounds.ordered and list(numbers) != sorted(numbers):
        raise UserError(f"{key} must be given as [least, greatest], not {list(numbers)}")


def check_options(options: Any, section: str) -> None:
    """Check every field of a dataclass made of ``option``s, for values that do not come from a checked config file.

    Raises:
        UserError: as ``check_value``; the key is ``section.field``.
    """
    for field in dataclasses.fields(options):
        check_value(f"{section}.{field.name}", getattr(options, field.name), bounds_of(field))
