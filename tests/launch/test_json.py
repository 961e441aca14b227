"""--json: one object on standard output, with everything that the text says, in full precision."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from tests import ranks
from tests.settings import train_rank
from trainer.checkpoint.manifest import read_manifest
from trainer.logs.metrics import read_metrics

SETTINGS = {"train.steps": 2, "data.rows": 800, "parallel.pipeline": 2}
PLAN = ["plan", "configs/tiny.yaml", "--world=2", "data.rows=800", "parallel.pipeline=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two steps that is done."""
    folder = tmp_path_factory.mktemp("json") / "run"
    ranks.run(train_rank, 2, folder, dict(SETTINGS))
    return folder


@pytest.fixture
def known(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs a command and returns the object that it prints."""

    def call(*arguments: str | Path) -> dict[str, Any]:
        main([*map(str, arguments), "--json"])
        said = capsys.readouterr()
        assert said.err == ""
        found: dict[str, Any] = json.loads(said.out)
        return found

    return call


def test_a_plan_is_one_object(known: Any) -> None:
    plan = known("plan", "configs/moe_large.yaml", "--world", "64")
    stages = plan.pop("stages")
    assert plan == {
        "configuration": "moe_large",
        "run_folder": "runs/moe_large",
        "is_done": False,
        "start": {"how": "new", "step": 0, "steps": 200_000, "weights": None},
        "layout": plan["layout"],
        "batch": plan["batch"],
        "precision": "bf16",
        "zero_stage": plan["zero_stage"],
        "activation_checkpointing": plan["activation_checkpointing"],
        "parameters": plan["parameters"],
        "ranks_per_node": 8,
        "groups": plan["groups"],
    }
    layout, batch = plan["layout"], plan["batch"]
    assert list(layout) == ["world", "pipeline", "data", "tensor", "expert"]
    assert layout["world"] == layout["pipeline"] * layout["data"] * layout["tensor"] == 64
    assert batch["global"] == batch["micro"] * batch["data"] * batch["accumulation"]
    assert batch["data"] == layout["data"]
    assert 31.0e9 < plan["parameters"]["total"] < 31.2e9
    assert 2.76e9 < plan["parameters"]["active"] < 2.78e9
    assert plan["groups"]["expert"] == {
        "size": layout["expert"],
        "groups": 64 // layout["expert"],
        "across_nodes": 0,
    }
    assert len(stages) == layout["pipeline"]
    assert sum(stage["parameters"] for stage in stages) == plan["parameters"]["total"]
    for stage in stages:
        sizes = stage["rank_bytes"]
        assert list(sizes) == ["weights", "gradients", "optimizer", "total", "host"]
        assert sizes["total"] == sizes["weights"] + sizes["gradients"] + sizes["optimizer"] > 0
        assert list(stage["rank_bytes_sent"]) == ["tensor", "expert", "pipeline", "data", "tied"]
        assert stage["rank_bytes_sent"]["expert"] > 0 and stage["flops"] > 0
        assert stage["layers"] and all(isinstance(name, str) for name in stage["layers"])
        held = stage["rank_parameters"]
        assert held["dense"] + held["experts"] < stage["parameters"]


def test_a_plan_counts_the_groups_that_reach_over_nodes(known: Any) -> None:
    arguments = ["plan", "configs/tiny.yaml", "parallel.tensor=4", "--world=8", "--node=2"]
    assert known(*arguments)["groups"] == {
        "tensor": {"size": 4, "groups": 2, "across_nodes": 2},
        "expert": {"size": 1, "groups": 8, "across_nodes": 0},
    }


def test_a_plan_says_where_the_run_begins(known: Any, run: Path, tmp_path: Path) -> None:
    done = known(*PLAN, f"--run-dir={run}", "train.steps=2")
    assert done["is_done"] and done["run_folder"] == str(run)
    assert done["start"] == {"how": "resume", "step": 2, "steps": 2, "weights": None}
    longer = known(*PLAN, f"--run-dir={run}", "train.steps=5")
    assert not longer["is_done"]
    assert longer["start"] == {"how": "resume", "step": 2, "steps": 5, "weights": None}
    other = known(*PLAN, f"--run-dir={tmp_path / 'new'}", f"model.init_from={run}")
    weights = str(run / "checkpoints" / "step-00000002")
    assert other["start"] == {"how": "weights", "step": 0, "steps": 10, "weights": weights}


def test_a_refusal_is_one_line_on_stderr(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for arguments, message in (
        ([*PLAN, "train.stepz=3"], "train.stepz: unknown key"),
        (["show", str(tmp_path)], "is neither a run folder nor a checkpoint nor an export"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--json"])
        said = capsys.readouterr()
        assert ended.value.code == 2 and said.out == ""
        assert message in said.err and said.err.count("\n") == 1


def test_with_explain_the_text_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    main(PLAN)
    text = capsys.readouterr().out
    main([*PLAN, "--json", "--explain"])
    said = capsys.readouterr()
    assert said.err == text and json.loads(said.out)["configuration"] == "tiny"


def test_a_run_is_one_object(known: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = known("show", run)
    rows = read_metrics(run / "metrics.jsonl")
    assert shown == {
        "kind": "run",
        "path": str(run),
        "state": "done",
        "step": 2,
        "steps": 2,
        "data": "vic_elec",
        "layout": {"world": 2, "pipeline": 2, "data": 1, "tensor": 1, "expert": 1},
        "versions": json.loads((run / "environment.json").read_text())["versions"],
        "last_step": rows[-1],
        "checkpoints": [
            {"path": f"{run}/checkpoints/step-00000002", "step": 2, "damage": None},
        ],
        "best": None,
        "verified": None,
        "quarantined": [],
        "evaluation": json.loads((run / "evaluation.json").read_text()),
    }
    main(["show", str(run)])
    said = capsys.readouterr().out
    assert re.search(r"^state +done, step 2 of 2 *$", said, re.MULTILINE)
    assert f"loss {rows[-1]['loss']:.4f}" in said


def test_what_was_verified_is_told(
    known: Any, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [size for size, _ in read_manifest(run / "checkpoints" / "step-00000002").values()]
    found = {"checkpoints": 1, "files": len(sizes), "bytes": sum(sizes)}
    assert known("show", "--verify", run)["verified"] == found
    main(["show", "--verify", str(run)])
    said = " ".join(capsys.readouterr().out.split())
    assert f"every byte of 1 checkpoint by its sum: {len(sizes)} files, " in said
    assert f" {sum(sizes) / 2**20:.1f} MiB" in said
    main(["show", "--verify", str(run / "checkpoints" / "step-00000002")])
    said = capsys.readouterr().out
    assert f"every byte of its {len(sizes)} files by its sum" in said


def test_a_checkpoint_and_an_export_are_one_object(
    known: Any, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run / "checkpoints" / "step-00000002"
    shown = known("show", checkpoint)
    parameters = known(*PLAN, f"--run-dir={run}", "train.steps=2")["parameters"]["total"]
    assert shown == {
        "kind": "checkpoint",
        "path": str(checkpoint),
        "step": 2,
        "samples": 32,
        "layout": {"world": 2, "pipeline": 2, "data": 1, "tensor": 1, "expert": 1},
        "parameters": parameters,
        "weights": shown["weights"],
        "tensors": shown["tensors"],
        "files": len(read_manifest(checkpoint)),
        "bytes": shown["bytes"],
        "contents_verified": False,
    }
    assert shown["tensors"] >= 3 * shown["weights"] > 0
    assert shown["bytes"] >= 3 * 4 * parameters
    assert known("show", "--verify", checkpoint)["contents_verified"]
    out = tmp_path / "export"
    main(["export", str(run), str(out)])
    said = capsys.readouterr()
    assert re.match(r"model\.safetensors: \d+ tensors, [\d.]+ MB\n$", said.out)
    exported = known("show", out)
    assert exported == {
        "kind": "export",
        "path": str(out),
        "step": 2,
        "architecture": "encoder_decoder",
        "context_length": exported["context_length"],
        "prediction_length": exported["prediction_length"],
        "channels": exported["channels"],
        "parameters": parameters,
        "weights": shown["weights"],
        "bytes": sum(file.stat().st_size for file in out.iterdir()),
    }
    assert exported["channels"] and exported["context_length"] > 0 < exported["prediction_length"]


def test_a_damaged_run_is_shown_before_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    ranks.run(train_rank, 1, folder, {"train.steps": 1, "data.rows": 800})
    [file] = (folder / "checkpoints" / "step-00000001").glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-1])
    said = {}
    for form in ("--json", "--verify"):
        with pytest.raises(SystemExit) as ended:
            main(["show", str(folder), form])
        assert ended.value.code == 2
        said[form] = capsys.readouterr()
        assert said[form].err == f"forescale: {folder}: damaged: step-00000001\n"
    [checkpoint] = json.loads(said["--json"].out)["checkpoints"]
    assert checkpoint["step"] == 1 and file.name in checkpoint["damage"]
    assert "step-00000001" in said["--verify"].out


@pytest.mark.parametrize("content", ["", "5", "[" * 100_000, '{"layout": 5, "scores": {"a": 1}}'])
def test_spoiled_files_are_mentioned_and_the_rest_is_shown(
    run: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    for name in ("environment.json", "evaluation.json"):
        (copy / name).write_text(content)
    (copy / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "loss": "low"}\n')
    main(["show", str(copy)])
    said = capsys.readouterr().out
    assert re.search(r"^state +done, step 1 of 2 *$", said, re.MULTILINE)
    assert "loss none, grad norm none, none tokens/s" in said
    assert "checkpoints" in said and "steps 2" in said
    for name in ("environment.json", "evaluation.json"):
        assert f"{copy / name} cannot be read: " in said
    main(["show", "--json", str(copy)])
    shown = json.loads(capsys.readouterr().out)
    assert shown["evaluation"] is None and shown["layout"] is None
