"""What pydantic found wrong with a configuration or a file, in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model.errors import UserError
from model.sentences import nearest

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

MAX_SHOWN = 80
"""Most characters that are shown of a wrong value."""

TYPES = ("str", "int", "float", "bool")
"""Names of types that pydantic adds to the place of a value that may be of several."""

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list such as [a, b]",
    "dict_type": "keys below it",
    "model_type": "keys below it",
    "model_attributes_type": "keys below it",
}


def mistake(error: ValidationError) -> tuple[tuple[str, ...], str | None]:
    """Return the path of the first wrong setting and what is wrong with it.

    None for the latter: there is no such key.
    """
    first = _first(error)
    path = tuple(
        str(part)
        for part in first["loc"]
        if isinstance(part, str) and part.isidentifier() and part not in TYPES
    )
    kind, given = first["type"], first["input"]
    if kind in ("extra_forbidden", "invalid_key"):
        names = (str(part) for part in first["loc"])
        return tuple(name for name in names if name not in TYPES and "[" not in name), None
    if kind == "value_error":
        # Our own validators name the key of their section first: "nhead: 3 heads ...".
        leaf, _, sentence = str(first["ctx"]["error"]).partition(": ")
        return (*path, leaf), sentence
    if kind == "literal_error":
        expected = f"one of {first['ctx']['expected']}".replace("'", "")
        choices = expected.removeprefix("one of ").replace(" or ", ", ").split(", ")
        near = nearest(given, choices)
        expected += "" if near is None else f" (did you mean {near}?)"
    elif kind == "too_short":
        expected = f"at least {first['ctx']['min_length']} values"
    elif kind == "too_long":
        expected = f"at most {first['ctx']['max_length']} values"
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind]
    else:
        expected = first["msg"].removeprefix("Input should be ")
    hint = ""
    if isinstance(given, bool) and kind != "bool_type":
        hint = "; YAML reads a bare on, off, yes and no as true and false: quote it to mean text"
    shown = "nothing" if given is None else "keys" if isinstance(given, dict) else repr(given)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."
    return path, f"expected {expected}, got {shown}{hint}"


def _first(error: ValidationError) -> Any:
    """Return the first mistake; of a value that may be of several types, that of the nearest one.

    pydantic reports each type's. The one that got furthest into the value was meant.
    """
    errors = error.errors(include_url=False)
    loc = errors[0]["loc"]
    if not loc or loc[-1] not in TYPES:
        return errors[0]
    same = [one for one in errors if one["loc"][: len(loc) - 1] == loc[:-1]]
    return max(same, key=lambda one: len(one["loc"]))


def check_content(adapter: TypeAdapter[Any], content: object, where: str) -> None:
    """Raise UserError, beginning with `where`, if a file's content is not what `adapter` takes."""
    from pydantic import ValidationError

    try:
        adapter.validate_python(content)
    except ValidationError as error:
        keys, sentence = mistake(error)
        raise UserError(f"{where}: {'.'.join(keys)}: {sentence}") from None
