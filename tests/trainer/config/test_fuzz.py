"""Whatever a configuration holds, it is trained or refused in one sentence: never a traceback."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from launch.plan import Explanation, explain_plan, print_text, to_json
from model.errors import UserError
from model.init import initialise
from model.network import TimeSeriesTransformer
from tests.settings import TINY
from tests.trainer.config.fuzz import changes
from trainer.config import load
from trainer.data import Split
from trainer.prepare import prepare

SEED = 20260713
LARGE = 3_000_000
"""Parameters from which on a network is not built here."""


def written(changed: dict[str, Any], file: Path) -> Path:
    """Write configs/tiny.yaml with changes to a file."""
    content = yaml.safe_load(TINY.read_text())
    for key, value in changed.items():
        section = content
        *above, leaf = key.split(".")
        for name in above:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                break
        else:
            section[leaf] = copy.deepcopy(value)
    file.write_text(yaml.safe_dump(content, allow_unicode=True))
    return file


def shortened(value: object) -> str:
    return str(value) if len(str(value)) < 40 else f"{str(value)[:40]}..."


def plan_it(random: Random, tmp_path: Path) -> Explanation:
    """Plan a random configuration, given as a file or as overrides, for a random number of ranks.

    Raises UserError where it is refused.
    """
    changed = {"data.rows": 800, "train.micro_batch_size": 2, **changes(random)}
    world = random.choice([1, 1, 2, 4, 8])
    print(world, "ranks,", {key: shortened(value) for key, value in changed.items()})
    if random.random() < 0.5:
        configuration = load(written(changed, tmp_path / "my.yaml"))
    else:
        configuration = load(TINY, changed)
    plan = prepare(configuration, run_dir=tmp_path / "run", world=world)
    return explain_plan(plan, node=8)


def use_it(known: Explanation) -> None:
    """Show the plan, and make a step of its network, if that is small."""
    to_json(known)
    print_text(known, Console(file=io.StringIO(), width=110))
    settings, dataset = known.plan.configuration.settings, known.plan.dataset
    if known.parameters > LARGE:
        return
    torch.manual_seed(0)
    with torch.device("meta"):
        network = TimeSeriesTransformer(settings.model, dataset.shape)
    network.to_empty(device="cpu")
    initialise(network, settings.train.seed)
    batch = dataset.batch(Split.TRAIN, dataset.draw(settings.train.seed, 0, 2))
    context, covariates, target = map(
        torch.from_numpy, (batch.context, batch.covariates, batch.target)
    )
    raw = network(network.inputs(context, covariates, target))
    network.loss(raw, (target, context)).backward()
    assert network.forecast(raw, context).shape == target.shape


def try_many(count: int, seed: int, tmp_path: Path) -> int:
    """Try random configurations; return how many were accepted."""
    random, accepted = Random(seed), 0
    for number in range(count):
        print(f"seed {seed}, trial {number}: ", end="")
        try:
            known = plan_it(random, tmp_path)
        except UserError as error:
            sentence = " ".join(str(error).split())  # as the command line prints it
            assert 0 < len(sentence) < 1000, sentence
            print("refused:", sentence)
            continue
        try:
            use_it(known)
        except UserError as error:  # which kernels there are is known with the first tensors
            assert str(error).startswith("strict_attention: "), error
        accepted += 1
    assert not (tmp_path / "run").exists()
    print(f"{accepted} of {count} accepted")
    return accepted


def test_random_configurations_are_trained_or_refused(tmp_path: Path) -> None:
    assert 0 < try_many(15, SEED, tmp_path) < 15


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_hundreds_of_random_configurations_are_trained_or_refused(
    seed: int, tmp_path: Path
) -> None:
    assert 0 < try_many(40, SEED + 1 + seed, tmp_path) < 40
