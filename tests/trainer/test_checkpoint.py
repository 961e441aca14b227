"""What is written is what is read, whoever wrote it; nothing in a file is run."""

from __future__ import annotations

import itertools
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from model.errors import UserError
from model.init import Part
from tests import ranks
from tests.settings import train_rank
from trainer.checkpoint.fragments import Fragment, boxes
from trainer.checkpoint.storage import read, tensor_shapes
from trainer.checkpoint.store import Checkpoint, Store


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4), (2, 1, 2, 3), (1, 5), (5, 1, 2)])
def test_boxes_cover_each_range_in_its_order(shape: tuple[int, ...]) -> None:
    count = math.prod(shape)
    whole = torch.arange(count).view(shape)
    for start, stop in itertools.combinations(range(count + 1), 2):
        parts = list(boxes(shape, start, stop))
        slices = [tuple(map(slice, o, map(sum, zip(o, s, strict=True)))) for o, s in parts]
        found = torch.cat([whole[part].flatten() for part in slices])
        assert found.tolist() == list(range(start, stop))
        assert len(parts) <= max(1, 2 * len(shape) - 1)


WHOLE = torch.Size([6, 12, 4])
DIVISIONS: dict[str, list[tuple[Part, int, int]]] = {
    "whole": [(Part.all_of(WHOLE), 0, 288)],
    "uneven ranges": [(Part.all_of(WHOLE), 0, 101), (Part.all_of(WHOLE), 101, 133),
                      (Part.all_of(WHOLE), 133, 288)],
    "experts": [(Part(WHOLE, 0, first, 2), 0, 96) for first in (0, 2, 4)],
    "width, two ranges each": [
        (Part(WHOLE, 1, first, 6), start, stop)
        for first in (0, 6) for start, stop in ((0, 31), (31, 144))
    ],
    "last dimension": [(Part(WHOLE, 2, first, 1), 0, 72) for first in range(4)],
}  # fmt: skip
"""Of each rank: which part it holds, and which range of that part's elements."""


def _save_division(rank: int, world: int, folder: Path, division: str) -> None:
    import torch.distributed as dist

    from trainer.checkpoint.storage import write

    dist.init_process_group("gloo")
    part, start, stop = DIVISIONS[division][rank]
    whole = torch.arange(WHOLE.numel(), dtype=torch.float32).view(WHOLE)
    held = whole.narrow(part.dim, part.start, part.size).flatten()[start:stop].clone()
    if rank == 0:
        folder.mkdir()
    dist.barrier()
    write(folder, {"x": Fragment(part, start, held)})


def _load_division(rank: int, world: int, folder: Path, division: str) -> bool:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    part, start, stop = DIVISIONS[division][rank]
    fragment = Fragment(part, start, torch.zeros(stop - start))
    read(folder, {"x": fragment})
    whole = torch.arange(WHOLE.numel(), dtype=torch.float32).view(WHOLE)
    expected = whole.narrow(part.dim, part.start, part.size).flatten()[start:stop]
    return torch.equal(fragment.data_1d, expected)


@pytest.mark.parametrize("saved", DIVISIONS)
def test_one_division_of_a_tensor_is_read_by_any_other(tmp_path: Path, saved: str) -> None:
    ranks.run(_save_division, len(DIVISIONS[saved]), tmp_path / "c", saved)
    for division, members in DIVISIONS.items():
        assert all(ranks.run(_load_division, len(members), tmp_path / "c", division)), division


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    changes = {"train.steps": 4, "checkpoint.every": 1, "checkpoint.keep": 2, "data.rows": 800,
               "parallel.pipeline": 2}  # fmt: skip
    ranks.run(train_rank, 2, folder, changes)
    return folder


def test_names_are_global_whatever_the_stage(run_folder: Path) -> None:
    from model.network import TimeSeriesTransformer
    from trainer.config import load
    from trainer.data import Dataset

    settings = load(run_folder / "config.yaml").settings
    network = TimeSeriesTransformer(settings.model, Dataset(settings.data).shape)
    expected = {
        f"{kind}/{name}": tuple(parameter.shape)
        for name, parameter in network.named_parameters()
        for kind in ("weights", "exp_avg", "exp_avg_sq")
    }
    assert tensor_shapes(run_folder / "checkpoints" / "step-00000004") == expected


def test_the_newest_are_kept_and_latest_names_the_last(run_folder: Path) -> None:
    store = Store(run_folder / "checkpoints")
    assert [checkpoint.step for checkpoint in store.committed()] == [3, 4]
    assert (store.folder / "latest").read_text() == "step-00000004"
    assert not list(store.folder.glob(".*"))


def test_what_is_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / ".step-00000009.partial").mkdir()
    (tmp_path / ".step-00000009.partial" / "checkpoint.json").write_text("{}")
    (tmp_path / "step-00000008").mkdir()
    assert store.newest() is None


def test_another_model_is_named(run_folder: Path) -> None:
    path = run_folder / "checkpoints" / "step-00000004"
    with pytest.raises(UserError, match=r"is of another model: weights/x, .* is not in it"):
        read(path, {"weights/x": torch.zeros(2)}, alone=True)
    name = "weights/encoder.input_projection.bias"
    with pytest.raises(UserError, match=r"here of shape \(2,\), has shape \(32,\) in it"):
        read(path, {name: torch.zeros(2)}, alone=True)


def test_a_future_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="has format 99; this version reads 1"):
        Checkpoint(tmp_path).description()


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_bomb_is_not_run(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    with pytest.raises(UserError, match=r"it names .*\.mkdir, which no checkpoint holds"):
        tensor_shapes(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_no_path_of_the_machine_is_stored(run_folder: Path) -> None:
    for file in (run_folder / "checkpoints" / "step-00000004").iterdir():
        assert str(run_folder).encode() not in file.read_bytes(), file.name
