"""Reads a configuration and says in one sentence what is wrong with it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from model.errors import UserError
from model.validation import mistake
from trainer.config import yaml_text
from trainer.config.settings import Settings


@dataclass(frozen=True)
class Configuration:
    """Checked settings, and where each key was set."""

    settings: Settings
    file: Path
    lines: dict[yaml_text.Path, int]
    overrides: frozenset[yaml_text.Path]

    @property
    def name(self) -> str:
        return self.file.stem

    def error(self, key: str, sentence: str) -> UserError:
        """The mistake `sentence` about the dotted `key`, with its place."""
        return UserError(f"{self._place(tuple(key.split('.')))}{key}: {sentence}")

    def locate(self, error: UserError) -> UserError:
        """`error` with its place, where its sentence begins with a key of this configuration."""
        key, _, sentence = str(error).partition(": ")
        return self.error(key, sentence) if key in _fields(Settings) else error

    def _place(self, path: yaml_text.Path) -> str:
        while path:
            if any(key[: len(path)] == path for key in self.overrides):
                return ""
            if path in self.lines:
                return f"{self.file}:{self.lines[path]}: "
            path = path[:-1]
        return f"{self.file}: "


def load(file: str | Path, overrides: Mapping[str, Any] | None = None) -> Configuration:
    """Read `file`, lay overrides by dotted key over it, check all that needs no other file.

    Raises UserError naming key, line, what was expected and the nearest valid name.
    """
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{file}: cannot read the configuration: {reason}") from None
    if not text.strip():
        raise UserError(f"{file}: the configuration is empty; configs/tiny.yaml is an example")
    content, lines = yaml_text.parse(text, str(file))
    overridden = frozenset(
        _lay_over(content, key, value) for key, value in (overrides or {}).items()
    )
    draft = Configuration(Settings(), file, lines, overridden)
    try:
        settings = Settings.model_validate(content)
    except ValidationError as error:
        raise _mistake(draft, error) from None
    return Configuration(settings, file, lines, overridden)


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`key=value` arguments of a command line, the values read as YAML."""
    overrides: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"{argument}: expected key=value, such as train.steps=100")
        try:
            overrides |= flat({key: yaml_text.parse_value(text)})
        except UserError as error:
            raise UserError(f"{argument}: {error}") from None
    return overrides


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _lay_over(content: dict[str, Any], key: str, value: Any) -> yaml_text.Path:
    path = tuple(key.split("."))
    section = content
    for part in path[:-1]:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise UserError(f"{key}: {part} is a value and has no keys below it")
    section[path[-1]] = value
    return path


def _mistake(draft: Configuration, error: ValidationError) -> UserError:
    path, sentence = mistake(error)
    return draft.error(".".join(path), sentence or f"unknown key{_suggestion(path)}")


def _suggestion(path: yaml_text.Path) -> str:
    """; did you mean ...? - among the keys of the section, then those of all sections."""
    known = _fields(Settings)
    if path[0] in known and len(path) > 1:
        siblings = [name.split(".")[1] for name in known if name.startswith(f"{path[0]}.")]
        elsewhere = [name for name in known if name.endswith(f".{path[-1]}")]
        near = difflib.get_close_matches(path[-1], siblings, 1)
        if near:
            return f"; did you mean {path[0]}.{near[0]}?"
        if elsewhere:
            return f"; did you mean {elsewhere[0]}?"
        return f"; {path[0]} has {', '.join(siblings)}"
    sections = list(Settings.model_fields)
    elsewhere = [name for name in known if name.endswith(f".{path[-1]}")]
    near = difflib.get_close_matches(path[0], sections, 1)
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; did you mean {near[0]}?" if near else f"; the sections are {', '.join(sections)}"


def _fields(settings: type[Settings]) -> list[str]:
    """All dotted keys: sections first, then section.key."""
    keys = list(settings.model_fields)
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += [f"{name}.{leaf}" for leaf in field.annotation.model_fields]
    return keys
