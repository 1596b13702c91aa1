"""A config on the command line: ``-c FILE [key=value ...]``, and the page that explains every key."""

import argparse
import dataclasses
import math
import sys
import typing
from collections.abc import Sequence
from typing import Any, NoReturn

from pipelines.options import bounds_of, default_of, help_of, may_change
from vssl.config import all_keys, default_section, shipped_names, type_name, value_to_yaml

__all__ = ["ConfigParser", "add_config_arguments", "explain", "explain_keys"]


class ConfigParser(argparse.ArgumentParser):
    """The argument parser of a program that takes ``-c FILE [key=value ...]``, and ``--help-config``.

    ``parse_config_args`` gives the parsed arguments (``config`` and ``overrides`` among them). A config key written as
    a flag (``--epochs 3``) is an error that shows the right form (``train.epochs=3``).
    """

    def __init__(self, schema: type, **options: Any) -> None:
        super().__init__(**options)
        self.schema = schema
        add_config_arguments(self, schema)

    def parse_config_args(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        self._words = list(sys.argv[1:] if arguments is None else arguments)
        return self.parse_intermixed_args(self._words)

    def error(self, message: str) -> NoReturn:
        for place, word in enumerate(getattr(self, "_words", [])):
            flag, equals, value = word.partition("=")
            name = flag.lstrip("-").replace("-", "_")
            keys = [key for key, _, _ in all_keys(self.schema) if name in (key, key.split(".")[-1])]
            if flag.startswith("--") and flag not in self._option_string_actions and keys:
                following = self._words[place + 1 : place + 2]
                value = value if equals else (following[0] if following else "VALUE")
                super().error(f"{flag} is not a flag but a config key: write {keys[0]}={value}")
        super().error(message)


def add_config_arguments(parser: argparse.ArgumentParser, schema: type) -> None:
    """Add ``-c FILE [key=value ...]`` and ``--help-config``."""
    shipped = f"a YAML file, or one of {', '.join(shipped_names())}"
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help=shipped)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.dir=c10 train.epochs=10")
    help = "explain every config key and stop"
    parser.add_argument("--help-config", action=_HelpConfig, nargs=0, const=schema, help=help)


class _HelpConfig(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(explain(self.const), end="")
        parser.exit()


def explain(schema: type) -> str:
    """All keys in Markdown, one table per section: type, bounds, default, and the explanation of the field."""
    lines = [
        "# Configuration",
        "",
        "Every key, as `section.key=value` on the command line or in a YAML file (`train.py --help-config` prints this",
        "page). `null` means the method's own published recipe. A resumed run may change the keys marked with * and no",
        "others.",
        "",
    ]
    rows: dict[str, list[str]] = {}
    for key, field, owners in all_keys(schema):
        section, name = key.split(".")
        default = value_to_yaml(default_of(field))
        sentence = help_of(field) + (f" ({owners})" if owners else "")
        mark = "*" if may_change(field) else ""
        cells = (f"`{name}`{mark}", _accepted(field), f"`{default}`", sentence)
        rows.setdefault(section, []).append("| " + " | ".join(cells) + " |")
    documents = {f.name: _document(f) for f in dataclasses.fields(schema)}
    for section, table in rows.items():
        lines += [f"## {section}", "", documents[section], "", "| key | value | default | |", "|---|---|---|---|"]
        lines += [*table, ""]
    return "\n".join(lines).rstrip() + "\n"


def explain_keys(schema: type) -> list[str]:
    """A line of plain text for each key, with its default."""
    return [
        f"{key}={value_to_yaml(default_of(field))}  {help_of(field)} ({_accepted(field)})"
        for key, field, _ in all_keys(schema)
    ]


def _document(field: dataclasses.Field) -> str:
    """The description of a section: the docstring of its dataclass."""
    section = field.type if isinstance(field.type, type) else type(default_section(field))
    return " ".join((section.__doc__ or "").split())


def _accepted(field: dataclasses.Field) -> str:
    """Type and bounds of a field, as text for the table."""
    bounds, text = bounds_of(field), type_name(field.type)
    if bounds.words:
        listed = "a list of " if typing.get_origin(field.type) is tuple else ""
        text = listed + " or ".join(bounds.words)
    if bounds.high < math.inf:
        text += f", {bounds.low:g} to {bounds.high:g}"
    elif bounds.low > -math.inf:
        text += f", at least {bounds.low:g}"
    return text
