"""Parts by name: an entry of a table of this project, or ``package.module:NAME`` from the user's own code."""

import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.errors import UserError

__all__ = ["OWN", "find_part", "is_own", "must_be"]

OWN = "package.module:NAME"  # stands for the import path of a user's part in messages and bounds


def is_own(name: object) -> bool:
    """Whether ``name`` has the form ``package.module:NAME``."""
    return isinstance(name, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name) is not None


def must_be(key: str, names: Iterable[str], given: object) -> UserError:
    """The error for a name that is neither in a table nor in the user's code."""
    return UserError(f"{key} must be {' or '.join([*names, OWN])}, not {given!r}")


def find_part(key: str, name: str, table: Mapping[str, str], kind: type | None = None) -> Any:
    """The part that ``name`` stands for; its module is imported now.

    Args:
        key: the config key or flag that gave the name, for messages.
        name: a key of ``table``, or ``package.module:NAME``, which may be in the current directory.
        table: for each name its import path ``module:member``.
        kind: the class that the part must be a subclass of; None: it must be callable.

    Raises:
        UserError: no such name, module or member; the module cannot be imported; or the part is not of this kind.
    """
    if name in table:
        return _import_part(key, table[name], kind)
    if not is_own(name):
        raise must_be(key, table, name)
    if not {"", os.getcwd()} & set(sys.path):  # Python puts the program's folder there, not the current directory
        sys.path.insert(0, os.getcwd())
    return _import_part(key, name, kind)


def _import_part(key: str, import_path: str, kind: type | None) -> Any:
    """The part at ``import_path`` (``module:member``); arguments and errors as in ``find_part``."""
    module_name, _, member = import_path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            where = "neither in the current directory nor installed"
            raise UserError(f"{key}={import_path}: there is no module {error.name}, {where}") from error
        raise UserError(f"{key}={import_path}: {module_name} imports {error.name}, which is not installed") from error
    except (Exception, SystemExit) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{key}={import_path}: {module_name} cannot be imported: {what}") from error
    try:
        part = getattr(module, member)
    except AttributeError as error:
        near = difflib.get_close_matches(member, vars(module), n=1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        raise UserError(f"{key}={import_path}: {module_name} has no {member}{hint}") from error
    if kind is None and not callable(part):
        raise UserError(f"{key}={import_path}: {member} is {part!r}, which cannot be called")
    if kind is not None and not (isinstance(part, type) and issubclass(part, kind)):
        raise UserError(f"{key}={import_path}: {member} is not a subclass of {kind.__module__}.{kind.__qualname__}")
    return part
