"""What a run starts from: its own newest checkpoint, another's weights, or the first ones.

Every byte that is read is verified before, by one rank or another.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.errors import UserError
from parallel.groups import Place, barrier, join_records
from trainer.checkpoint.manifest import damage
from trainer.checkpoint.store import Checkpoint
from trainer.engine import Engine
from trainer.prepare import Plan
from trainer.progress import say
from trainer.source import Source


def whole_checkpoint(plan: Plan, place: Place) -> Checkpoint | None:
    """The one to go on from. A damaged one is put aside for the one before it, unless it was
    asked for by its name."""
    checkpoint = plan.resume_from
    while checkpoint is not None:
        found = _together(place, damage(checkpoint.path, part=place.rank, parts=place.layout.world))
        if found is None:
            return checkpoint
        sentence = f"{checkpoint.path} is damaged: {found}"
        if not plan.may_fall_back:
            raise UserError(f"--resume: {sentence}; choose another one")
        if place.is_main:
            aside = plan.run.store.put_aside(checkpoint.path)
            say(f"{sentence}; it is now {aside.name}, and the one before it is used")
        barrier()
        checkpoint = plan.run.store.newest()
        if checkpoint is None:
            raise UserError(f"{sentence}, and there is no whole one before it")
    return None


def _together(place: Place, wrong: str | None) -> str | None:
    """What any rank has found wrong, on all of them."""
    found = join_records(place, {str(place.rank): wrong} if wrong else {})
    return next(iter(found.values()), None)


@dataclass(frozen=True)
class TakenOver:
    """What a new run has of another's weights."""

    source: str
    step: int
    taken: list[str]
    anew: dict[str, str]
    """Drawn anew: its name, and why."""
    left: list[str]
    """The source's that are nowhere here."""

    def sentence(self) -> str:
        parts = [f"model.init_from: {len(self.taken)} tensors taken over from {self.source}"]
        parts += [f"drawn anew: {_some([f'{n} ({why})' for n, why in self.anew.items()])}"
                  if self.anew else "none drawn anew"]  # fmt: skip
        parts += [f"left behind: {_some(self.left)}"] if self.left else []
        return "; ".join(parts)


def take_over(engine: Engine, source: Source, place: Place) -> TakenOver:
    """Fill the weights and buffers whose names and shapes are the source's.

    Raises UserError where none is, or where the source is damaged.
    """
    wrong = _together(place, source.damage(place.rank, place.layout.world))
    if wrong is not None:
        raise UserError(f"model.init_from: {source.path} is damaged: {wrong}")
    kinds = ("weights/", "buffers/")
    theirs = {name: s for name, s in source.shapes().items() if name.startswith(kinds)}
    ours = {name: s for name, s in engine.shapes.items() if name.startswith(kinds)}
    taken = [name for name, shape in ours.items() if theirs.get(name) == shape]
    if not taken:
        raise UserError(
            f"model.init_from: nothing in {source.path} has the name and shape of anything here"
        )
    state = engine.begin_load(0)
    source.read({name: state[name] for name in taken if name in state})
    engine.end_load()
    anew = {
        bare(name): f"{theirs[name]} there, {shape} here" if name in theirs else "not there"
        for name, shape in ours.items()
        if name not in taken
    }
    names = {bare(name) for name in ours}
    left = sorted({bare(name) for name in theirs} - names)
    return TakenOver(str(source.path), source.step, [bare(n) for n in taken], anew, left)


MOST_NAMED = 8


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return ", ".join(texts[:MOST_NAMED]) + more


def bare(name: str) -> str:
    """Without its kind."""
    return name.partition("/")[2]
