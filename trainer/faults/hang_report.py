"""The report about a hang: where each rank is, and which ranks wait for which, in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from model.sentences import ranges
from parallel.flight_recorder import Started


@dataclass
class Report:
    """The state of a rank in a hang, as it reports it to the others."""

    step: int
    stage: int
    layer: str
    """The transformer layer that it was in last; empty before the first."""
    words: str
    """The state of its main thread in words."""
    awaited: list[int]
    """Ranks of the collective that it waits in."""
    host: str
    loading: str = ""
    """What it does before its first step, in words; empty afterwards."""
    unfinished: str = ""
    """The collective in words that its device waits in while its main thread is elsewhere."""
    group: str = ""
    number: int = 0
    """That collective's group, and its number within it."""
    started: Started = field(default_factory=dict)
    """The last collectives that it has started, of each group."""

    def where(self) -> str:
        """Return step, stage and layer in words."""
        if self.loading:
            return f"before the first step, {self.loading}, stage {self.stage}"
        return f"step {self.step}, stage {self.stage}, layer {self.layer or 'none yet'}"


def in_words(world: int, reports: dict[int, Report]) -> Iterable[str]:
    """Yield sentences about which ranks wait for which, ranks of one sentence together."""
    ranks_of: dict[str, list[int]] = {}
    for rank, report in sorted(reports.items()):
        ranks_of.setdefault(_sentence(rank, report, reports), []).append(rank)
    silent = sorted(set(range(world)) - set(reports))
    if silent:
        ranks_of["does not answer: stopped, dead or cut off"] = silent
    for sentence, ranks in ranks_of.items():
        host = f" ({reports[ranks[0]].host})" if ranks[0] in reports else ""
        yield f"rank {ranges(ranks)}{host}: {sentence}"


def _sentence(rank: int, report: Report, reports: dict[int, Report]) -> str:
    """Return a sentence about where a rank is, and for which ranks it waits."""
    if not report.awaited:
        return f"{report.words}; {report.where()}"
    others = [other for other in report.awaited if other != rank]
    missing = [r for r in others if r not in reports or not _is_there(reports[r], report)]
    waits = f"waits for rank {ranges(missing)}" if missing else "all of its ranks are there"
    among = f" of rank {ranges(sorted(report.awaited))}" if len(report.awaited) > 1 else ""
    if not report.unfinished:
        return f"{report.words}{among}, {waits}; {report.where()}"
    for other in others:
        instead = _instead(reports[other], report) if other in reports else None
        if instead is not None:
            waits = f"rank {other} has started {instead} in its place"
    return f"{report.words}, unfinished: {report.unfinished}{among}, {waits}; {report.where()}"


def _is_there(other: Report, report: Report) -> bool:
    """Return whether the other rank is in the same collective, or has at least started it."""
    if report.unfinished and report.number:
        return any(int(n) >= report.number for n in other.started.get(report.group, {}))
    words = report.unfinished or report.words
    is_same = words in (other.words, other.unfinished)
    return set(other.awaited) == set(report.awaited) and is_same


def _instead(other: Report, report: Report) -> str | None:
    """Return the collective that the other rank has started in place of this one's, if it has."""
    theirs = other.started.get(report.group, {}).get(str(report.number))
    if theirs is None or theirs.split()[0] == report.unfinished.split()[0]:
        return None
    return theirs
