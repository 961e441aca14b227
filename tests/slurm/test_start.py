"""A job starts on all its nodes, is refused once where it cannot be, and meets nobody else."""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path

import pytest

from launch.cluster_environment import port_of
from tests.conftest import ROOT, note_time
from tests.slurm.jobs import FEW, LONG, Submit

pytestmark = pytest.mark.timeout(600)


@pytest.mark.slow
def test_a_job_trains_on_all_its_nodes(submit: Submit) -> None:
    job = submit("train.steps=3", FORESCALE_PREFLIGHT="yes")
    job.wait_until_done()
    assert "preflight: node1, node2 can train" in job.said()
    assert re.search(
        r"0: the ranks have met at node1:2\d{4}\n0: machine  ranks  stages\n"
        r"0: node1    0-1    0\n0: node2    2-3    0\n",
        job.said(),
    )
    assert [row["step"] for row in job.rows()] == [1, 2, 3]
    assert job.starts() == 1


@pytest.mark.slow
def test_sixteen_ranks_on_two_nodes(submit: Submit) -> None:
    job = submit(
        "train.steps=5",
        "train.micro_batch_size=1",
        "parallel.tensor=2",
        "parallel.pipeline=2",
        flags=("--ntasks-per-node=8",),
        FORESCALE_PREFLIGHT="yes",
    )
    note_time("submit to first step, 2 x 8 ranks", job.wait_for_step(1, 300))
    job.wait_until_done(300)


@pytest.mark.slow
def test_a_port_in_use_is_another_ones_next_time(submit: Submit) -> None:
    """Failures of an earlier job in this folder do not count."""
    job = submit("train.steps=3", flags=("--hold", *FEW))
    job.run.mkdir()
    (job.run / "failures").write_text("job 0, step 0: start 0, lightning\n" * 3)
    step = 2  # after the look at the GPUs and the plan
    with socket.socket() as taken:
        taken.bind(("", port_of(f"{job.number}/0/{step}")))
        taken.listen()
        job.cluster.run("scontrol", "release", job.number)
        job.wait_until_done()
    assert "rank 0 cannot open the meeting point" in job.said()
    assert job.starts() == 2


@pytest.mark.slow
def test_a_master_that_no_node_knows_ends_the_job(submit: Submit) -> None:
    """Also where the run was done before, with fewer steps."""
    job = submit("train.steps=3", flags=FEW)
    job.wait_until_done()
    again = submit("train.steps=3", flags=FEW)
    again.wait_until_done()
    assert job.said().count("the ranks have met") == 1
    nowhere = {"MASTER_ADDR": "nowhere.invalid", "FORESCALE_START_SECONDS": "5"}
    longer = submit("train.steps=6", flags=FEW, **nowhere)
    longer.wait(lambda: longer.facts().get("JobState") == "FAILED", "the end", 120)
    assert "cannot open the meeting point nowhere.invalid:" in job.said()
    assert "Name or service not known" in job.said()
    assert longer.starts() == 1 + 1 + 3


@pytest.mark.slow
def test_a_second_job_cannot_use_a_run_folder(submit: Submit) -> None:
    job = submit(*LONG, "train.steps=3000", flags=FEW)
    job.wait_for_step(10)
    other = submit(*LONG, "train.steps=3000", flags=FEW)
    other.wait(lambda: other.facts().get("JobState") == "FAILED", "the refusal", 60)
    assert "another process is training in" in job.said() and job.starts() == 1 + 1
    assert not (job.run / "failures").exists()
    step = len(job.rows())
    job.wait_for_step(step + 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "flags", "message"),
    [
        (("parallel.pipeline=3",), (), r"parallel\.pipeline: .*3"),
        (("train.stepz=3",), (), r"did you mean train\.steps"),
    ],
)
def test_what_cannot_be_is_refused_once(
    submit: Submit, settings: tuple[str, ...], flags: tuple[str, ...], message: str
) -> None:
    job = submit(*settings, flags=flags)
    took = job.wait(lambda: job.facts().get("JobState") == "FAILED", "the refusal", 60)
    assert took < 45
    assert job.starts() == 1 and re.search(message, job.said()), job.said()
    assert "the run is refused (above); nothing is requeued" in job.said()
    assert not job.run.exists()


@pytest.mark.slow
def test_more_tasks_than_gpus_end_the_job(submit: Submit) -> None:
    job = submit("train.micro_batch_size=2", flags=("--ntasks-per-node=4", "--gres=gpu:2"))
    job.wait(lambda: job.facts().get("JobState") == "FAILED", "the refusal", 60)
    assert "4 tasks and 2 GPUs on a node: start one task for each GPU" in job.said()
    assert job.starts() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FORESCALE_HOME": "/tmp"}, "/tmp is not Forescale's checkout"),
        ({"FORESCALE_CONTAINER": "nowhere.sqsh"}, "there is no nowhere.sqsh"),
        ({"FORESCALE_CONTAINER": "registry/image"}, "unrecognized option '--container-image"),
        ({"FORESCALE_HOME": "elsewhere", "PATH": "/usr/bin:/bin"}, "has no module|no python3"),
    ],
)
def test_elsewhere_or_without_a_container_or_modules_it_says_so(
    submit: Submit, tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    """The machine's own python3 has nothing installed; a checkout without .venv uses it."""
    if variables.get("FORESCALE_HOME") == "elsewhere":
        for folder in ("launch", "trainer", "parallel", "model", "configs"):
            shutil.copytree(ROOT / folder, tmp_path / "elsewhere" / folder)
        variables = {**variables, "FORESCALE_HOME": str(tmp_path / "elsewhere")}
    job = submit(**variables)
    job.wait(lambda: job.facts().get("JobState") == "FAILED", "the refusal", 60)
    assert re.search(message, job.said()) and job.starts() <= 1
    assert not job.run.exists()
