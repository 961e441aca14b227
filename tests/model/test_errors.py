"""The exceptions and their exit codes are those that model/errors.py draws as a tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from model import errors
from model.errors import AbsentError, LeaseLostError, RunFailedError, UserError


def descendants(kind: type[Exception]) -> list[type[Exception]]:
    """Return a class of exceptions and all that are derived from it here."""
    here = [one for one in kind.__subclasses__() if one.__module__ == errors.__name__]
    return [kind, *(below for one in here for below in descendants(one))]


OURS = [*descendants(UserError), *descendants(RunFailedError)]


def test_every_exception_is_drawn_with_its_exit_code() -> None:
    drawn = re.findall(r"^[ │├└─]+(\w+Error) +(\d) ", errors.__doc__ or "", re.MULTILINE)
    assert drawn == [(one.__name__, str(vars_of(one)["exit_code"])) for one in OURS]
    defined = [one for one in vars(errors).values() if isinstance(one, type)]
    assert set(OURS) == {one for one in defined if issubclass(one, Exception)}


def vars_of(kind: type[Exception]) -> dict[str, object]:
    """Return the attributes of a class, inherited ones too."""
    return {name: value for one in reversed(kind.__mro__) for name, value in vars(one).items()}


@pytest.mark.parametrize("kind", OURS)
def test_a_users_mistake_ends_with_2_and_a_failed_run_with_1(kind: type[Exception]) -> None:
    assert issubclass(kind, ValueError) != issubclass(kind, RuntimeError)
    assert vars_of(kind)["exit_code"] == (2 if issubclass(kind, UserError) else 1)


def test_absent_ranks_are_kept() -> None:
    error = AbsentError("ranks 2, 5 did not come", [2, 5])
    assert (str(error), error.ranks) == ("ranks 2, 5 did not come", [2, 5])


def test_a_lost_lease_says_whether_the_folder_is_there(tmp_path: Path) -> None:
    assert str(LeaseLostError(tmp_path)).startswith(f"{tmp_path} is this start's no longer")
    gone = tmp_path / "gone"
    assert str(LeaseLostError(gone)) == f"{gone} has been removed"
