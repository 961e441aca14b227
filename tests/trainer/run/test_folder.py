"""A run folder belongs to one run; a command that cannot use it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from model.errors import UserError
from tests.settings import QUICK, planned, tiny
from trainer.prepare import prepare
from trainer.run.folder import RunFolder


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


@pytest.mark.parametrize("where", ["/proc/forescale", "/dev/null/run"])
def test_an_unwritable_run_folder_is_refused(where: str) -> None:
    with pytest.raises(UserError, match="--run-dir: cannot write in /"):
        prepare(tiny(), run_dir=Path(where))
    assert not Path(where).exists()
