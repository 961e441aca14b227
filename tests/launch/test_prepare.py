"""`forescale prepare` and `forescale show` of what it has written."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch.cli import main
from tests.conftest import ROOT
from tests.trainer.data.sets import csv, hourly


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Return a file of three series, one of which has gaps."""
    frames = [hourly(50 + n).assign(store=f"s{n}", load=np.sin(np.arange(50 + n))) for n in (0, 9)]
    return csv(tmp_path, pd.concat([*frames, hourly(40).drop(index=[3, 4]).assign(store="gap")]))


def test_prepare_and_show(tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "corpus"
    main(["prepare", str(table), str(out), "data.id_column=store"])
    said = capsys.readouterr().out
    assert "missing rows" in said and "149 points" in said
    main(["show", str(out), "--json", "--verify", "--picture", str(tmp_path / "corpus.png")])
    known = json.loads(capsys.readouterr().out)
    assert known["items"] == 3 and known["points"] == 149 and known["intervals"] == {"h": 3}
    assert known["columns"]["target"] == ["load"] and known["contents_verified"]
    assert known["length_quartiles"] == [40, 45, 50, 54, 59]
    assert known["missing"] == pytest.approx(2 / 149)
    assert (tmp_path / "corpus.png").read_bytes().startswith(b"\x89PNG")
    main(["show", str(out)])
    assert "by its files' sizes" in capsys.readouterr().out
    main(["show", str(out), "--picture", str(tmp_path / "corpus.png"), "--force"])


def test_without_space_nothing_is_lost(tmp_path: Path, table: Path) -> None:
    """It is said in one line, and the same command goes on once there is space."""
    big = csv(
        tmp_path, pd.concat([hourly(3000).assign(store=f"s{n}") for n in range(40)]), "big.csv"
    )
    settings = ["data.id_column=store"]

    def prepare(out: Path, limit: int | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launch", "prepare", str(big), str(out), *settings],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=None if limit is None else partial(_limit_files, limit),
        )

    stopped = prepare(tmp_path / "set", 200_000)
    assert stopped.returncode == 2, stopped.stderr
    (line,) = [one for one in stopped.stderr.splitlines() if one.startswith("forescale: ")]
    assert "File too large" in line and "the same command goes on from there" in line
    assert not (tmp_path / "set" / "set.json").exists()
    assert prepare(tmp_path / "set", None).returncode == 0
    assert prepare(tmp_path / "whole", None).returncode == 0
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "set" / file.name).read_bytes() == file.read_bytes()


def _limit_files(size: int) -> None:
    """Have this process write no file of more bytes, as if a disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("damage", ["shard", "index", "gone", "text"])
def test_a_damaged_set_is_named(
    tmp_path: Path, table: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "corpus"
    main(["prepare", str(table), str(out), "data.id_column=store"])
    file = out / {"index": "index.arrow", "text": "set.json"}.get(damage, "shard-00000.arrow")
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "text":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["show", str(out), "--verify"])
    assert ended.value.code == 2 and file.name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table.csv"], "expected SOURCE... OUT"),
        (["table.csv", "out", "data.colour=red"], "data.colour: is no setting"),
        (["table.csv", "out", "data.seperator=;"], "did you mean data.separator?"),
        (["table.csv", "out", "data.on_error=maybe"], "data.on_error: expected one of"),
        (["table.csv", "out", "data.skip_rows=x"], "data.skip_rows"),
        (["table.csv", "."], "exists already"),
        (["gone.csv", "out"], "there is no file gone.csv"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    table: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["prepare", *arguments])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("picture.xyz", "name a file that ends with .png"),
        ("nowhere/picture.png", "there is no such folder"),
        ("folder.png", "cannot be written"),
        ("there.png", "is there already; name another, or write over it with --force"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "there.png").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        main(["show", str(tmp_path), "--picture", str(tmp_path / name)])
    said = capsys.readouterr().err
    assert "--picture" in said and words in said
    assert (tmp_path / "there.png").read_text() == "mine"


def test_only_sets_have_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["show", str(tmp_path), "--picture", str(tmp_path / "a.png")])
    assert ended.value.code == 2
