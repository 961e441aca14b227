"""What is wrong with a source: refused, or left out and counted, as the user chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.errors import UserError
from model.sentences import shortened

Policy = Literal["refuse", "skip"]


@dataclass
class _Kind:
    """Problems of one kind."""

    sentence: str
    count: int
    example: str


class Problems:
    """Counts what is wrong with a source, by kind, with an example of each.

    With the policy `refuse` the first problem that would cost data ends the reading; with `skip`
    it costs these data, and is told.
    """

    def __init__(self, policy: Policy = "refuse") -> None:
        self.policy = policy
        self._kinds: dict[str, _Kind] = {}

    def lose(
        self, kind: str, example: str, *, mend: str, count: int = 1, is_wrong: bool = True
    ) -> None:
        """Report something that costs data: `kind` says what is done, such as `rows left out`.

        Raises UserError under the policy `refuse`; `mend` is the way out. The policy `skip` is
        another one only where the data are wrong, and not just not understood.
        """
        if self.policy == "refuse":
            skip = ", or leave it out with data.on_error=skip" if is_wrong else ""
            raise UserError(f"{example}; {mend}{skip}")
        self.note(kind, example, count)

    def note(self, kind: str, example: str, count: int = 1) -> None:
        """Report something that the user should know, and that costs no data."""
        known = self._kinds.get(kind)
        if known is None:
            self._kinds[kind] = _Kind(kind, count, example)
        else:
            known.count += count

    def say(self, sentence: str) -> None:
        """Report what was assumed about a source, as it stands."""
        self._kinds.setdefault(sentence, _Kind(sentence, 1, ""))

    def sentences(self) -> tuple[str, ...]:
        """Return a line for each kind."""
        return tuple(map(_in_words, self._kinds.values()))


def costs_data(sentence: str) -> bool:
    """Return whether a line of `Problems.sentences` is about data that were there and are lost."""
    return any(words in sentence for words in ("left out", "read as missing"))


def _in_words(kind: _Kind) -> str:
    if not kind.example:
        return kind.sentence
    count = f"{kind.count:,}, the first: " if kind.count > 1 else ""
    return f"{kind.sentence}: {count}{kind.example}"


def no_target(source: str, left_out: dict[str, str]) -> UserError:
    """Return the error for a table of whose columns none can be forecast: column -> why not."""
    rest = shortened([f"{name} ({why})" for name, why in left_out.items()])
    some = [name for name, why in left_out.items() if why != "is empty"]
    some.sort(key=lambda name: left_out[name] == "text")
    way_out = f"; name it, as in 'data.targets=[{some[0]}]'" if some else ""
    if some and left_out[some[0]] == "text":
        way_out += ", to be told which of its cells is no number"
    return UserError(
        f"data.targets: {source} has no column of numbers to forecast without being named; it has "
        f"{rest or 'no other column'}{way_out}"
    )
