"""YAML that remembers the line of each key and has none of YAML 1.1's number traps."""

from __future__ import annotations

import re
from typing import Any

import yaml

from model.errors import UserError

Path = tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number (YAML 1.1 reads text), and 1e3 as a whole one."""


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    value = float(node.value.replace("_", ""))
    return int(value) if value.is_integer() and "." not in node.value else value


_Loader.add_constructor("tag:forescale/exponent", _number)
_Loader.add_implicit_resolver(
    "tag:forescale/exponent",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_value(text: str) -> Any:
    """The value of a `key=value` argument."""
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def parse(text: str, file: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """A mapping of sections, and the line of each key in it."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{file}:1: expected sections such as `model:` with keys below them")
        lines: dict[Path, int] = {}
        _collect(node, (), lines, file)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{file}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from None
    finally:
        loader.dispose()


def _collect(node: yaml.MappingNode, path: Path, lines: dict[Path, int], file: str) -> None:
    for key_node, value_node in node.value:
        here = (*path, str(key_node.value))
        line = key_node.start_mark.line + 1
        if here in lines:
            name = ".".join(here)
            raise UserError(f"{file}:{line}: {name} stands on line {lines[here]} too; keep one")
        lines[here] = line
        if isinstance(value_node, yaml.MappingNode):
            _collect(value_node, here, lines, file)
