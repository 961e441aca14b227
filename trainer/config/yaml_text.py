"""A YAML reader that keeps the line of each key and reads plain words as YAML 1.2 does."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from model.errors import UserError
from model.sentences import first_line

KeyPath = tuple[str, ...]
"""A dotted key, split."""


class _Loader(yaml.SafeLoader):
    """A SafeLoader without YAML 1.1's traps.

    1e-3 is a number, 010 is no octal, 1:30 no minutes, 2024-01-31 no date.
    """

    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.rpartition(":")[2] not in ("int", "float", "timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a node's value; one that its tag cannot hold is an error of the YAML.

        A tag that is written out, as in `!!int abc` or `!!bool maybe`, and a number of thousands of
        digits make PyYAML raise whatever Python raises.
        """
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            text = node.value if isinstance(node, yaml.ScalarNode) else "this"
            shown = text if len(text) <= 40 else f"{text[:40]}..."
            problem = f"{shown!r} is no {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    """Return a number written with an exponent or a point: 1e3 is an int, 1.0e3 a float."""
    value = float(node.value)
    return int(value) if value.is_integer() and "." not in node.value else value


_DIGITS = list("-+.0123456789")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), _DIGITS
)
_Loader.add_implicit_resolver(
    "tag:forescale/number",
    re.compile(r"^[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    _DIGITS,
)
_Loader.add_constructor("tag:forescale/number", _number)


def parse_value(text: str) -> Any:
    """Return the value of a `key=value` argument. Raises UserError where it is not valid YAML.

    A format of times such as %d/%m/%Y, and a comma or a bar alone, are texts without quotes, too,
    which a shell would take off.
    """
    if text in (",", "|") or text.startswith("%"):
        return text
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError):
        raise UserError(f"{text[:80]} is not a valid YAML value") from None


def parse(text: str, file: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Return the mapping of sections that `text` holds, and the line of each key in it.

    Raises UserError naming `file` and line.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            raise UserError(
                f"{file}:1: expected sections such as `model:` with keys below them; "
                "`forescale init` writes a configuration for a table"
            )
        lines: dict[KeyPath, int] = {}
        _collect_lines(node, (), lines, file)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{file}:{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file}: not valid YAML: {first_line(error)}") from None


def _collect_lines(
    node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int], file: str
) -> None:
    """Add the lines of all keys below `node`. Raises UserError for a key that stands twice."""
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag != "tag:yaml.org,2002:str":
            shown = getattr(key_node, "value", "this")
            raise UserError(f"{file}:{line}: {shown} is no key; keys are words")
        here = (*path, key_node.value)
        if here in lines:
            name = ".".join(here)
            raise UserError(f"{file}:{line}: {name} stands on line {lines[here]} too; keep one")
        lines[here] = line
        if isinstance(value_node, yaml.MappingNode):
            _collect_lines(value_node, here, lines, file)
