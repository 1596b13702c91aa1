"""Read, check and override a config: a YAML file with ``key=value`` overrides.

A config is a tree of frozen dataclasses: sections whose fields are made by ``pipelines.options.option``. This module
works for any sections; ``vssl.engine.config`` defines those of this project.
"""

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from pipelines.errors import UserError
from pipelines.options import bounds_of, check_value, default_of, help_of, is_path, option
from pipelines.parts import OWN, is_own, must_be

__all__ = [
    "all_keys",
    "default_section",
    "from_dict",
    "options_of",
    "read_config",
    "read_overrides",
    "shipped_names",
    "to_dict",
    "to_yaml",
    "type_name",
    "value_to_yaml",
    "variants",
]

Schema = TypeVar("Schema")
_SHIPPED = Path(__file__).with_name("configs")  # in a checkout a link to the folder at its top


def variants(
    classes: Callable[[], dict[str, type]],
    default: str,
    *,
    find: Callable[[str], type] | None = None,
    implied: Callable[[Any], str] | None = None,
) -> Any:
    """A section whose keys depend on its ``name``.

    Args:
        classes: gives the dataclass for each name.
        default: the name whose dataclass is the default.
        find: gives the dataclass of another name, ``package.module:Class``; None: there are no other names.
        implied: gives the name that is meant by null, from a config whose other sections are as they were read; None:
            null is no name.
    """
    metadata = {"variants": classes, "find": find, "implied": implied}
    return dataclasses.field(default_factory=lambda: classes()[default](), metadata=metadata)


def from_dict(values: dict, schema: type[Schema]) -> Schema:
    """The config that a nested dict describes; missing keys have their defaults.

    Raises:
        UserError: a key does not exist (the message names the nearest one) or belongs to another variant (the message
            names it), or a value has the wrong type or is out of bounds.
    """
    return _read(values, schema, "", schema)


def _read(values: dict, section: type, prefix: str, schema: type) -> Any:
    fields = {field.name: field for field in dataclasses.fields(section)}
    dependent = [name for name, field in fields.items() if field.metadata.get("implied")]
    given: dict[str, Any] = {}
    # Read sections that depend on others last, even if they are not given.
    for name in [*(name for name in values if name not in dependent), *dependent]:
        key, value = f"{prefix}{name}", values.get(name)
        if name not in fields:
            raise _unknown(key, schema, [prefix + other for other in fields])
        field = fields[name]
        if _is_section(field):
            if value is None:  # a section whose keys are all commented out
                if name not in dependent:
                    continue
                value = {}
            if not isinstance(value, dict):
                raise UserError(f"{key} must be a section of keys, not {value!r}")
            chosen: Any = field.type
            if "variants" in field.metadata:
                chosen = _choose_variant(field, value, key, section(**given) if name in dependent else None)
            given[name] = _read(value, chosen, key + ".", schema)
        elif name == "name" and is_own(value):  # it chose this section: the class is there
            given[name] = value
        else:
            converted = _convert(key, value, field.type)
            given[name] = os.path.expanduser(converted) if is_path(field) else converted
            check_value(key, given[name], bounds_of(field))
    return section(**given)


def _is_section(field: dataclasses.Field) -> bool:
    return "variants" in field.metadata or dataclasses.is_dataclass(field.type)


def _choose_variant(field: dataclasses.Field, values: dict, section: str, others: Any) -> type:
    """The dataclass that the section's ``name`` selects; checks that no key belongs to another variant.

    ``others``: the config as far as it is read, for a section whose name it may imply.
    """
    classes, find, implied = (field.metadata[key] for key in ("variants", "find", "implied"))
    classes = classes()
    name = values.get("name", default_section(field).name)
    if name is None and implied is not None:
        name = implied(others)
    if find is not None and is_own(name):
        classes = classes | {name: find(name)}
    elif not isinstance(name, str) or name not in classes:
        raise must_be(f"{section}.name", classes, name)
    keys = {variant: _names(cls) for variant, cls in classes.items()}
    for key in values:
        owners = [variant for variant in classes if key in keys[variant]]
        if owners and name not in owners:
            raise UserError(f"{section}.{key} is an option of {section}.name={' or '.join(owners)}, not of {name}")
    return classes[name]


def default_section(section: dataclasses.Field) -> Any:
    """The section with all its defaults."""
    factory: Any = section.default_factory  # a section always has one
    return factory()


def _names(section: type) -> set[str]:
    """The names of a section's keys."""
    return {field.name for field in dataclasses.fields(section)}


def _is_union(expected: Any) -> bool:
    return typing.get_origin(expected) in (types.UnionType, typing.Union)


def type_name(expected: Any) -> str:
    """A field's type in words, for messages and the page of keys."""
    if typing.get_origin(expected) is Literal:
        return " or ".join(map(str, typing.get_args(expected)))
    if typing.get_origin(expected) is tuple and ... in typing.get_args(expected):
        return "a list of names"
    if typing.get_origin(expected) is tuple:
        return f"a list of {len(typing.get_args(expected))} numbers"
    if _is_union(expected):
        return " or ".join("null" if t is type(None) else type_name(t) for t in typing.get_args(expected))
    if expected is dict:
        return "a mapping of names to plain values"
    return {"int": "an integer", "float": "a number", "str": "text", "bool": "true or false"}[expected.__name__]


def _convert(key: str, value: Any, expected: Any) -> Any:
    """``value`` as ``expected``, without guessing; raises UserError naming ``key``."""
    arguments = typing.get_args(expected)
    if typing.get_origin(expected) is Literal:
        # YAML reads an unquoted off or on as a boolean.
        value = {False: "off", True: "on"}.get(value, value) if isinstance(value, bool) else value
        if value in arguments:
            return value
    elif _is_union(expected):
        if value is None:
            return None
        return _convert(key, value, next(t for t in arguments if t is not type(None)))
    elif typing.get_origin(expected) is tuple:
        if isinstance(value, list | tuple) and ... in arguments:
            return tuple(_convert(key, item, arguments[0]) for item in value)
        if isinstance(value, list | tuple) and len(value) == len(arguments):
            return tuple(_convert(key, v, t) for v, t in zip(value, arguments, strict=True))
    elif expected is float:
        # YAML 1.1 reads 1e-5 as text.
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                pass
    elif expected is dict:
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return {name: _plain(f"{key}.{name}", item) for name, item in value.items()}
    elif type(value) is expected:
        return value
    raise UserError(f"{key} must be {type_name(expected)}, not {value!r}")


def _plain(key: str, value: Any) -> Any:
    """A number, text, true, false, null or a list of them; raises UserError naming ``key``."""
    if isinstance(value, list):
        return [_plain(key, item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value, re.IGNORECASE):
        return float(value)  # YAML 1.1 reads 1e-5 as text
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"{key} must be a number, text, true, false, null or a list of them, not {value!r}")


def all_keys(schema: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, str]]:
    """Every key, its field, and the names of the variants that have it ("": all of them, or no variant key)."""
    for field in dataclasses.fields(schema):
        key = prefix + field.name
        if "variants" in field.metadata:
            yield from _fields_of_variants(field, key + ".")
        elif dataclasses.is_dataclass(field.type):
            yield from all_keys(field.type, key + ".")
        else:
            yield key, field, ""


def _fields_of_variants(section: dataclasses.Field, prefix: str) -> Iterator[tuple[str, dataclasses.Field, str]]:
    classes, default = section.metadata["variants"](), default_section(section)
    (named,) = (field for field in dataclasses.fields(default) if field.name == "name")
    words = [*classes, *([OWN] if section.metadata["find"] else [])]
    words += ["null"] if section.metadata["implied"] else []
    name = option(default.name, f"{help_of(named)}; the other keys of this section depend on it", words=tuple(words))
    name.type = str
    yield prefix + "name", name, ""
    # A key may mean different things to different variants.
    found: dict[tuple, tuple[dataclasses.Field, list[str]]] = {}
    for variant, cls in classes.items():
        for field in dataclasses.fields(cls):
            if field.name != "name":
                meaning = (field.name, value_to_yaml(default_of(field)), help_of(field))
                found.setdefault(meaning, (field, []))[1].append(variant)
    for field, owners in found.values():
        yield prefix + field.name, field, "" if len(owners) == len(classes) else ", ".join(owners)


def _unknown(key: str, schema: type, more: Sequence[str] = ()) -> UserError:
    """An error that names the nearest valid key: the same name in another section first, then the closest spelling.

    ``more``: keys of a section that the schema does not list, because the user's own code defines it.
    """
    keys = [*more, *(name for name, _, _ in all_keys(schema) if name not in more)]
    near = difflib.get_close_matches(key, keys + [k.split(".")[0] for k in keys], n=1, cutoff=0.0)[0]
    same_name = [k for k in keys if k.split(".")[-1] == key.split(".")[-1]]
    return UserError(f"unknown config key {key!r}; did you mean {(same_name or [near])[0]!r}?")


def options_of(config: Any) -> Iterator[tuple[str, dataclasses.Field]]:
    """Every key of a config, as ``section.name``, and its field; of a section with variants those of the chosen one."""
    for section in dataclasses.fields(config):
        for field in dataclasses.fields(getattr(config, section.name)):
            yield f"{section.name}.{field.name}", field


def to_dict(config: Any) -> dict:
    """Nested dict of plain values (tuples as lists); ``from_dict`` reads it back."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            plain[field.name] = to_dict(value)
        else:
            plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice; PyYAML would silently use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"found {key.value!r} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# PyYAML's exceptions: ValueError for a date such as 2025-13-01 or bytes that are not UTF-8, RecursionError for [[[[...
_BAD_YAML = (yaml.YAMLError, ValueError, RecursionError)


def read_config(
    schema: type[Schema],
    path: str | Path,
    overrides: Sequence[str] = (),
    translate: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Schema:
    """Read a YAML file and apply ``section.key=value`` overrides (values are YAML).

    Args:
        path: a file, or the name of a shipped config (``demo``).
        translate: changes the file's nested dict before the overrides, for files that earlier versions wrote.

    Raises:
        UserError: no config has this name, the file cannot be read or is not YAML, or as ``from_dict`` or
            ``translate``.
    """
    path = _find_config(path)
    try:
        values = yaml.load(path.read_text(), _Loader) or {}
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}") from error
    except _BAD_YAML as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections of keys, as configs/demo.yaml does")
    return _override(schema, translate(values), overrides)


def read_overrides(schema: type[Schema], overrides: Sequence[str]) -> Schema:
    """The defaults with ``section.key=value`` overrides applied. Raises UserError as ``read_config``."""
    return _override(schema, {}, overrides)


def _override(schema: type[Schema], values: dict, overrides: Sequence[str]) -> Schema:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"override {override!r} must have the form section.key=value")
        try:
            value = yaml.load(text, _Loader)
        except _BAD_YAML as error:
            raise UserError(f"override {override!r}: the value is not valid YAML") from error
        section, dot, name = key.partition(".")
        if not dot and section in _names(schema):
            first = next(k for k, _, _ in all_keys(schema) if k.startswith(f"{section}."))
            raise UserError(f"{section} is a section of keys: write one of them, such as {first}=VALUE")
        if section not in _names(schema):
            raise _unknown(key, schema)
        if values.get(section) is None:
            values[section] = {}
        if not isinstance(values[section], dict):
            raise UserError(f"{section} must be a section of keys, not {values[section]!r}")
        # An empty value keeps its text meaning: run.dir= is "", not null.
        values[section][name] = "" if text == "" else value
    return from_dict(values, schema)


def _find_config(path: str | Path) -> Path:
    """The file; if there is none and ``path`` is a bare name, the shipped config of this name."""
    path = Path(path)
    if path.exists() or path.suffix or path.name != str(path):
        return path
    if path.name not in shipped_names():
        raise UserError(f"no config {path.name!r}: give a YAML file, or one of {', '.join(shipped_names())}")
    return _SHIPPED / f"{path.name}.yaml"


def shipped_names() -> list[str]:
    return sorted(file.stem for file in _SHIPPED.glob("*.yaml"))


def value_to_yaml(value: Any) -> str:
    """A single value as a config file writes it."""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()
