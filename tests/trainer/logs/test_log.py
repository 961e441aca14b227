"""What a run says is said once, by the rank that should say it, from a level on; warnings stay."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.errors import UserError
from tests import ranks
from tests.settings import QUICK, words_of
from trainer.logs.log import VARIABLE, chosen_level, log, shown


@pytest.fixture(autouse=True)
def _no_level_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def notebook() -> Iterator[list[str]]:
    """What the root logger's own handler shows, as in a notebook."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    yield said
    logging.getLogger().removeHandler(handler)


def speak() -> None:
    """Log a message of each level."""
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)("an %s", level)


@pytest.mark.parametrize(
    ("environment", "level"),
    [
        ({}, logging.INFO),
        ({VARIABLE: "debug"}, logging.DEBUG),
        ({VARIABLE: "WARNING"}, logging.WARNING),
        ({VARIABLE: "Error"}, logging.ERROR),
    ],
)
def test_the_environment_chooses_the_level(environment: dict[str, str], level: int) -> None:
    assert chosen_level(environment) == level


@pytest.mark.parametrize("word", ["", "loud", "20"])
def test_another_word_is_a_users_mistake(word: str) -> None:
    with pytest.raises(UserError) as caught:
        chosen_level({VARIABLE: word})
    expected = f"FORESCALE_LOG: expected one of debug, info, warning, error, got {word!r}"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("level", "said"),
    [
        (None, "an info\nan warning\nan error\n"),
        ("debug", "an debug\nan info\nan warning\nan error\n"),
        ("warning", "an warning\nan error\n"),
        ("error", "an error\n"),
    ],
)
def test_the_main_rank_shows_all_from_a_level_on(
    level: str | None,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if level is not None:
        monkeypatch.setenv(VARIABLE, level)
    with shown() as warnings:
        speak()
    assert capsys.readouterr().out == said
    assert warnings.messages == ["an warning", "an error"]  # also what is not shown


@pytest.mark.parametrize("level", ["debug", "info", "error"])
def test_other_ranks_show_errors_alone(
    level: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, level)
    with shown(is_main=False) as warnings:
        speak()
    assert capsys.readouterr().out == "an error\n"
    assert warnings.messages == ["an warning", "an error"]


def test_nothing_is_said_twice_and_afterwards_all_is_as_before(
    capsys: pytest.CaptureFixture[str], notebook: list[str]
) -> None:
    before = log.level, log.propagate, list(log.handlers)
    for _ in range(2):
        with shown():
            log.info("once")
            assert notebook == []
        assert capsys.readouterr().out == "once\n"
    assert (log.level, log.propagate, log.handlers) == before
    log.warning("outside")
    assert notebook == ["outside"] and capsys.readouterr().out == ""


def test_a_warning_that_repeats_is_kept_once() -> None:
    with shown() as warnings:
        for _ in range(3):
            log.warning("%s is slow", "rank 2")
        log.warning("rank 3 is slow")
    assert warnings.messages == ["rank 2 is slow", "rank 3 is slow"]


def test_a_run_records_its_warnings(tmp_path: Path) -> None:
    """Those before its first step, and those after it."""
    run, changes = tmp_path / "run", {**QUICK, "train.steps": 2, "train.warmup_steps": 5}
    said = ranks.run(words_of, 2, run, changes)
    warning = "train.warmup_steps=5 is longer than the run"
    assert said[0].count(warning) == 1 and said[1] == ""
    environment = json.loads((run / "environment.json").read_text())
    assert environment["warnings"] == [warning]
