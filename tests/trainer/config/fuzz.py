"""Random configurations: some right, some odd, some wrong."""

from __future__ import annotations

from random import Random
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from trainer.config.deepspeed_section import PASSED_TO_DEEPSPEED, DeepSpeedSection, ZeroOptimization
from trainer.config.settings import Settings

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 1000, 10**9, 10**12, 10**15, 10**400, -(10**30)),
    *(0.0, 0.3, -0.5, 1.5, 1e-300, 1e300, float("inf"), float("nan")),
    *("", "x", "off", "none", "auto", "1", "1e3", "Zürich", "a\nb", "\0", "../x", "x" * 300),
    *([], [1], ["a"], [0.5, 0.5, 0.0], [0.8, 0.1, 0.1], [1e300, 0, 1], [[1]], [None], [10**18]),
    *({}, {"a": 1}, {1: 2}, {"enabled": "maybe"}, {"": None}, {"a": {"b": {"c": []}}}),
)
"""Values of every kind, most of them wrong for most keys."""


def known_keys() -> dict[str, Any]:
    """Return the dotted keys of all sections, of `deepspeed` too, and their types."""
    known = {}
    for section, field in Settings.model_fields.items():
        below = field.annotation.model_fields if _is_section(field.annotation) else {}
        known |= {f"{section}.{name}": leaf.annotation for name, leaf in below.items()}
    for name in PASSED_TO_DEEPSPEED:
        zero, _, leaf = name.rpartition(".")
        fields = (ZeroOptimization if zero else DeepSpeedSection).model_fields
        known[f"deepspeed.{name}"] = fields[leaf].annotation
    return known


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


LIKELY: dict[type, tuple[Any, ...]] = {
    bool: (True, False),
    int: (1, 2, 4, 8, 12, 16, 32, 64),
    float: (0.0, 0.1, 0.5, 1.0, 2.0),
    str: ("vic_elec", "Demand", "Holiday", "UTC", "hour", "none"),
}
"""Types -> values that a key of it may have."""

EXTREME: dict[type, tuple[Any, ...]] = {
    bool: (True, False),
    int: (0, 1, 3, 7, 97, 1000, 10**6, 10**9, 10**12, 10**15),
    float: (0.0, 1e-300, 1e-30, 1e-9, 0.999999, 1e9, 1e30, 1e300),
    str: tuple(value for value in ODD if isinstance(value, str)),
}
"""Types -> values of it at the edges."""


def drawn(annotation: Any, values: dict[type, tuple[Any, ...]], random: Random) -> Any:
    """Return a value of a key's type, made of `values`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return random.choice(inner)
    if origin in (Union, UnionType):
        return drawn(random.choice(inner), values, random)
    if origin is Annotated:
        return drawn(inner[0], values, random)
    if origin is list:
        return [drawn(inner[0], values, random) for _ in range(random.randint(1, 3))]
    if _is_section(annotation):
        name = random.choice(list(annotation.model_fields))
        return {name: drawn(annotation.model_fields[name].annotation, values, random)}
    return random.choice(values.get(annotation, (None,)))


def changes(random: Random) -> dict[str, Any]:
    """Return some keys and what they are set to: likely values, and perhaps one of another kind."""
    keys = known_keys()
    some = random.sample(sorted(keys), random.randint(1, 4))
    changed = {key: drawn(keys[key], LIKELY, random) for key in some}
    other = random.choice(["likely", "extreme", "odd"])
    if other == "extreme":
        changed[some[0]] = drawn(keys[some[0]], EXTREME, random)
    elif other == "odd":
        changed[some[0]] = random.choice(ODD)
    return changed
