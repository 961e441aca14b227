"""The words of a hang's report, for which no rank has to hang."""

from __future__ import annotations

import pytest

from trainer.faults.hang_report import Report, in_words


def test_words_for_a_pipeline_that_waits_in_a_row() -> None:
    def report(words: str, awaited: list[int], stage: int) -> Report:
        return Report(7, stage, f"encoder.layers.{stage}", words, awaited, "n1")

    told = list(
        in_words(
            4,
            {
                0: report("recv from rank 1 of 64 elements", [1], 0),
                1: report("all_reduce of 8 elements", [1, 2], 1),
                2: report("is in read, dataset.py:10", [], 2),
            },
        )
    )
    assert told == [
        "rank 0 (n1): recv from rank 1 of 64 elements, waits for rank 1; step 7, stage 0, layer "
        "encoder.layers.0",
        "rank 1 (n1): all_reduce of 8 elements of rank 1-2, waits for rank 2; step 7, stage 1, "
        "layer encoder.layers.1",
        "rank 2 (n1): is in read, dataset.py:10; step 7, stage 2, layer encoder.layers.2",
        "rank 3: does not answer: stopped, dead or cut off",
    ]


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({}, "waits for rank 1-2"),
        ({"4": "all_reduce of 8 elements"}, "waits for rank 1-2"),
        ({"5": "all_reduce of 8 elements"}, "all of its ranks are there"),
        ({"9": "barrier of 1 elements"}, "all of its ranks are there"),
        (
            {"5": "all_to_all of 3 elements"},
            "rank 2 has started all_to_all of 3 elements in its place",
        ),
    ],
)
def test_words_for_devices_by_what_each_rank_has_started(
    others: dict[str, str], words: str
) -> None:
    def report(started: dict[str, str]) -> Report:
        return Report(7, 0, "layers.0", "is in item, engine.py:9", [], "n", started={"2": started})

    mine = report({"5": "all_reduce of 8 elements"})
    mine.unfinished, mine.group, mine.number = "all_reduce of 8 elements", "2", 5
    mine.awaited = [0, 1, 2]
    first, *_ = in_words(3, {0: mine, 1: report(others), 2: report(others)})
    assert first == (
        "rank 0 (n): is in item, engine.py:9, unfinished: all_reduce of 8 elements of rank 0-2, "
        f"{words}; step 7, stage 0, layer layers.0"
    )
