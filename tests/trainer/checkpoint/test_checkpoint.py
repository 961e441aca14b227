"""What is written is what is read, whoever wrote it; nothing in a file is run."""

from __future__ import annotations

import itertools
import math
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model.errors import UserError
from model.init import Shard
from tests import ranks
from tests.settings import train_rank
from trainer.checkpoint.manifest import verify
from trainer.checkpoint.partitions import Partition, chunks_of
from trainer.checkpoint.storage import read, tensor_shapes
from trainer.checkpoint.store import FORMAT, Checkpoint, Store
from trainer.config import load
from trainer.logs.metrics import read_metrics
from trainer.prepare import prepare


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4), (2, 1, 2, 3), (1, 5), (5, 1, 2)])
def test_boxes_cover_each_range_in_its_order(shape: tuple[int, ...]) -> None:
    count = math.prod(shape)
    whole = torch.arange(count).view(shape)
    for start, stop in itertools.combinations(range(count + 1), 2):
        parts = list(chunks_of(shape, start, stop))
        slices = [tuple(map(slice, o, map(sum, zip(o, s, strict=True)))) for o, s in parts]
        found = torch.cat([whole[region].flatten() for region in slices])
        assert found.tolist() == list(range(start, stop))
        assert len(parts) <= max(1, 2 * len(shape) - 1)


WHOLE = torch.Size([6, 12, 4])
DIVISIONS: dict[str, list[tuple[Shard, int, int]]] = {
    "whole": [(Shard.all_of(WHOLE), 0, 288)],
    "uneven ranges": [
        (Shard.all_of(WHOLE), 0, 101),
        (Shard.all_of(WHOLE), 101, 133),
        (Shard.all_of(WHOLE), 133, 288),
    ],
    "experts": [(Shard(WHOLE, 0, first, 2), 0, 96) for first in (0, 2, 4)],
    "width, two ranges each": [
        (Shard(WHOLE, 1, first, 6), start, stop)
        for first in (0, 6)
        for start, stop in ((0, 31), (31, 144))
    ],
    "last dimension": [(Shard(WHOLE, 2, first, 1), 0, 72) for first in range(4)],
}
"""Of each rank: which part it holds, and which range of that part's elements."""


def _save_division(rank: int, world: int, folder: Path, division: str) -> None:
    import torch.distributed as dist

    from trainer.checkpoint.storage import Storage

    dist.init_process_group("gloo")
    shard, start, stop = DIVISIONS[division][rank]
    whole = torch.arange(WHOLE.numel(), dtype=torch.float32).view(WHOLE)
    held = whole.narrow(shard.dim, shard.start, shard.size).flatten()[start:stop].clone()
    if rank == 0:
        folder.mkdir()
    dist.barrier()
    Storage().write(folder, {"x": Partition(shard, start, held)}, {"x": tuple(WHOLE)}, None)


def _load_division(rank: int, world: int, folder: Path, division: str) -> bool:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    shard, start, stop = DIVISIONS[division][rank]
    partition = Partition(shard, start, torch.zeros(stop - start))
    read(folder, {"x": partition})
    whole = torch.arange(WHOLE.numel(), dtype=torch.float32).view(WHOLE)
    expected = whole.narrow(shard.dim, shard.start, shard.size).flatten()[start:stop]
    return torch.equal(partition.data_1d, expected)


@pytest.mark.parametrize("saved", DIVISIONS)
def test_one_division_of_a_tensor_is_read_by_any_other(tmp_path: Path, saved: str) -> None:
    ranks.run(_save_division, len(DIVISIONS[saved]), tmp_path / "c", saved)
    for division, members in DIVISIONS.items():
        assert all(ranks.run(_load_division, len(members), tmp_path / "c", division)), division


RANGES = {
    "a hole": [(0, 100), (110, 288)],
    "an overlap": [(0, 100), (90, 288)],
    "twice": [(0, 288), (0, 288)],
    "a hole at the end": [(0, 100), (100, 280)],
}


def _save_ranges(rank: int, world: int, folder: Path, ranges: list[tuple[int, int]]) -> str:
    import torch.distributed as dist
    from torch.distributed.checkpoint.api import CheckpointException

    from trainer.checkpoint.storage import Storage

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
    from trainer.checkpoint.storage import Storage

    try:
        Storage().write(folder, {"x": torch.zeros(2)}, {"x": (2,), "y": (3,)}, None)
    except BaseException as error:
        return str(error)
    return "written"


def test_a_tensor_that_nobody_writes_is_noticed(tmp_path: Path) -> None:
    said = ranks.run(_save_other_names, 1, tmp_path / "c")
    assert "y is not written as a whole of (3,)" in said[0]


def _save_a_hole(rank: int, world: int, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    from trainer.checkpoint.storage import Writer

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


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    changes = {
        "train.steps": 4,
        "checkpoint.every": 1,
        "checkpoint.keep": 2,
        "data.rows": 800,
        "parallel.pipeline": 2,
    }
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
    assert list(store.damaged()) == [tmp_path / "step-00000008"]


def test_another_model_is_named(run_folder: Path) -> None:
    path = run_folder / "checkpoints" / "step-00000004"
    name = "weights/encoder.input_projection.bias"
    with pytest.raises(UserError) as caught:
        read(path, {name: torch.zeros(2), "weights/x": torch.zeros(2)}, alone=True)
    assert str(caught.value).endswith(
        f"is of another model: {name} is (32,) in it and (2,) here; weights/x (2,) is not in it"
    )


def test_a_future_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match=f"has format 99; this version reads {FORMAT}"):
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


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


FILES = ["checkpoint.json", ".metadata", "__0_0.distcp", "__1_0.distcp", "manifest"]


@pytest.mark.parametrize("harm", [_flip, _cut_short, Path.unlink, lambda file: file.write_text("")])
@pytest.mark.parametrize("name", FILES)
def test_harm_to_any_file_is_seen_and_the_one_before_is_used(
    tmp_path: Path, run_folder: Path, name: str, harm: Any
) -> None:
    folder = shutil.copytree(run_folder / "checkpoints", tmp_path / "checkpoints")
    store = Store(folder)
    assert sorted(f.name for f in (folder / "step-00000004").iterdir()) == sorted(FILES)
    newest = store.newest(contents=True)
    assert newest is not None and newest.step == 4
    harm(folder / "step-00000004" / name)
    assert verify(folder / "step-00000004") is not None
    before = store.newest(contents=True)
    assert before is not None and before.step == 3


def test_a_strange_file_is_nobodys_concern(tmp_path: Path, run_folder: Path) -> None:
    folder = shutil.copytree(run_folder / "checkpoints" / "step-00000004", tmp_path / "c")
    (folder / ".DS_Store").write_text("")
    assert verify(folder) is None


def test_a_copy_under_another_name_is_of_another_step(tmp_path: Path, run_folder: Path) -> None:
    folder = tmp_path / "step-00000099"
    shutil.copytree(run_folder / "checkpoints" / "step-00000004", folder)
    assert Checkpoint(folder).verify() == "it is of step 4"


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"a": 5}', '{"../x": [1, "y"]}'])
def test_a_manifest_of_something_else_is_damage(tmp_path: Path, text: str) -> None:
    from hashlib import sha256

    (tmp_path / "manifest").write_text(f"{sha256(text.encode()).hexdigest()}\n{text}")
    assert (verify(tmp_path) or "").startswith("manifest: the manifest ")


def test_a_file_that_cannot_be_read_is_damage(tmp_path: Path, run_folder: Path) -> None:
    folder = shutil.copytree(run_folder / "checkpoints" / "step-00000004", tmp_path / "c")
    (folder / "__0_0.distcp").unlink()
    (folder / "__0_0.distcp").symlink_to(tmp_path / "nowhere")
    assert verify(folder) == "__0_0.distcp: No such file or directory"


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *((name, _flip) for name in FILES),
        ("__1_0.distcp", _cut_short),
        (".metadata", Path.unlink),
        ("checkpoint.json", lambda file: file.write_text(file.read_text().replace("2", "9", 1))),
    ],
)
def test_a_run_goes_on_from_the_one_before_a_damaged_one(
    tmp_path: Path, run_folder: Path, name: str, harm: Any
) -> None:
    """The end is bit for bit what it was, on the same layout."""
    run = shutil.copytree(run_folder, tmp_path / "run")
    whole = read_metrics(run / "metrics.jsonl")
    (run / "done").unlink()
    harm(run / "checkpoints" / "step-00000004" / name)
    changes = {
        "train.steps": 4,
        "checkpoint.every": 1,
        "checkpoint.keep": 2,
        "data.rows": 800,
        "parallel.pipeline": 2,
    }
    ranks.run(train_rank, 2, run, changes)
    again = read_metrics(run / "metrics.jsonl")
    for ours, theirs in zip(again, whole, strict=True):
        assert (ours["step"], ours["loss"], ours["grad_norm"]) == (
            theirs["step"],
            theirs["loss"],
            theirs["grad_norm"],
        )
    assert verify(run / "checkpoints" / "step-00000004.damaged") is not None
    assert verify(run / "checkpoints" / "step-00000004") is None


def test_every_so_many_steps_one_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in range(1, 10):
        (tmp_path / f"step-{step:08d}").mkdir()
    store.retain(2, 3)
    assert [c.step for c in store.committed()] == [3, 6, 8, 9]


def test_with_no_whole_checkpoint_left_a_run_does_not_start_over(
    tmp_path: Path, run_folder: Path
) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run")
    (run / "done").unlink()
    for folder in (run / "checkpoints").glob("step-*"):
        (folder / "manifest").unlink()
    settings = load(run / "config.yaml")
    with pytest.raises(UserError, match="has no whole checkpoint left: step-"):
        prepare(settings, run_dir=run, world=2)
