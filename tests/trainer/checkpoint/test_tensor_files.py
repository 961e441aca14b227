"""Every element of a state is written once and read once; nothing in a file is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from model.errors import UserError
from model.init import Shard
from model.network import TimeSeriesTransformer
from tests import ranks
from trainer.checkpoint.partitions import Partition
from trainer.checkpoint.tensor_files import Storage, Writer, read, tensor_shapes
from trainer.config import load
from trainer.data import Dataset

WHOLE = torch.Size([6, 12, 4])

RANGES = {
    "a hole": [(0, 100), (110, 288)],
    "an overlap": [(0, 100), (90, 288)],
    "twice": [(0, 288), (0, 288)],
    "a hole at the end": [(0, 100), (100, 280)],
}
"""What of a tensor each of two ranks writes."""


def _save_ranges(rank: int, world: int, folder: Path, ranges: list[tuple[int, int]]) -> str:
    """Write this rank's range of a tensor; return what becomes of it."""
    dist.init_process_group("gloo")
    start, stop = ranges[rank]
    partition = Partition(Shard.all_of(WHOLE), start, torch.ones(stop - start))
    try:
        Storage().write(folder, {"x": partition}, {"x": tuple(WHOLE)}, None)
    except CheckpointException as error:
        return str(error)
    return "written"


@pytest.mark.parametrize("what", RANGES)
def test_every_element_is_written_once(tmp_path: Path, what: str) -> None:
    said = ranks.run(_save_ranges, 2, tmp_path / "c", RANGES[what])
    if what == "twice":  # the same box of two ranks is written by one of them
        assert said == ["written", "written"]
        x = torch.zeros(WHOLE)
        read(tmp_path / "c", {"x": x}, alone=True)
        assert bool((x == 1).all())
    else:
        assert all("x" in text and "written" not in text[:7] for text in said)
        assert not (tmp_path / "c" / ".metadata").exists()


def _save_other_names(rank: int, world: int, folder: Path) -> str:
    try:
        Storage().write(folder, {"x": torch.zeros(2)}, {"x": (2,), "y": (3,)}, None)
    except BaseException as error:
        return str(error)
    return "written"


def test_a_tensor_that_nobody_writes_is_noticed(tmp_path: Path) -> None:
    said = ranks.run(_save_other_names, 1, tmp_path / "c")
    assert "y is not written as a whole of (3,)" in said[0]


def _save_a_hole(rank: int, world: int, folder: Path) -> None:
    shard = Partition(Shard.all_of(WHOLE), 0, torch.ones(200))
    save({"x": shard}, storage_writer=Writer(folder))


def test_every_element_that_is_read_must_have_been_written(tmp_path: Path) -> None:
    """torch itself would leave what is missing as it was."""
    ranks.run(_save_a_hole, 1, tmp_path / "c")
    with pytest.raises(BaseException, match="x: 200 of 288 were written"):
        read(tmp_path / "c", {"x": torch.zeros(WHOLE)}, alone=True)
    half = Partition(Shard.all_of(WHOLE), 50, torch.zeros(100))
    read(tmp_path / "c", {"x": half}, alone=True)
    assert bool((half.data_1d == 1).all())


def test_names_are_global_whatever_the_stage(run_folder: Path) -> None:
    settings = load(run_folder / "config.yaml").settings
    network = TimeSeriesTransformer(settings.model, Dataset(settings.data).shape)
    expected = {
        f"{kind}/{name}": tuple(parameter.shape)
        for name, parameter in network.named_parameters()
        for kind in ("weights", "exp_avg", "exp_avg_sq")
    }
    assert tensor_shapes(run_folder / "checkpoints" / "step-00000004") == expected


def test_another_model_is_named(run_folder: Path) -> None:
    path = run_folder / "checkpoints" / "step-00000004"
    name = "weights/encoder.input_projection.bias"
    with pytest.raises(UserError) as caught:
        read(path, {name: torch.zeros(2), "weights/x": torch.zeros(2)}, alone=True)
    assert str(caught.value).endswith(
        f"is of another model: {name} is (32,) in it and (2,) here; weights/x (2,) is not in it"
    )


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
