"""Random trials of whole runs, for nights and for doubts:

    .venv/bin/python -m tests.random_trials pairs --count 100 --seed 1
    .venv/bin/python -m tests.random_trials stops --count 100 --seed 1
    .venv/bin/python -m tests.random_trials damage --count 300 --seed 1

`pairs` trains a random network on a random layout and holds it to plain torch: within 1e-5, or
where roundings of first weights and the order of samples change plain torch by more, within four
times that. `stops` kills a random rank at a random step or phase of a save, resumes, on the same
layout or another, and holds the whole to the run without a stop. `damage` harms a random file of a
checkpoint, which must be noticed, and the checkpoint before it be the newest intact one. Trial
number n of a seed is the same whatever the count. Exit code 1 where one finds something, with the
settings that repeat it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from model.errors import UserError
from tests import ranks
from tests.layouts.test_parity import SETTINGS, TOLERANCE, distances, plainly, roundings
from tests.settings import TINY, told, train_rank
from trainer.checkpoint.manifest import verify
from trainer.checkpoint.saver import Phase
from trainer.checkpoint.store import Store
from trainer.config import load
from trainer.prepare import prepare

MODEL: dict[str, list[Any]] = {
    "architecture": ["encoder", "decoder", "encoder_decoder"],
    "att_type": ["standard", "xformer", "flash", "frequency"],
    "norm_strategy": ["pre_norm", "post_norm"],
    "use_adaptive_ln": ["layer", "rms", "adaptive"],
    "use_swiglu": [True, False],
    "use_moe": [True, True, False],
    "num_experts": [2, 4, 6, 8],
    "top_k": [1, 2],
    "router_score": ["softmax", "sigmoid"],
    "capacity_factor": [None, None, 0.8, 1.25],
    "shared_expert": [False, True],
    "balance_rate": [0.0, 0.05],
    "z_loss": [0.0, 0.01],
    "share_layers": [False, False, True],
    "position": ["sinusoidal", "learned", "rotary"],
    "num_kv_heads": [None, 1, 2],
    "qk_norm": [False, True],
    "num_layers": [1, 2, 3],
    "channels": ["independent", "grouped", "mixed"],
    "variates_every": [2, 3],
    "channel_embedding": [False, True],
    "loss": ["mse", "mae", "huber", "quantile", "student_t"],
    "patch_length": [8, 16, 32],
    "instance_norm": [True, True, False],
    "arcsinh": [False, False, True],
    "loss_units": [None, "window", "season", "data"],
    "head": ["flatten", "token"],
    "output_patch_length": [None, 8, 32],
    "periods": [0, 0, 2],
    "patch_projection": ["linear", "residual"],
    "loss_positions": ["future", "all"],
    "quantile_order": ["cumulative", "sorted"],
    "use_final_norm": [True, False],
    "lora_rank": [0, 0, 0, 4],
}
DATA: dict[str, list[Any]] = {
    "data.targets": [["Demand", "Temperature"], ["Demand", "Temperature"], ["Demand"]],
    "data.past_covariates": [[], ["Temperature"]],
}
LAYOUT: dict[str, list[Any]] = {
    "parallel.pipeline": [1, 1, 2, 4],
    "parallel.tensor": [1, 1, 2, 4],
    "parallel.expert": [1, 1, 2, 4],
    "parallel.zero_stage": [1, 1, 2, 3],
    "parallel.activation_checkpointing": ["none", "block", "selective"],
    "parallel.offload_optimizer": ["none", "none", "cpu"],
    "train.micro_batch_size": [1, 2, 4, 8],
}
Drawn = tuple[int, dict[str, Any]]
"""Number of ranks, and settings."""


def drawn(choose: random.Random, fixed: dict[str, Any], model: dict[str, Any] | None) -> Drawn:
    """Return settings that are allowed; `model` is given, or drawn too."""
    while True:
        own = {f"model.{key}": choose.choice(values) for key, values in MODEL.items()}
        own |= {key: choose.choice(values) for key, values in DATA.items()}
        layout = {key: choose.choice(values) for key, values in LAYOUT.items()}
        world = choose.choice([1, 2, 2, 4, 4])
        settings = {**fixed, **(own if model is None else model), **layout}
        try:
            prepare(load(TINY, settings), run_dir=Path("/nonexistent/run"), world=world)
        except UserError:
            continue
        return world, settings


ROUNDINGS = 4.0
"""Times what roundings of the first weights change in plain torch that a layout may differ by."""

SEEDS = 16
"""Roundings that are tried: few of them turn the sign of an error that is nearly zero."""


def pair(choose: random.Random, folder: Path) -> tuple[Drawn, str | None]:
    """Return what was drawn, and what is wrong with it."""
    world, settings = drawn(choose, SETTINGS, None)
    rows = ranks.run(train_rank, world, folder / "run", settings)[0]
    changes = {key: value for key, value in settings.items() if SETTINGS.get(key) != value}
    far = {
        quantity: difference
        for quantity, difference in distances(rows, folder / "run", plainly(changes)).items()
        if not difference < TOLERANCE
    }
    if far:  # more than plain torch from itself?
        itself = roundings(changes, SEEDS)
        far = {name: one for name, one in far.items() if not one < ROUNDINGS * itself[name]}
    return (world, settings), f"differs from plain torch by {far}" if far else None


STOPPED: dict[str, Any] = {
    **SETTINGS,
    "train.steps": 8,
    "data.split": [0.9, 0.1, 0.0],
    "checkpoint.every": 2,
    "checkpoint.keep": 3,
    "model.dropout": 0.1,
    "train.ema_decay": 0.5,
}


def _killed(
    rank: int, world: int, run: Path, settings: dict[str, Any], victim: int, step: int, phase: str
) -> None:
    """Train; `victim` is killed before `step`, or in the `phase` of the save that follows it."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def on_step(number: int) -> None:
        if rank == victim and not phase and number == step:
            die()

    def on_phase(current: Phase | None, saving: int) -> None:
        if rank == victim and current is not None and current.name == phase and saving >= step:
            die()

    train_rank(rank, world, run, settings, on_step=on_step, on_phase=on_phase)


def stop(choose: random.Random, folder: Path) -> tuple[Drawn, str | None]:
    """Return what was drawn, and what is wrong with it."""
    world, settings = drawn(choose, STOPPED, None)
    victim, step = choose.randrange(world), choose.randint(1, 8)
    phase = choose.choice(["", *(phase.name for phase in Phase)])
    straight = ranks.run(train_rank, world, folder / "straight", settings)[0]
    with contextlib.suppress(ranks.RanksFailedError):
        ranks.run(_killed, world, folder / "run", settings, victim, step, phase)
    (folder / "run" / "done").unlink(missing_ok=True)
    again, moved = world, settings
    if choose.random() < 0.5:
        model = {key: value for key, value in settings.items() if key.startswith("model.")}
        again, moved = drawn(choose, STOPPED, {**model, "model.dropout": 0.1})
    what = {**moved, "victim": victim, "step": step, "phase": phase, "before": world}
    rows = ranks.run(train_rank, again, folder / "run", moved)[0]
    if [row["step"] for row in rows] != list(range(1, 9)):
        return (again, what), f"steps are {[row['step'] for row in rows]}"
    if (again, moved) == (world, settings) and told(rows) != told(straight):
        return (again, what), "the same layout ended differently"
    if [row["samples"] for row in rows] != [row["samples"] for row in straight]:
        return (again, what), "other samples were seen"
    wrong = [c.path.name for c in Store(folder / "run/checkpoints").committed() if verify(c.path)]
    return (again, what), f"{wrong} are not whole" if wrong else None


def harm(choose: random.Random, file: Path) -> str:
    """Harm a file in one way or another; return which."""
    content = bytearray(file.read_bytes())
    place = choose.randrange(len(content))
    way = choose.choice(["flip", "cut", "grow", "zero", "delete", "move", "empty"])
    if way == "flip":
        content[place] ^= 1 << choose.randrange(8)
    elif way == "cut":
        del content[place:]
    elif way == "grow":
        content += choose.randbytes(1 + choose.randrange(100))
    elif way == "zero":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    elif way == "empty":
        content.clear()
    if bytes(content) == file.read_bytes() and way not in ("delete", "move"):
        content.append(0)
    file.write_bytes(bytes(content))
    if way == "delete":
        file.unlink()
    elif way == "move":
        file.rename(file.with_name(file.name + ".old"))
    return f"{way} {file.name} at {place}"


def damage(choose: random.Random, folder: Path) -> tuple[Drawn, str | None]:
    """Return what was done, and what is wrong with it; one run serves all trials of a folder."""
    source = folder.parent / "damaged-source"
    if not source.exists():
        ranks.run(train_rank, 2, source, {**STOPPED, "parallel.pipeline": 2})
    shutil.copytree(source / "checkpoints", folder / "run/checkpoints")
    store = Store(folder / "run/checkpoints")
    newest = store.newest(contents=True)
    assert newest is not None
    files = sorted(file for file in newest.path.iterdir())
    done = {"harm": harm(choose, choose.choice(files))}
    found = store.newest(contents=True)
    if verify(newest.path) is None:
        return (2, done), "it was not noticed"
    if found is None or found.step != newest.step - 2:
        return (2, done), f"{found} would be used"
    return (2, done), None


KINDS = {"pairs": pair, "stops": stop, "damage": damage}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    print(f"{given.kind}, seed {given.seed}", flush=True)
    found: Counter[str] = Counter()
    with TemporaryDirectory(prefix="trials-") as name:
        for number in range(given.first, given.first + given.count):
            folder = Path(name) / f"trial-{number}"
            folder.mkdir()
            choose = random.Random(f"{given.kind}/{given.seed}/{number}")
            try:
                (world, settings), wrong = KINDS[given.kind](choose, folder)
            except (ranks.RanksFailedError, UserError) as error:
                (world, settings), wrong = (0, {}), str(error)
            shutil.rmtree(folder)
            found["wrong" if wrong else "right"] += 1
            if wrong:
                print(f"{number}: {wrong}\n  {world} ranks, {json.dumps(settings)}", flush=True)
            elif number % 10 == 9:
                print(f"{number + 1 - given.first} of {given.count}", flush=True)
    print(f"{found['right']} right, {found['wrong']} wrong")
    sys.exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
