"""`forescale keys`: every key of a configuration, with its type, default and meaning."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from launch.output import print_json
from model.config import LARGEST_INT
from model.errors import UserError
from model.sentences import nearest
from trainer.config.settings import Settings


@dataclass(frozen=True)
class Key:
    """A key of a configuration."""

    type: str
    """Type and bounds, as in `int >= 1 | null`."""
    default: Any
    description: str


def print_keys(chosen: str | None, *, as_json: bool) -> None:
    """Print the keys of a section, a key's whole text, or all keys where none is `chosen`.

    Raises UserError where there is no such section or key.
    """
    known = all_keys()
    shown = {
        name: key
        for name, key in known.items()
        if chosen is None or name == chosen or name.startswith(f"{chosen}.")
    }
    if not shown:
        names = [*Settings.model_fields, *known]
        leaves = [name for name in known if name.endswith(f".{chosen}")]
        near = leaves[0] if leaves else nearest(chosen, names)
        hint = f"did you mean {near}?" if near else f"sections: {', '.join(Settings.model_fields)}"
        raise UserError(f"{chosen}: there is no such section or key; {hint}")
    if as_json:
        print_json({name: asdict(key) for name, key in shown.items()})
        return
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    print("\n".join(_lines(shown, width, whole=chosen is not None)))


def all_keys() -> dict[str, Key]:
    """Return every dotted key, in the order in which they are declared.

    Those of a list's members follow the list's own: `data.source[].weight`.
    """
    return dict(_keys_of(Settings, ""))


def _keys_of(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Key]]:
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            yield from _keys_of(field.annotation, f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}", _key(field)
        for member, mark in _members(field.annotation):
            yield from _keys_of(member, f"{prefix}{name}{mark}.")


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _members(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """Yield the sections that a value may be, or a list of them, with the list's mark."""
    for argument in get_args(annotation):
        if _is_section(argument):
            yield argument, "[]" if get_origin(annotation) is list else ""
        else:
            yield from _members(argument)


def _key(field: FieldInfo) -> Key:
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    text = " ".join((field.description or "").split())
    return Key(type_name(field.annotation, field.metadata), default, text)


_NAMES = {int: "int", float: "float", bool: "bool", str: "str", NoneType: "null"}

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def type_name(annotation: Any, constraints: Iterable[Any] = ()) -> str:
    """Return the name of a type of a setting, with its bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [c for one in arguments[1:] for c in getattr(one, "metadata", [one])]
        return type_name(arguments[0], inner)
    if origin in (Union, UnionType):
        values = [one for one in arguments if get_origin(one) is not Callable]  # Python's alone
        return " | ".join(map(type_name, values))
    if origin is Literal:
        return " | ".join(str(argument) for argument in arguments)
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return "keys"
    bounds = [
        f"{sign} {getattr(one, name)}"
        for one in constraints
        for name, sign in _BOUNDS.items()
        if getattr(one, name, None) not in (None, LARGEST_INT)
    ]
    name = _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return " ".join([name, " and ".join(bounds)]) if bounds else name


def _lines(keys: dict[str, Key], width: int, *, whole: bool) -> Iterator[str]:
    """Yield the lines for people: of each key the `whole` text, or its first sentence."""
    for name, key in keys.items():
        default = yaml.safe_dump(key.default, default_flow_style=True, width=1000)
        yield f"{name} = {default.partition(chr(10))[0]}    ({key.type})"
        text = key.description if whole else first_sentence(key.description)
        yield textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    ")


def first_sentence(text: str) -> str:
    """Return a text up to the first period that another sentence follows."""
    return re.split(r"(?<=(?<!e\.g)\.) (?=[A-Z`])", text, maxsplit=1)[0]
