"""--quiet, --verbose and FORESCALE_LOG: how much of the log is shown."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from launch.cli import main
from tests import ranks
from tests.settings import train_rank
from trainer.logs.log import VARIABLE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with two checkpoints."""
    folder = tmp_path_factory.mktemp("log") / "run"
    ranks.run(train_rank, 1, folder, {"train.steps": 2, "checkpoint.every": 1, "data.rows": 800})
    return folder


@pytest.fixture(autouse=True)
def _variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the variable after each test: commands set it."""
    monkeypatch.setenv(VARIABLE, "info")


@pytest.mark.parametrize(
    ("options", "level"),
    [([], "info"), (["-q"], "warning"), (["--quiet"], "warning"), (["--verbose"], "debug")],
)
@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "{run}"],
        ["show", "{run}"],
        ["plan", "configs/tiny.yaml", "--world=1"],
        ["export", "{run}", "{out}"],
        ["train", "configs/tiny.yaml", "train.steps=2", "data.rows=800", "--run-dir={run}"],
    ],
    ids=lambda command: command[0],
)
def test_an_option_counts_more_than_the_variable(
    command: list[str], options: list[str], level: str, run: Path, tmp_path: Path
) -> None:
    arguments = [word.format(run=run, out=tmp_path / "out") for word in command]
    try:
        main([*arguments, *options])
    except SystemExit as ended:
        assert ended.code == 0
    assert os.environ[VARIABLE] == level


def test_the_log_is_shown_from_the_chosen_level_on(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = iter(str(tmp_path / f"out{number}") for number in range(9))
    for options, is_shown in (([], True), (["-v"], True), (["-q"], False)):
        monkeypatch.setenv(VARIABLE, "info")
        main(["export", str(run), next(out), *options])
        assert ("model.safetensors: " in capsys.readouterr().out) == is_shown
    monkeypatch.setenv(VARIABLE, "error")
    main(["export", str(run), next(out)])
    assert capsys.readouterr().out == ""


def test_the_log_of_an_evaluation_keeps_out_of_its_json(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log says that the newest checkpoint is damaged."""
    copy = shutil.copytree(run, tmp_path / "run")
    [file] = (copy / "checkpoints" / "step-00000002").glob("*.distcp")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    main(["evaluate", str(copy)])
    said = capsys.readouterr()
    assert "step-00000001 is used\n" in said.out and "test windows" in said.out
    assert said.err == ""
    main(["evaluate", str(copy), "--json"])
    said = capsys.readouterr()
    assert "step-00000001 is used\n" in said.err and json.loads(said.out)["step"] == 1


@pytest.mark.parametrize(
    "command",
    [
        ["train", "configs/tiny.yaml", "--run-dir={out}"],
        ["train", "configs/tiny.yaml", "--ranks=2", "--run-dir={out}"],
        ["evaluate", "{run}"],
        ["export", "{run}", "{out}"],
        ["plan", "configs/tiny.yaml", "--world=1", "--json"],
        ["show", "{run}"],
    ],
)
def test_a_level_that_is_none_is_refused(
    command: list[str],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "loud")
    with pytest.raises(SystemExit) as ended:
        main([word.format(run=run, out=tmp_path / "out") for word in command])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err == (
        "forescale: FORESCALE_LOG: expected one of debug, info, warning, error, got 'loud'\n"
    )
    assert not (tmp_path / "out").exists()


def test_an_option_mends_a_wrong_variable(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "loud")
    main(["show", str(run), "-q"])
    assert "done, step 2 of 2" in capsys.readouterr().out
