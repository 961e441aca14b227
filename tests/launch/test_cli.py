"""The command line: a user's mistake is one line on stderr, exit code 2, and leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from launch import other_words
from launch.cli import forescale, main
from tests.conftest import ROOT

TRAIN = ["train", "configs/tiny.yaml"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that is printed for a mistake."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


@pytest.fixture
def series(tmp_path: Path) -> dict[str, Path]:
    """Return broken files by name."""
    hours = (
        pd.date_range("2024-01-01", periods=400, freq="h").astype(str).to_series(index=range(400))
    )
    good = pd.DataFrame({"date": hours, "load": [n % 24 * 1.5 for n in range(400)]})
    tables = {
        "text": good.assign(load=good["load"].astype(str).where(good.index != 5, "five")),
        "repeated": pd.concat([good[:200], good[199:].assign(load=good["load"] + 1)]),
        "columns": good[["date"]],
        "short": good[:100],
    }
    files = {}
    for name, table in tables.items():
        files[name] = tmp_path / f"{name}.csv"
        table.to_csv(files[name], index=False)
    files["empty"] = tmp_path / "empty.csv"
    files["empty"].touch()
    files["missing"] = tmp_path / "missing.csv"
    return files


OWN_DATA = ["data.targets=null", "data.covariates=[]", "data.rows=null", "data.calendar=[]"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stepz=3"], "train.stepz: unknown key; did you mean train.steps?"),
        (["train.steps=soon"], "train.steps: expected a whole number, got 'soon'"),
        (["data.source={missing}", *OWN_DATA], "data.source: there is no file"),
        (["data.source={empty}", *OWN_DATA], "is empty"),
        (["data.source={columns}", *OWN_DATA], "has no column of numbers to forecast"),
        (["data.source={text}", *OWN_DATA], "column load, row 6 has 'five', which is not a number"),
        (["data.source={repeated}", *OWN_DATA], "rows 200 and 201 are both of 2024-01-09 07:00:00"),
        (["data.source={short}", *OWN_DATA], "no series is long enough"),
        (["train.micro_batch_size=3"], "train.global_batch_size: 16 = micro_batch_size 3 x"),
        (["model.nhead=5"], "model.nhead: 5 heads do not divide d_model=32"),
        (
            ["parallel.pipeline=5", "--ranks", "5"],
            "parallel.pipeline: 5 stages are more than the 4 transformer layers",
        ),
        (["parallel.pipeline=2"], "parallel.pipeline: 1 rank cannot form 2 pipeline stages"),
        (["--run-dir", "/proc/run"], "--run-dir: cannot write in /proc"),
        (["--ranks", "0"], "Invalid value for '--ranks'"),
        (["--ranks", "two"], "Invalid value for '--ranks': 'two' is not a valid whole number."),
        (["--rank", "2"], "No such option"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    overrides: list[str],
    message: str,
    series: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "runs" / "it"
    arguments = [
        text.format(**series) if text.startswith("data.source") else text for text in overrides
    ]
    if "--run-dir" not in arguments:
        arguments += ["--run-dir", str(run)]
    assert message in refused([*TRAIN, *arguments], capsys)
    assert not run.parent.exists()


def test_a_mistake_in_a_file_names_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("data:\n  source: nowhere.csv\n")
    assert refused(["train", str(file)], capsys) == (
        f"forescale: {file}:2: data.source: there is no file nowhere.csv in {Path.cwd()}, where "
        "the command runs; name its whole path\n"
    )


@pytest.mark.parametrize("command", ["evaluate", "show"])
def test_a_folder_that_is_no_run_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused([command, str(tmp_path)], capsys)
    assert "is no run folder" in said or "is neither a run folder nor a checkpoint" in said


@pytest.mark.parametrize("arguments", [[], ["--local_rank=0"], ["--help"]])
def test_without_a_command_the_commands_are_listed(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments)
    said = capsys.readouterr()
    assert said.err == "" and said.out.startswith("Usage: ")
    for name, command in forescale.commands.items():
        assert any(line.split()[:1] == [name] for line in said.out.splitlines()), name
        assert command.get_short_help_str(limit=200) and not command.hidden


@pytest.mark.parametrize(
    ("word", "way"),
    [
        ("fit", "that is `forescale train`"),
        ("test", "that is `forescale evaluate`"),
        ("Score", "that is `forescale evaluate`"),
        ("info", "that is `forescale show`"),
        ("validate", "`evaluate RUN --split validation` scores a run"),
        ("help", "`forescale --help` lists the commands"),
    ],
)
def test_words_of_other_tools_lead_to_the_command(
    word: str, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"No such command '{word}': {way}" in refused([word, "runs/x"], capsys)


def test_every_word_of_other_tools_has_a_way(capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in other_words.COMMANDS.items():
        for word in words:
            assert word not in forescale.commands
            way = other_words.meant(word, forescale.commands)
            assert way == f"that is `forescale {command}`" or command not in forescale.commands
            assert way is not None
    assert "Forecaster.load(RUN)" in refused(["predict", "runs/x"], capsys) or (
        "forecast" in forescale.commands
    )
    assert "No such command 'sing'" in refused(["sing"], capsys)


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_ranks_beside_a_launcher_are_refused(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(["train", "configs/tiny.yaml", "--ranks", "2", *flags])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "forescale: --ranks: a launcher has started the ranks already; leave it out\n"
    )


def test_a_dry_run_says_what_would_be_done_and_writes_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--run-dir", str(tmp_path / "runs" / "it"), "--dry-run"]
    settings = ["data.rows=800", "parallel.pipeline=2", "train.warmup_steps=11", "--ranks=2"]
    main([*TRAIN, *settings, *where])
    said = " ".join(capsys.readouterr().out.split())
    assert "on 2 ranks: pipeline 2 x data 1" in said and "it starts anew" in said
    assert "train.warmup_steps=11 is longer than the run" in said
    assert "dry run: no run was written, and no rank was started" in said
    assert list(tmp_path.iterdir()) == []
    assert "the last step, 10, cannot be" in refused([*TRAIN, *where, "--profile", "9-10"], capsys)
    assert "form 2 pipeline stages" in refused([*TRAIN, "parallel.pipeline=2", *where], capsys)


def test_a_setting_that_is_given_as_an_option_is_shown_as_a_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = refused(["train", "configs/tiny.yaml", "--steps", "5"], capsys)
    assert "No such option '--steps'" in said and "such as train.steps=100" in said
    assert "train.steps" not in refused(["show", "runs/x", "--steps"], capsys)


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom launch.cli import forescale, main\n"
        "for name in (*forescale.commands, 'train'):\n"
        "    try:\n        main([name, '--help'])\n    except SystemExit:\n        pass\n"
        "heavy = {'torch', 'pydantic', 'pandas', 'numpy', 'deepspeed'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "--ranks" in answer.stdout and "local_rank" not in answer.stdout


def test_show_and_evaluate_tell_what_a_run_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests import ranks
    from tests.settings import train_rank

    run = tmp_path / "run"
    ranks.run(train_rank, 2, run, {"train.steps": 2, "data.rows": 800, "parallel.pipeline": 2})
    main(["show", str(run)])
    said = capsys.readouterr().out
    environment = json.loads((run / "environment.json").read_text())
    assert environment["kernels"] == {
        f"standard in {place}": "formula"
        for place in ("decoder.cross_attention", "decoder.self_attention", "encoder.self_attention")
    }
    assert "done, step 2 of 2" in said and "pipeline 2 x data 1" in said
    main(["show", str(run / "checkpoints" / "step-00000002")])
    said = capsys.readouterr().out
    assert "samples seen  32" in said and "written by    pipeline 2" in said
    main(["evaluate", str(run), "--json"])
    scores = json.loads(capsys.readouterr().out)
    stored = json.loads((run / "evaluation.json").read_text())
    assert scores["scores"]["Forescale"] == pytest.approx(stored["scores"]["Forescale"], rel=1e-6)
    main(["evaluate", str(run), "--split", "validation"])
    assert "validation windows" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(run), "data.split=[0.9,0.1,0.0]"])
    assert capsys.readouterr().err == (
        f"forescale: {run}: no window of 32 points lies in the test part; change data.split or "
        "data.split_last, set a smaller data.prediction_length, choose another part with --split, "
        "or score other series with data.source=FILE\n"
    )


def test_plan_explains_a_layout_without_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    for config, world, size in (
        ("large", 64, "large: 976 M parameters, bf16,"),
        ("moe_large", 64, "moe_large: 31.1 B parameters, of which a token uses 2.77 B, bf16,"),
        ("moe_large", 512, "moe_large: 31.1 B parameters, of which a token uses 2.77 B, bf16,"),
    ):
        main(["plan", f"configs/{config}.yaml", "--world", str(world)])
        said = " ".join(capsys.readouterr().out.split())
        assert said.startswith(f"{size} on {world} ranks: pipeline")
        assert "tensor groups stay inside nodes of 8 ranks" in said
    main(["plan", "configs/tiny.yaml", "parallel.tensor=4", "--world", "4", "--node", "2"])
    assert "1 of 1 tensor groups reach over nodes of 2 ranks" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["plan", "configs/large.yaml", "--world", "63"])
    assert ended.value.code == 2
    assert "63 ranks cannot form 2 pipeline stages x 2 tensor ranks" in capsys.readouterr().err


@pytest.mark.parametrize("start", [["launch/train.py", "x.yaml"], ["-m", "launch", "show", "x"]])
def test_a_python_without_the_dependencies_says_what_it_lacks(start: list[str]) -> None:
    python = f"{sys.base_prefix}/bin/python3"
    done = subprocess.run(
        [python, "-S", *start], cwd=ROOT, env={}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"forescale: {python} has no module '")
    assert done.stderr.count("\n") == 1
