"""A run folder belongs to one run; a command that cannot use it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.errors import UserError
from tests.settings import QUICK, planned, tiny
from trainer.prepare import prepare
from trainer.run.folder import RunFolder, check_same


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files; choose an empty folder"):
        planned(tmp_path, QUICK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__d_model": 64}, r"model\.d_model is 32 there and 64 here"),
        ({"train__seed": 1}, r"train\.seed is 0 there and 1 here"),
        ({"train__global_batch_size": 32, "data__rows": 900}, r"rows is 800 .*batch_size is 16"),
    ],
)
def test_a_run_folder_of_another_configuration_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    settings = tiny(data__rows=800)
    run.config_file.write_text(yaml.safe_dump(settings.settings.model_dump()))
    prepare(tiny(data__rows=800, parallel__pipeline=2, train__steps=3), run_dir=run.path, world=2)
    prepare(tiny(data__rows=800, data__score_every=7), run_dir=run.path)  # changes no step
    with pytest.raises(UserError, match=message):
        prepare(tiny(**{"data__rows": 800, **change}), run_dir=run.path)
    with pytest.raises(UserError, match="holds a run already"):
        prepare(settings, run_dir=run.path, resume="never")
    with pytest.raises(UserError, match=r"--resume: .* is no checkpoint"):
        prepare(settings, run_dir=run.path, resume=str(tmp_path / "nowhere"))


def test_a_key_that_the_version_before_had_not_is_at_its_default(tmp_path: Path) -> None:
    configuration, stored = tiny(), tiny().settings.model_dump()
    del stored["train"]["ema_decay"], stored["data"]["augment"]
    check_same(configuration, stored, "the run")
    with pytest.raises(UserError, match=r"train\.ema_decay is 0\.0 there and 0\.5 here"):
        check_same(tiny(train__ema_decay=0.5), stored, "the run")
    with pytest.raises(UserError, match=r"model\.gone is 3 there and None here"):
        check_same(configuration, {**stored, "model": {**stored["model"], "gone": 3}}, "the run")


@pytest.mark.parametrize("where", ["/proc/forescale", "/dev/null/run"])
def test_an_unwritable_run_folder_is_refused(where: str) -> None:
    with pytest.raises(UserError, match="--run-dir: cannot write in /"):
        prepare(tiny(), run_dir=Path(where))
    assert not Path(where).exists()


@pytest.mark.parametrize(
    ("name", "is_"),
    [
        ("metrics.jsonl", "folder"),
        ("environment.json", "folder"),
        ("config.yaml", "folder"),
        ("evaluation.json", "folder"),
        ("forecast.png", "folder"),
        ("done", "folder"),
        ("saved", "folder"),
        ("checkpoints", "file"),
        ("tensorboard", "file"),
    ],
)
def test_a_folder_in_a_files_place_is_refused(tmp_path: Path, name: str, is_: str) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    settings = tiny(data__rows=800)
    run.config_file.write_text(yaml.safe_dump(settings.settings.model_dump()))
    prepare(settings, run_dir=run.path)
    strange = run.path / name
    strange.unlink(missing_ok=True)
    strange.mkdir() if is_ == "folder" else strange.touch()
    with pytest.raises(UserError, match=rf"run/{name} is a {is_}, where .*; move it elsewhere"):
        prepare(settings, run_dir=run.path)


@pytest.mark.parametrize("content", [None, "", "[1]", "null", "[" * 100_000, "\0", '{"a": 1'])
def test_environment_json_begins_anew_where_it_is_spoiled(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path)
    if content is not None:
        run.environment_file.write_text(content)
    run.record(warnings=["one"])
    assert "environment.json cannot be read, and begins anew" in caplog.text
    caplog.clear()
    run.record(kernels={})
    assert json.loads(run.environment_file.read_text()) == {"warnings": ["one"], "kernels": {}}
    assert not caplog.text


def test_a_run_that_hung_before_it_began_can_be_started_again(tmp_path: Path) -> None:
    (tmp_path / "hang").mkdir()
    (tmp_path / ".owner").touch()
    assert planned(tmp_path, QUICK).start.steps_done == 0
