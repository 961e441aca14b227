"""What README.md and docs/*.md tell a reader to type works, word for word.

They run in a copy of the checkout whose configurations compute less. `tests/documentation.py` lists
what does not run here, and why.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from launch.cli import forescale
from tests.documentation import (
    ELSEWHERE,
    FILES,
    LISTED,
    PRELUDES,
    ROOT,
    RUN,
    Block,
    blocks,
    here,
    program,
    why_not,
)

TINY = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 32}
SMALLER: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {
        "model": TINY,
        "data": {"rows": 2000},
        "train": {
            "steps": 200,
            "warmup_steps": 30,
            "global_batch_size": 8,
            "micro_batch_size": 4,
        },
    },
    "pretrain_small": {
        "model": TINY,
        "train": {"steps": 20, "warmup_steps": 5, "global_batch_size": 8, "micro_batch_size": 8},
    },
}
"""Changes to configurations in the copy."""

STEPS = '"steps": 300, "warmup_steps": 50'
"""What the notebook trains."""

BLOCKS = [block for file in FILES for block in blocks(file)]
COMMANDS = [
    (block, command) for block in BLOCKS if block.language == "sh" for command in block.commands()
]


def test_each_command_runs_or_is_listed() -> None:
    for block, command in COMMANDS:
        is_known = why_not(command) is not None or program(command) in RUN
        assert is_known, f"{block.file.name}:{block.line}: neither run nor listed: {command}"


def test_no_listed_command_is_gone() -> None:
    texts = [command.replace(".venv/bin/", "") for _, command in COMMANDS]
    for pattern in LISTED:
        assert any(re.fullmatch(pattern, text) for text in texts), pattern
    for there in ELSEWHERE:
        assert any(there in block.text for block in BLOCKS), there
    for name in PRELUDES:
        assert any(b.language == "python" and b.file.name == name for b in BLOCKS), name


def test_no_block_hides_from_this_test() -> None:
    for file in FILES:
        languages = set(re.findall(r"^ *```(.+)$", file.read_text(encoding="utf-8"), re.MULTILINE))
        assert languages <= {"sh", "python", "yaml", "mermaid", "dockerfile"}, file


def test_each_forescale_command_can_be_read() -> None:
    """Its subcommand and options exist, also where it needs a cluster to run."""
    found = 0
    for _, command in COMMANDS:
        words = here(command).replace("'", "").split()
        while "=" in words[0]:
            del words[0]
        if program(command) == "forescale" and not set("|&<>;…") & set("".join(words)):
            forescale.commands[words[1]].make_context(words[1], words[2:])
            found += 1
    assert found >= 10


def copy_checkout(folder: Path) -> Path:
    """Make a checkout whose demo takes seconds, with the data that the files speak of."""
    folder.mkdir()
    packages = ("forescale", "model", "parallel", "trainer", "launch")
    for name in (*packages, "tests", "benchmarks", "slurm", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    shutil.copytree(ROOT / "configs", folder / "configs")
    for name, sections in SMALLER.items():
        file = folder / "configs" / f"{name}.yaml"
        config = yaml.safe_load(file.read_text())
        for section, changes in sections.items():
            config[section] |= changes
        file.write_text(yaml.safe_dump(config))
    hours = pd.date_range("2024-01-01", periods=7000, freq="h")
    waves = np.sin(np.arange(7000) * 2 * np.pi / 24)
    table = pd.DataFrame({"date": hours, "load": waves, "price": np.roll(waves, 3)})
    table.head(1500).to_csv(folder / "load.csv", index=False)
    table.head(1500).to_parquet(folder / "load.parquet")
    table.to_parquet(folder / "series.parquet")
    series = [waves[:length] + n for n, length in enumerate((700, 300, 900))]
    corpus = {"item_id": list("abc"), "freq": "h", "target": series}
    pd.DataFrame(corpus).to_parquet(folder / "corpus.parquet")
    return folder


def run(folder: Path, command: list[str]) -> None:
    """Run a command as a user would at the top of the checkout; it must succeed."""
    environment = {
        **os.environ,
        "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout in which `make demo` has run."""
    folder = copy_checkout(tmp_path_factory.mktemp("documentation") / "forescale")
    run(folder, [".venv/bin/forescale", "train", "configs/demo.yaml", "--ranks", "2"])
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_commands_run(file: Path, checkout: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkout, tmp_path / "forescale", symlinks=True)
    mine = [block for block in BLOCKS if block.file == file]
    for block in mine:
        for command in block.commands() if block.language == "sh" else []:
            if why_not(command) is None:
                run(folder, ["bash", "-euc", here(command)])
    python = "".join(here(block.text) for block in mine if block.language == "python")
    run(folder, [sys.executable, "-c", PRELUDES.get(file.name, "") + python])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Cell after cell in one process; a line that begins with ! is a command."""
    notebook = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5 and not any(cell.get("outputs") for cell in notebook["cells"])
    lines = "\n".join(cells).replace(STEPS, '"steps": 5').splitlines()
    assert '"steps": 5' in "\n".join(lines)
    start = (
        "import subprocess\ndef _shell(command): subprocess.run(command, shell=True, check=True)\n"
    )
    code = [f"_shell({line[1:]!r})" if line.startswith("!") else line for line in lines]
    folder = copy_checkout(tmp_path / "forescale")
    run(folder, [sys.executable, "-c", start + "\n".join(code)])
    assert (folder / "runs" / "notebook" / "evaluation.json").is_file()


def test_commands_are_read_as_a_shell_reads_them() -> None:
    text = "# a comment\nX=1 .venv/bin/forescale train a.yaml \\\n    'b=[c]'   # why\n\nmake x\n"
    block = Block(Path("x.md"), 1, "sh", text)
    assert block.commands() == ["X=1 .venv/bin/forescale train a.yaml 'b=[c]'", "make x"]
    assert [program(command) for command in block.commands()] == ["forescale", "make"]
    assert why_not("make x") is not None and why_not(".venv/bin/forescale show x") is None
