"""Reading a configuration, with one sentence about the first thing that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from model.errors import UserError
from model.sentences import nearest
from model.validation import mistake
from trainer.config import yaml_text
from trainer.config.settings import Settings
from trainer.config.yaml_text import KeyPath


@dataclass(frozen=True)
class Configuration:
    """Checked settings, and the place where each key was set."""

    settings: Settings
    file: Path
    lines: dict[KeyPath, int]
    """Line of each key that the file sets."""
    overrides: frozenset[KeyPath]
    """Keys that are set outside the file."""

    @property
    def name(self) -> str:
        """The configuration's name: its file's, without the suffix."""
        return self.file.stem

    def error(self, key: str, sentence: str) -> UserError:
        """Return the error of `sentence` about the dotted `key`, with the key's place."""
        return UserError(f"{self._place(tuple(key.split('.')))}{key}: {sentence}")

    def locate(self, error: UserError) -> UserError:
        """Return `error` with its place, where its sentence begins with a key."""
        key, _, sentence = str(error).partition(": ")
        return self.error(key, sentence) if key in _known_keys() else error

    def _place(self, path: KeyPath) -> str:
        """Return the file and line that set a key or its section; nothing for an override."""
        while path:
            if any(key[: len(path)] == path for key in self.overrides):
                return ""
            if path in self.lines:
                return f"{self.file}:{self.lines[path]}: "
            path = path[:-1]
        return f"{self.file}: "


def load(file: str | Path, overrides: Mapping[str, Any] | None = None) -> Configuration:
    """Read `file`, apply overrides by dotted key, and check all that needs no other file.

    Raises UserError naming key, line, what was expected and the nearest valid name.
    """
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"{file}: cannot read the configuration: {reason}{_way_out(file)}"
        ) from None
    if not text.strip():
        raise UserError(f"{file}: the configuration is empty; configs/tiny.yaml is an example")
    content, lines = yaml_text.parse(text, str(file))
    overridden = frozenset(_set(content, key, value) for key, value in (overrides or {}).items())
    draft = Configuration(Settings(), file, lines, overridden)
    try:
        settings = Settings.model_validate(content)
    except ValidationError as error:
        raise _mistake(draft, error) from None
    return Configuration(settings, file, lines, overridden)


def changed(settings: Settings, overrides: Mapping[str, Any]) -> Settings:
    """Return settings with overrides by dotted key. Raises UserError for one that is wrong."""
    content = settings.model_dump()
    keys = frozenset(_set(content, key, value) for key, value in overrides.items())
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise _mistake(Configuration(settings, Path(), {}, keys), error) from None


def _way_out(file: Path) -> str:
    """Return what the user may have meant by a path that is no configuration."""
    inside = file / "config.yaml"
    if inside.is_file():
        return f"; a run goes on by: forescale train {inside}"
    if not file.exists():
        return "; configs/tiny.yaml is an example, and `forescale init FILE.csv` writes one"
    return ""


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the `key=value` arguments of a command line by dotted key, the values read as YAML.

    Raises UserError for an argument of another form.
    """
    overrides: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"{argument}: expected key=value, such as train.steps=100")
        if not text.strip():
            raise UserError(f"{argument}: a value is missing; null is the word for none")
        try:
            overrides |= flat({key: yaml_text.parse_value(text)})
        except UserError as error:
            raise UserError(f"{argument}: {error}") from None
    return overrides


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _set(content: dict[str, Any], key: str, value: Any) -> KeyPath:
    """Set the dotted `key` in nested `content`, and return it split."""
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
    """Return pydantic's error as a sentence about a key, with the key's place."""
    path, sentence = mistake(error)
    return draft.error(".".join(path), sentence or f"unknown key{_suggestion(path)}")


def _suggestion(path: KeyPath) -> str:
    """Return the end of a sentence about an unknown key: the key meant, or the keys there are.

    A similar key of the same section is preferred to a key of the same name in another one.
    """
    known = _known_keys()
    elsewhere = next((name for name in known if name.endswith(f".{path[-1]}")), None)
    if path[0] in known and len(path) > 1:
        siblings = [name.split(".")[1] for name in known if name.startswith(f"{path[0]}.")]
        sibling = nearest(path[-1], siblings)
        meant = f"{path[0]}.{sibling}" if sibling else elsewhere
        otherwise = f"{path[0]} has {', '.join(siblings)}"
    else:
        meant = elsewhere or nearest(path[0], Settings.model_fields)
        otherwise = f"the sections are {', '.join(Settings.model_fields)}"
    return f"; did you mean {meant}?" if meant else f"; {otherwise}"


def _known_keys() -> list[str]:
    """Return all dotted keys: the sections, and section.key."""
    keys = list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += [f"{name}.{leaf}" for leaf in field.annotation.model_fields]
    return keys
