"""The commands and the Python in README.md and docs/*.md, and why some of them do not run here."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

RUN = ("forescale", "deepspeed", "torchrun", "python", "tensorboard")
"""Programs whose commands run, unless they are listed below."""

NOT_RUN = {
    "sbatch": "needs a Slurm: tests/slurm",
    "srun": "needs a Slurm: tests/slurm",
    "squeue": "needs a Slurm",
    "scancel": "needs a Slurm",
    "scontrol": "needs a Slurm",
    "mpirun": "needs an MPI: tests/launch/test_mpi.py",
    "pip": "installs: the packages are here",
    "apt-get": "installs",
    "git": "clones the checkout that this is",
    "make": "installs, or runs all tests; tests/launch/test_demo.py is its demo",
    ".ci/run": "runs all tests",
    "rm": "reaches into a folder of a cluster: tests/trainer/run/test_control_files.py",
    "touch": "reaches into a folder of a cluster: tests/trainer/run/test_control_files.py",
    "grep": "finds a line of a run that diverged: tests/faults/test_skipped_steps.py",
    "docker": "needs a container engine",
    "podman": "needs a container engine",
    "apptainer": "needs a container engine",
    "singularity": "needs a container engine",
    "enroot": "needs a container engine",
    "rsync": "needs another cluster",
    "scp": "needs another cluster",
    "ssh": "needs another machine",
    "export": "sets a variable of a cluster",
}
"""Program -> why its commands do not run here."""

LISTED = {
    r"python -m venv .*": "installs",
    r"python -m tests\.slurm\.cluster .*": "needs a Slurm: tests/slurm/conftest.py",
    r"deepspeed --hostfile .*": "needs several machines: tests/slurm",
    r"deepspeed --launcher openmpi .*": "needs an MPI: tests/launch/test_mpi.py",
    r"forescale benchmark .*": "needs the data sets' files: tests/launch/test_benchmark.py",
    r"forescale prepare Hourly-train\.csv .*": "needs M4's files: tests/trainer/data",
    r"WANDB_MODE=offline .*": "needs W&B and MLflow: tests/trainer/logs/test_sinks.py",
    r"forescale train configs/large\.yaml --ranks 8 .*": "needs 8 GPUs",
    r"torchrun --nnodes 8 .*": "needs several machines: tests/slurm/test_launchers.py",
}
"""Regular expression of a command that does not run here -> why."""

ELSEWHERE = {
    "/data/series.parquet": "series.parquet",
    "train.steps=300 train.warmup_steps=50": "train.steps=10 train.warmup_steps=2",
    "runs/demo/checkpoints/step-00001000": "runs/demo/checkpoints/step-00000200",
    'device="cuda"': 'device="cpu"',
}
"""What a command says of another machine, or of the whole demo -> what it says here."""


PRELUDES = {
    "checkpoints.md": """
import numpy as np
context, covariates = np.random.rand(1, 336, 2), np.zeros((1, 384, 3))
""",
}
"""File -> what the text around its Python takes for given."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a file."""

    file: Path
    line: int
    language: str
    text: str

    def commands(self) -> list[str]:
        """Return the commands of a block of sh, without comments and with lines joined."""
        joined = self.text.replace("\\\n", " ")
        lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines())
        return [re.sub(r"\s+", " ", line) for line in lines if line]


def blocks(file: Path) -> list[Block]:
    """Return the blocks of sh and Python of a file, also those in lists."""
    text = file.read_text(encoding="utf-8")
    fenced = re.finditer(r"^( *)```(sh|python)\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [
        Block(file, text.count("\n", 0, found.start()) + 1, found[2], textwrap.dedent(found[3]))
        for found in fenced
    ]


def program(command: str) -> str:
    """Return the program that a command starts, without its folder and variables before it."""
    word = next(word for word in command.split() if not re.match(r"\w+=", word))
    return word.removeprefix(".venv/bin/")


def why_not(command: str) -> str | None:
    """Return why a command does not run here; None where it runs."""
    bare = command.replace(".venv/bin/", "")
    listed = next((why for pattern, why in LISTED.items() if re.fullmatch(pattern, bare)), None)
    return listed or NOT_RUN.get(program(command))


def here(command: str) -> str:
    """Return a command or Python as it runs on this machine."""
    for there, ours in ELSEWHERE.items():
        command = command.replace(there, ours)
    return command
