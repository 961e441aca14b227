"""Nodes that cannot train are named before they try."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from launch.cluster_environment import free_port
from launch.machine import too_low
from launch.preflight import Finding, judge
from launch.requeue import Failure, after_preflight, parse_object
from tests.conftest import ROOT


def found(node: str, wrong: str | None = None, torch: str = "2.13") -> Finding:
    return {"node": node, "wrong": wrong, "versions": f'{{"torch": "{torch}"}}'}


@pytest.mark.parametrize(
    ("findings", "unfit"),
    [
        ([found("a"), found("b")], {}),
        ([found("a"), found("b", "no disk")], {"b": "no disk"}),
        (
            [found("a", torch="2.9"), found("b"), found("c")],
            {"a": "a differs from most nodes: torch is 2.9 for a and 2.13 for most nodes"},
        ),
        (
            [found("a"), found("b", torch="2.9")],
            {"b": "b differs from most nodes: torch is 2.9 for b and 2.13 for most nodes"},
        ),
        ([found("a", "no disk", torch="2.9"), found("b"), found("c")], {"a": "no disk"}),
    ],
)
def test_a_node_is_judged_by_itself_and_by_most(
    findings: list[Finding], unfit: dict[str, str]
) -> None:
    assert judge(findings) == unfit


@pytest.mark.slow  # the same as one object is below
def test_what_all_nodes_lack_is_not_theirs(tmp_path: Path) -> None:
    (code, said), (_, silent) = preflight("/proc/1/run", [0, 1], 2)
    assert (code, silent) == (1, "")
    assert "unfit" not in said and said.count("no node can train: node") == 2


def preflight(
    run: Path | str, ranks: list[int], world: int, *options: str, **odd: str
) -> list[tuple[int, str]]:
    """Return exit code and output of some of `world` tasks; `odd` are variables of the last one."""
    port = str(free_port())
    processes = []
    for rank in ranks:
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "FORESCALE_START_SECONDS": "10",
            "SLURMD_NODENAME": f"node{rank}",
            **(odd if rank == ranks[-1] else {}),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "launch", "preflight", str(run), *options],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate(timeout=60)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def test_fit_nodes_sum(tmp_path: Path) -> None:
    machine = os.uname().nodename
    assert preflight(tmp_path / "run", [0, 1], 2) == [
        (0, f"preflight: {machine} can train\n"),
        (0, ""),
    ]
    assert not list(tmp_path.iterdir())


def test_fit_nodes_are_one_object(tmp_path: Path) -> None:
    (code, said), (_, silent) = preflight(tmp_path / "run", [0, 1], 2, "--json")
    assert (code, silent) == (0, "")
    assert json.loads(said) == {
        "can_train": True,
        "nodes": [os.uname().nodename],
        "unfit": {},
        "in_common": {},
        "error": None,
    }


def test_an_unfit_node_is_in_the_object_that_the_script_reads(tmp_path: Path) -> None:
    """As the script calls it: the text comes too, on stderr."""
    options = ("--json", "--explain")
    (code, said), *_ = preflight(tmp_path, [0, 1, 2], 3, *options, PATH=str(tmp_path))
    [(node, why)] = parse_object(said)["unfit"].items()
    assert (code, node) == (1, "node2") and f"\nunfit node2: {why}\n" in f"\n{said}"
    decision = after_preflight(code, parse_object(said), is_signalled=False)
    assert decision == Failure("node2 cannot train", "node2")


def test_what_all_nodes_lack_keeps_none_away() -> None:
    (code, said), (_, silent) = preflight("/proc/1/run", [0, 1], 2, "--json")
    assert (code, silent) == (1, "")
    report = json.loads(said)
    assert not report["can_train"] and report["unfit"] == {} and report["error"] is None
    assert set(report["in_common"]) == {"node0", "node1"}


@pytest.mark.slow  # the same as one object is above
def test_a_node_of_another_commit_is_unfit(tmp_path: Path) -> None:
    """Where there is no git, nobody knows the commit."""
    (_, first), *others = preflight(tmp_path, [0, 1, 2], 3, PATH=str(tmp_path))
    assert first.startswith("unfit node2: node2 differs from most nodes: forescale's commit is")
    assert [code for code, _ in others] == [1, 1]


def test_a_folder_that_cannot_be_written_makes_a_node_unfit() -> None:
    [(code, said)] = preflight("/proc/1/run", [0], 1)
    assert (code, said) == (
        1,
        "unfit node0: /proc/1/run cannot be written: No such file or directory\n",
    )


@pytest.mark.slow
def test_a_node_that_does_not_come_is_unfit(tmp_path: Path) -> None:
    """Its name is known from Slurm's list, where there is one."""
    (code, said), (_, silent) = preflight(tmp_path, [0, 1], 3)
    assert (code, said) == (1, "unfit of rank 2: did not come within 10 s\n")
    assert silent == ""
    [(code, said)] = preflight(tmp_path, [0], 3)
    assert (code, said) == (1, "unfit node0: 2 of 3 nodes did not reach it\n")
    slurm = {"SLURM_STEP_NODELIST": "rack[07-09]"}
    (code, said), _ = preflight(tmp_path, [1, 0], 3, **slurm)[::-1]
    assert (code, said) == (1, "unfit rack09: did not come within 10 s\n")


def limited(monkeypatch: pytest.MonkeyPatch, which: int, value: int) -> None:
    """Have one of the process's limits be `value`, the others infinite."""
    infinite = resource.RLIM_INFINITY

    def getrlimit(kind: int) -> tuple[int, int]:
        return (value, infinite) if kind == which else (infinite, infinite)

    monkeypatch.setattr("launch.machine.resource.getrlimit", getrlimit)


def test_open_files_must_do_for_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, resource.RLIMIT_NOFILE, 1024)
    assert too_low(8, 64, on_gpus=True) is None
    said = too_low(8, 4096, on_gpus=False)
    assert said == "1024 files may be open (ulimit -n), and 4096 ranks need 8448"


def test_infiniband_needs_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, resource.RLIMIT_MEMLOCK, 64 * 1024)
    cards: list[Path] = []
    monkeypatch.setattr("launch.machine.Path.glob", lambda *_: iter(cards))
    assert too_low(1, 8, on_gpus=True) is None
    cards.append(Path("mlx5_0"))
    assert "64 KiB may be locked in memory (ulimit -l)" in str(too_low(1, 8, on_gpus=True))
    assert too_low(1, 8, on_gpus=False) is None
    limited(monkeypatch, resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY)
    assert too_low(1, 8, on_gpus=True) is None


def test_shared_memory_must_do_for_the_ranks_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 64 * 2**20

    monkeypatch.setattr("launch.machine.shutil.disk_usage", lambda _: Usage())
    assert too_low(1, 8, on_gpus=True) is None
    assert too_low(8, 8, on_gpus=False) is None
    assert "64 MiB are free in /dev/shm, and NCCL needs 512 for 8 ranks" in str(
        too_low(8, 8, on_gpus=True)
    )


def test_a_configuration_is_no_run_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["preflight", "configs/tiny.yaml"])
    assert "configs/tiny.yaml: expected a run folder, such as runs/tiny" in capsys.readouterr().err
