"""A network or batch that no machine could hold is refused with the key that makes it large."""

from __future__ import annotations

import re
from typing import Any

import pytest

from model.errors import UserError
from model.network_config import SeriesShape
from parallel.layout import Layout
from tests.settings import TINY, tiny
from trainer.config import load
from trainer.config.load import parse_overrides
from trainer.config.sizes import check_sizes

SHAPE = SeriesShape(96, 32, 2, 3)


def check(world: int = 1, **changes: Any) -> None:
    check_sizes(tiny(**changes), Layout(1, world), SHAPE)


def test_a_network_that_no_machine_holds_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        check(model__position="learned", model__max_seq_len=10**12)
    assert str(caught.value) == (
        "model.max_seq_len: the network would have 6.4e+13 parameters; with gradients and "
        "optimizer one rank would hold at least 1.16e+03 TiB, more than any machine has; use a "
        "smaller one"
    )


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("d_model", {"d_model": 10**8}),
        ("d_model", {"d_model": 10**15}),
        ("dim_feedforward", {"dim_feedforward": 10**12}),
        ("num_experts", {"num_experts": 10**9}),
        ("freq_modes", {"att_type": "frequency", "freq_modes": 10**12}),
        ("num_layers", {"d_model": 8_000, "num_layers": 10_000, "num_decoder_layers": 1}),
        ("num_decoder_layers", {"d_model": 8_000, "num_decoder_layers": 10_000}),
    ],
)
def test_the_key_that_makes_it_large_is_named(key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"model\.{key}: the network would have"):
        check(**{f"model__{name}": value for name, value in changes.items()})


def test_more_ranks_hold_more() -> None:
    changes = {"model__position": "learned", "model__max_seq_len": 10**11}
    with pytest.raises(UserError, match="each of 2 ranks"):
        check(2, **changes)
    check(64, **changes)


def test_a_micro_batch_that_no_machine_holds_is_refused() -> None:
    with pytest.raises(UserError, match=r"^train\.micro_batch_size: 1000000000000 windows take"):
        check(train__micro_batch_size=10**12, train__global_batch_size=10**12)
    check(train__global_batch_size=10**12)  # accumulated


def test_a_function_cannot_be_kept_in_a_runs_folder() -> None:
    with pytest.raises(UserError, match=r"model\.use_adaptive_ln: a run keeps its settings"):
        check(model__use_adaptive_ln=lambda width: None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.d_model=1e308", "less than or equal to 1000000000000000, got 1000000000000000010"),
        ("model.d_model=1e16", "less than or equal to 1000000000000000, got 10000000000000000"),
        ("train.warmup_steps=1e300", "less than or equal to 1000000000000000, got 1000000000000"),
        ("model.num_layers=10001", "less than or equal to 10000, got 10001"),
        ("model.num_decoder_layers=1e6", "less than or equal to 10000, got 1000000"),
        ("faults.hang_seconds=1e10", "less than or equal to 1000000000, got 10000000000"),
    ],
)
def test_a_number_beyond_all_use_is_refused(override: str, message: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=re.escape(f"{key}: expected {message}")) as caught:
        load(TINY, parse_overrides([override]))
    assert len(str(caught.value)) < 200
