"""`forescale evaluate` and `forescale export`: what is told, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch.cli import main
from tests import ranks
from tests.launch.test_cli import OWN_DATA, refused
from tests.settings import train_rank


def test_what_is_found_in_other_series_is_told_when_they_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Series left out, cells that are no numbers, a code for missing, missing rows."""
    times = pd.date_range("2024-01-01", periods=300, freq="h")
    table = pd.DataFrame({"time": times, "load": np.sin(np.arange(300.0))})
    table.to_csv(tmp_path / "good.csv", index=False)
    own = {"data.source": str(tmp_path / "good.csv"), "data.split": [0.6, 0.2, 0.2]}
    lengths = {"data.context_length": 32, "data.prediction_length": 8}
    data = {option.split("=")[0]: None for option in OWN_DATA if option.endswith("null")}
    ranks.run(
        train_rank,
        1,
        tmp_path / "run",
        {**data, "data.covariates": [], "data.calendar": [], "data.timezone": None}
        | {**lengths, **own, "train.steps": 1, "train.warmup_steps": 1},
    )
    capsys.readouterr()
    late = times.to_series(index=range(300))
    late[200:] += pd.Timedelta(minutes=7)
    changed = {
        "rows": (table.drop(index=[50, 51]), "2 of 300 points"),
        "code": (table.assign(load=table["load"].where(table.index % 9 > 0, -999)), "code for"),
        "text": (table.astype({"load": object}).replace({"load": {0.0: "broken"}}), "no numbers"),
        "left": (
            pd.concat([table.assign(id="a"), table.assign(id="b", time=late)]),
            "without a regular interval, left out",
        ),
    }
    for name, (frame, words) in changed.items():
        file = tmp_path / f"{name}.csv"
        frame.to_csv(file, index=False)
        options = [f"data.source={file}", "data.on_error=skip"]
        options += ["data.id_column=id"] if name == "left" else []
        main(["evaluate", str(tmp_path / "run"), *options, "--json"])
        said = capsys.readouterr()
        notes = json.loads(said.out)["notes"]
        assert any(words in note for note in notes), (name, notes)
        assert words in said.err
    main(["evaluate", str(tmp_path / "run"), "--json"])
    assert json.loads(capsys.readouterr().out)["notes"] == []
    said = refused(["evaluate", str(tmp_path / "run"), "--split", "held_out"], capsys)
    assert "no series is held out, as data.held_out is 0; set a larger share" in said


@pytest.mark.parametrize("command", [["train", "--dry-run"], ["plan", "--world", "1"]])
def test_weights_that_do_not_fit_are_refused_with_the_settings_that_do(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = {"train.steps": 1, "train.warmup_steps": 1, "data.split": [0.8, 0.1, 0.1]}
    ranks.run(train_rank, 1, tmp_path / "run", quick)
    capsys.readouterr()
    new = [f"model.init_from={tmp_path / 'run'}", "--run-dir", str(tmp_path / "new")]
    said = refused(
        [
            command[0],
            "configs/tiny.yaml",
            *command[1:],
            *new,
            "model.d_model=64",
            "model.nhead=8",
            "model.patch_length=8",
        ],
        capsys,
    )
    assert "has the name and shape of anything here; set what it was trained with: " in said
    assert "model.d_model=32 model.nhead=4" in said
    main([command[0], "configs/tiny.yaml", *command[1:], *new])


@pytest.mark.parametrize("name", ["out.onxx", "out.pt", "out.safetensors"])
def test_a_slip_in_a_graphs_name_makes_no_folder(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(["export", str(tmp_path), str(tmp_path / name)], capsys)
    assert f"{name}: a file ends with .onnx or .pt2; name one of these, or a folder" in said
    assert not (tmp_path / name).exists()
