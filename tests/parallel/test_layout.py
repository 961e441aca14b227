"""The grid of ranks."""

from __future__ import annotations

import itertools

import pytest

from parallel.layout import Coordinates, Layout

LAYOUTS = [
    Layout.of(p * d * t, pipeline=p, tensor=t, expert=e)
    for p, d, t, e in itertools.product((1, 2, 3), (1, 2, 4), (1, 2), (1, 2, 4, 8))
    if (d * t) % e == 0
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_rank_has_one_place_and_is_once_in_each_kind_of_group(layout: Layout) -> None:
    places = [layout.coordinates(rank) for rank in range(layout.world)]
    assert len({(at.pipeline, at.data, at.tensor) for at in places}) == layout.world
    for groups, size in (
        (layout.tensor_groups(), layout.tensor),
        (layout.data_groups(), layout.data),
        (layout.expert_groups(), layout.expert),
        (layout.stage_groups(), layout.stage),
        (layout.replica_groups(), layout.pipeline * layout.tensor),
    ):
        assert sorted(itertools.chain(*groups)) == list(range(layout.world))
        assert {len(group) for group in groups} == {size}
    for group in layout.tensor_groups():
        assert {(places[r].pipeline, places[r].data) for r in group} == {
            (places[group[0]].pipeline, places[group[0]].data)
        }
    for group in layout.data_groups():
        assert len({(places[r].pipeline, places[r].tensor) for r in group}) == 1
    for group in layout.expert_groups():
        assert [places[r].expert for r in group] == list(range(layout.expert))
        assert len({places[r].pipeline for r in group}) == 1


def test_tensor_ranks_are_neighbours_and_stages_lie_apart() -> None:
    layout = Layout.of(16, pipeline=2, tensor=4, expert=8)
    assert layout.tensor_groups()[0] == [0, 1, 2, 3]
    assert layout.coordinates(13) == Coordinates(pipeline=1, data=1, tensor=1, expert=5)


@pytest.mark.parametrize(
    ("world", "axes"),
    [
        (8, {"pipeline": 3, "tensor": 2}),
        (6, {"pipeline": 1, "expert": 4}),
    ],
)
def test_axes_that_do_not_divide_are_no_layout(world: int, axes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="does not divide"):
        Layout.of(world, **axes)
