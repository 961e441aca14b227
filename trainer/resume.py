"""What a run starts from: the checkpoint that it goes on from, verified by all ranks together."""

from __future__ import annotations

from model.errors import UserError
from parallel.groups import Place, barrier, join_records
from trainer.checkpoint.manifest import damage
from trainer.checkpoint.store import Checkpoint
from trainer.prepare import Plan
from trainer.progress import say


def whole_checkpoint(plan: Plan, place: Place) -> Checkpoint | None:
    """The one to go on from, every byte of it verified by one rank or another. A damaged one is
    put aside for the one before it, unless it was asked for by its name."""
    checkpoint = plan.resume_from
    while checkpoint is not None:
        wrong = damage(checkpoint.path, part=place.rank, parts=place.layout.world)
        found = join_records(place, {str(place.rank): wrong} if wrong else {})
        if not found:
            return checkpoint
        sentence = f"{checkpoint.path} is damaged: {next(iter(found.values()))}"
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
