"""The devices that local ranks are started with."""

from __future__ import annotations

import pytest

from launch.local_ranks import _devices


@pytest.mark.parametrize(
    ("visible", "ranks", "expected"),
    [
        (None, 3, ["0", "1", "2"]),
        ("", 2, ["0", "1"]),
        ("2,3", 2, ["2", "3"]),
        ("2, 3,5", 2, ["2", "3"]),
        ("2", 3, ["2", "-1", "-1"]),  # they share it
        ("GPU-8932f937,GPU-1", 2, ["GPU-8932f937", "GPU-1"]),
    ],
)
def test_ranks_take_the_devices_that_are_named(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, ranks: int, expected: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _devices(ranks) == expected
