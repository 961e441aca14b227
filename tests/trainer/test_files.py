"""A path that cannot be looked up is a mistake of the user's, wherever it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.errors import UserError
from tests.settings import planned, tiny
from trainer.files import check_reachable
from trainer.prepare import prepare
from trainer.weights.source import find

LONG = "x" * 300
REFUSAL = r"cannot look up 'x{80}\.\.\.': File name too long; choose another path$"


@pytest.mark.parametrize("path", ["nothing", "nothing/at/all", "pyproject.toml/x", ".", "é"])
def test_a_path_where_nothing_is_can_be_looked_up(path: str) -> None:
    check_reachable(Path(path))


def test_what_is_no_path_cannot() -> None:
    with pytest.raises(UserError, match=r"cannot look up '\\x00': it is no path"):
        check_reachable(Path("\0"))


def test_a_closed_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", closed)
    with pytest.raises(UserError, match=r"^data\.source: cannot look up 'a/b': Permission denied"):
        check_reachable(Path("a/b"), "data.source: ")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("data.source", {"data.source": LONG}),
        ("model.init_from", {"model.init_from": LONG}),
        ("--resume", {"resume": LONG}),
    ],
)
def test_a_name_that_is_too_long_is_refused(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^{name}: {REFUSAL}"):
        planned(tmp_path / "run", {"data.rows": 800, **changes})


def test_so_is_that_of_a_run_folder_or_of_weights() -> None:
    with pytest.raises(UserError, match=f"^--run-dir: {REFUSAL}"):
        prepare(tiny(), run_dir=Path(LONG))
    with pytest.raises(UserError, match=f"^{REFUSAL}"):
        find(Path(LONG))
