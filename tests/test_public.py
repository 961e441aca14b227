"""The public package: its version, its types, its help, and users' files of the same names."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import forescale

ROOT = Path(__file__).resolve().parent.parent

USERS_FILE = """
import torch
from forescale import (
    BaseTransformerLayer, DecoderOnlyTransformer, Forecaster, TransformerDecoder,
    TransformerEncoder, UserError, __version__, reorder, train,
)

encoder = TransformerEncoder(7, d_model=64, nhead=4, att_type="flash", position="rotary")
memory: torch.Tensor = encoder(torch.randn(2, 96, 7))
auxiliary: torch.Tensor = encoder.aux_loss()
decoder = TransformerDecoder(7, 1, d_model=64, nhead=4)
output, state = decoder.forward_one_step(torch.randn(2, 1, 7), memory)
first: torch.Tensor = output
state = reorder(state, torch.tensor([1, 0]))
alone = DecoderOnlyTransformer(7, 1, d_model=64, nhead=4)
run = train("configs/tiny.yaml", run_dir="runs/x", train={"steps": 3})
forecast = Forecaster.load(run).forecast(torch.zeros(1, 96, 2).numpy())
version: str = __version__
folder: str = run.name
wrong: str = encoder.aux_loss()
"""


def test_the_version_is_the_installed_one() -> None:
    assert forescale.__version__ == metadata.version("forescale")


@pytest.mark.slow
def test_a_users_strict_types_hold(tmp_path: Path) -> None:
    """mypy --strict knows every public name, and finds the one mistake that is there."""
    for package in ("forescale", "model", "parallel", "trainer", "launch"):
        assert (ROOT / package / "py.typed").exists()
    pytest.importorskip("mypy")
    (tmp_path / "users.py").write_text(USERS_FILE)
    options = ["--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--config-file=", "users.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    errors = [line for line in checked.stdout.splitlines() if ": error:" in line]
    last = USERS_FILE.count("\n")
    assert len(errors) == 1 and errors[0].startswith(f"users.py:{last}: "), checked.stdout


@pytest.mark.parametrize("name", ["model", "parallel", "trainer", "launch"])
@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
def test_a_users_own_file_of_the_same_name_is_named(
    tmp_path: Path, name: str, is_folder: bool
) -> None:
    own = tmp_path / name / "__init__.py" if is_folder else tmp_path / f"{name}.py"
    own.parent.mkdir(exist_ok=True)
    own.write_text("")
    ran = subprocess.run(
        [sys.executable, "-c", "import forescale"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 1
    sentence = f"{own} hides Forescale's package `{name}`; rename it or run from elsewhere"
    assert sentence in ran.stderr


@pytest.mark.parametrize("name", forescale.__all__)
def test_every_public_name_explains_itself(name: str) -> None:
    """In a screen: help() shows the docstring first."""
    thing = getattr(forescale, name)
    if isinstance(thing, str):
        return
    text = inspect.getdoc(thing)
    assert text and len(text.splitlines()) <= 30
    for method, function in vars(thing).items() if inspect.isclass(thing) else ():
        if not method.startswith("_") and inspect.isfunction(function):
            assert inspect.getdoc(function), f"{name}.{method}"
