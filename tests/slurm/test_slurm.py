"""The unmodified slurm/train_large.sh on a real Slurm: whatever happens, the run comes back."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.cluster_environment import free_port, port_of
from tests import ranks
from tests.conftest import ROOT, note_time, skip
from tests.settings import train_rank
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import QUICK, Job
from trainer.logs.metrics import Row, read_metrics

Submit = Callable[..., Job]

STEPS = 300
LONG = (
    f"train.steps={STEPS}",
    "checkpoint.every=10",
    "model.dropout=0.1",
    "faults.hang_seconds=5.0",
)

pytestmark = pytest.mark.timeout(600)


def told(rows: list[Row]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The run that nothing happens to, on the same layout without Slurm."""
    import yaml

    settings = {k: yaml.safe_load(v) for k, v in (s.split("=", 1) for s in (*QUICK, *LONG))}
    return ranks.run(train_rank, 4, tmp_path_factory.mktemp("x") / "run", settings)[0]


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
def test_a_time_limit_saves_requeues_and_finishes(submit: Submit) -> None:
    """No step is lost at the signal, which Slurm sends up to a minute early."""
    steps = 1500
    job = submit(
        f"train.steps={steps}", "checkpoint.every=10000", flags=("--time=30", "--signal=USR1@90")
    )
    minutes = int(job.wait_for_step(1)) // 60 + 2
    job.limit(minutes)
    job.wait(lambda: (job.run / "saved").exists(), "the signal", 90)
    job.limit(30)
    step = int((job.run / "saved").read_text().split()[1])
    assert len(job.rows()) == step < steps
    assert [p.name for p in (job.run / "checkpoints").glob("step-*")] == [f"step-{step:08d}"]
    note_time("saved to training again", job.wait_for_step(step + 1))
    job.wait_until_done(300)
    assert f"step {step} is saved; the job is requeued" in job.said()
    assert [row["step"] for row in job.rows()] == list(range(1, steps + 1))


@pytest.mark.slow
def test_a_signal_before_the_first_step_is_heeded(submit: Submit) -> None:
    """While it plans, and while the ranks import torch: started again, as if nothing had been."""
    job = submit("train.steps=3")
    for start, word in ((1, "launch plan"), (2, "launch/train.py")):
        job.wait(lambda word=word: job.cluster.tasks(word), word)
        for process in job.cluster.tasks(word):
            os.kill(process.pid, signal.SIGUSR1)
        job.wait(lambda start=start: job.starts() == start + 1, "the next start")
    job.wait_until_done()
    assert job.said().count("USR1 came before it could be heeded") == 2
    assert [row["step"] for row in job.rows()] == [1, 2, 3]


@pytest.mark.slow
def test_a_preempted_job_comes_back(submit: Submit, undisturbed: list[Row]) -> None:
    job = submit(*LONG)
    job.wait_for_step(50)
    job.cluster.run(
        "sbatch",
        "--partition=urgent",
        "--nodes=4",
        "--exclusive",
        "--time=1",
        "--output=/dev/null",
        "--wrap=sleep 3",
    )
    job.wait(lambda: (job.run / "saved").exists(), "the signal", 60)
    step = len(job.rows())
    note_time("preempted to training again", job.wait_for_step(step + 1))
    job.wait_until_done()
    assert told(job.rows()) == told(undisturbed)
    assert job.starts() == 2


@pytest.mark.slow
def test_a_dead_node_is_replaced(submit: Submit, undisturbed: list[Row]) -> None:
    job = submit(*LONG)
    job.wait_for_step(50)
    job.cluster.run("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    job.wait(lambda: job.starts() == 2, "the second start")
    note_time("node down to training again", job.wait_for_step(len(job.rows()) + 1))
    assert "node2" not in job.said().split("start 1,")[1].splitlines()[0]
    job.wait_until_done()
    assert told(job.rows()) == told(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 3])
def test_a_killed_rank_ends_the_start_and_the_next_goes_on(
    submit: Submit, undisturbed: list[Row], rank: int
) -> None:
    job = submit(*LONG)
    job.wait_for_step(50)
    [victim] = [p for p in job.cluster.tasks("launch/train.py") if p.rank == rank]
    os.kill(victim.pid, signal.SIGKILL)
    job.wait(lambda: job.starts() == 2, "the second start")
    note_time("killed rank to training again", job.wait_for_step(len(job.rows()) + 1))
    job.wait_until_done()
    assert told(job.rows()) == told(undisturbed)
    assert (job.run / "failures").read_text().count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_stopped_rank_is_reported_and_the_run_resumed(
    submit: Submit, undisturbed: list[Row], rank: int
) -> None:
    job = submit(*LONG)
    job.wait_for_step(50)
    [victim] = [p for p in job.cluster.tasks("launch/train.py") if p.rank == rank]
    os.kill(victim.pid, signal.SIGSTOP)
    job.wait(lambda: job.starts() == 2, "the second start")
    note_time("stopped rank to training again", job.wait_for_step(len(job.rows()) + 1))
    if rank == 0:
        assert "rank 0, at which the ranks meet, has not answered for 5 s" in job.said()
    else:
        assert "rank 2: does not answer: stopped, dead or cut off" in job.said()
        assert re.search(r"rank 0-1, 3 .*waits for rank 2", job.said())
    job.wait_until_done()
    assert told(job.rows()) == told(undisturbed)


@pytest.mark.slow
def test_what_is_left_of_an_older_start_cannot_commit(
    submit: Submit, undisturbed: list[Row]
) -> None:
    """The daemon of the node with rank 0 dies and its tasks live on: Slurm starts the job again
    elsewhere, beside them."""
    job = submit(*LONG, "checkpoint.keep=100")
    job.wait_for_step(30)
    tasks = [p.pid for p in job.cluster.tasks("launch/train.py") if p.node == "node1"]
    old = [*tasks, *job.cluster.script(job.number)]
    for pid in old:
        os.kill(pid, signal.SIGSTOP)  # or it would be done before Slurm notices
    job.cluster.kill_daemon("node1")
    job.wait(lambda: job.starts() == 2, "the second start", 120)
    job.wait_for_step(len(job.rows()) + 5)
    for pid in old:
        os.kill(pid, signal.SIGCONT)
    job.wait_until_done()
    assert told(job.rows()) == told(undisturbed)
    for pid in old:
        job.wait(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "what is old to end")
    assert job.starts() == 2 and not (job.run / "failures").exists()
    assert "start 0 is over: the job is RUNNING, start 1" in job.said()


@pytest.mark.slow
def test_a_node_that_cannot_train_is_kept_away_from(submit: Submit) -> None:
    """The run's file system is not what it should be on one of two nodes."""
    job = submit("train.steps=3", flags=("--hold", "--exclude=node4"), FORESCALE_PREFLIGHT="yes")
    job.cluster.inside("node2", "mount", "-t", "tmpfs", "-o", "ro", "none", str(job.log.parent))
    try:
        job.cluster.run("scontrol", "release", job.number)
        job.wait_until_done()
    finally:
        job.cluster.inside("node2", "umount", str(job.log.parent))
    assert re.search(r"^unfit node2: .*Read-only file system", job.said(), re.MULTILINE)
    assert "node2 cannot train; the job is requeued" in job.said()
    assert "preflight: node1, node3 can train" in job.said()
    assert set(job.facts()["ExcNodeList"].split(",")) == {"node2", "node4"} or (
        job.facts()["ExcNodeList"] == "node[2,4]"
    )
    assert [row["step"] for row in job.rows()] == [1, 2, 3]


@pytest.mark.slow
def test_a_port_in_use_is_another_ones_next_time(submit: Submit) -> None:
    """Failures of an earlier job in this folder do not count."""
    job = submit("train.steps=3", flags=("--hold",))
    job.run.mkdir()
    (job.run / "failures").write_text("job 1, step 0: start 0, lightning\n" * 3)
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
    job = submit("train.steps=3")
    job.wait_until_done()
    again = submit("train.steps=3")
    again.wait_until_done()
    assert job.said().count("the ranks have met") == 1
    longer = submit("train.steps=6", MASTER_ADDR="nowhere.invalid", FORESCALE_START_SECONDS="5")
    longer.wait(lambda: longer.facts().get("JobState") == "FAILED", "the end", 120)
    assert "cannot open the meeting point nowhere.invalid:" in job.said()
    assert "Name or service not known" in job.said()
    assert longer.starts() == 1 + 1 + 3


@pytest.mark.slow
def test_a_second_job_cannot_use_a_run_folder(submit: Submit) -> None:
    job = submit(*LONG, "train.steps=3000")
    job.wait_for_step(10)
    other = submit(*LONG, "train.steps=3000")
    other.wait(lambda: other.facts().get("JobState") == "FAILED", "the refusal", 60)
    assert "another process is training in" in job.said() and job.starts() == 1 + 1
    assert not (job.run / "failures").exists()
    step = len(job.rows())
    job.wait_for_step(step + 10)


@pytest.mark.slow
def test_a_node_that_hangs_before_training_is_kept_away_from(submit: Submit) -> None:
    job = submit("train.steps=3", FORESCALE_PREFLIGHT="yes", FORESCALE_START_SECONDS="15")
    job.wait(lambda: len(job.cluster.tasks("launch preflight")) == 2, "the preflight")
    [victim] = [p for p in job.cluster.tasks("launch preflight") if p.rank == 1]
    os.kill(victim.pid, signal.SIGSTOP)
    job.wait_until_done()
    assert "unfit node2: did not come within 15 s" in job.said()
    assert job.facts()["ExcNodeList"] == "node2" and job.starts() == 2


@pytest.mark.slow
def test_a_run_that_hangs_at_its_time_limit_comes_back(
    submit: Submit, undisturbed: list[Row]
) -> None:
    job = submit(*LONG, "faults.hang_seconds=1000", flags=("--time=2", "--signal=USR1@1"))
    job.wait_for_step(50)

    def stopped() -> bool:
        """Slurm lets them go on with the signal that it sends."""
        for process in job.cluster.tasks("launch/train.py"):
            os.kill(process.pid, signal.SIGSTOP)
        return "is requeued" in job.said()

    job.wait(stopped, "the requeue", 150)
    job.wait_until_done()
    assert job.starts() == 2
    assert "nothing was saved before the time limit; the job is requeued" in job.said()
    assert told(job.rows()) == told(undisturbed)


@pytest.mark.slow
def test_a_signal_to_the_script_reaches_the_ranks(submit: Submit, undisturbed: list[Row]) -> None:
    """--signal=B:USR1; and a run that was to start anew goes on after it."""
    job = submit(*LONG, "--resume=never")
    job.wait_for_step(50)
    job.cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    job.wait(lambda: job.starts() == 2, "the second start")
    assert re.search(r"step \d+ is saved; the job is requeued", job.said())
    job.wait_until_done()
    assert told(job.rows()) == told(undisturbed)


@pytest.mark.slow
def test_a_failure_without_requeue_is_a_failed_job(submit: Submit) -> None:
    job = submit(
        "train.learning_rate=1e30",
        "train.warmup_steps=0",
        "train.steps=100",
        FORESCALE_REQUEUE="no",
    )
    job.wait(lambda: job.facts().get("JobState") == "FAILED", "the end")
    assert "the same command goes on from there" in job.said() and job.starts() == 1


@pytest.mark.slow
def test_three_failures_at_one_step_give_up(submit: Submit) -> None:
    job = submit("train.learning_rate=1e30", "train.warmup_steps=0", "train.steps=100")
    job.wait(lambda: job.facts().get("JobState") == "FAILED", "the end", 240)
    assert job.starts() == 3
    assert re.search(r"failed 3 times after step \d+, for the reason above; giving up", job.said())
    assert "lower train.learning_rate" in job.said()


@pytest.mark.slow
def test_the_stop_file_stops_for_good(submit: Submit) -> None:
    job = submit(*LONG)
    job.wait_for_step(20)
    (job.run / "save").touch()
    job.wait(lambda: not (job.run / "save").exists(), "the save")
    (job.run / "stop").touch()
    job.wait(lambda: job.facts().get("JobState") == "COMPLETED", "the end")
    assert (job.run / "saved").exists() and job.starts() == 1
    assert "was asked to stop" in job.said()
    again = submit(*LONG)
    again.wait(lambda: again.facts().get("JobState") == "COMPLETED", "the end")
    assert "asks this run to stand still" in again.said()


@pytest.mark.slow
def test_a_job_array_goes_on_where_requeue_is_forbidden(
    submit: Submit, undisturbed: list[Row]
) -> None:
    job = submit(*LONG, flags=("--array=1-3%1", "--no-requeue"), FORESCALE_REQUEUE="no")
    job.wait_for_step(50)
    for process in job.cluster.tasks("launch/train.py"):
        os.kill(process.pid, signal.SIGUSR1)
    job.wait(lambda: (job.run / "done").exists(), "the end", 200)
    assert told(job.rows()) == told(undisturbed)
    assert "the same command goes on from there, as does the next of a chain" in job.said()


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
def test_srun_with_pmix_torchrun_and_mpirun_over_nodes(unused: Cluster, tmp_path: Path) -> None:
    """Without the script: ranks by srun --mpi=pmix, by a torchrun on each node, and by mpirun in
    an allocation, which meet where MPI says."""
    if shutil.which("mpirun") is None:
        skip("no mpirun here: apt-get install --no-install-recommends openmpi-bin libopenmpi3")
    program = ["launch/train.py", "configs/tiny.yaml", *QUICK, "train.steps=3"]
    plain = ["srun", "--nodes=2", "--ntasks-per-node=2", "--mpi=pmix", sys.executable]
    torchrun = [
        "srun",
        "--nodes=2",
        "--ntasks-per-node=1",
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}",
    ]
    mpirun = [
        "salloc",
        "--nodes=2",
        "--ntasks-per-node=2",
        "mpirun",
        "-np",
        "4",
        "--map-by",
        "ppr:2:node",
        "--mca",
        "btl_tcp_if_include",
        "lo",
        sys.executable,
    ]
    named = [*mpirun[:6], "-x", "MASTER_ADDR=node1", *mpirun[6:]]  # without mpi4py
    found = []
    report = unused.run("srun", "--nodes=1", sys.executable, "-m", "launch", "doctor")
    assert "this process: rank 0 of 1" in report and "## network" in report
    for name, command in (
        ("pmix", plain),
        ("torchrun", torchrun),
        ("mpirun", mpirun),
        ("named", named),
    ):
        run = tmp_path / name
        done = subprocess.run(
            [*command, *program, f"--run-dir={run}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={
                **unused.environment,
                "OMP_NUM_THREADS": "1",
                "OMPI_ALLOW_RUN_AS_ROOT": "1",
                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            },
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        table = r"\nnode([12])    0-1    0\nnode(?!\1)[12]    2-3    0\n"
        assert re.search(table, done.stdout), done.stdout
        found.append([row["loss"] for row in read_metrics(run / "metrics.jsonl")])
    assert len(found[0]) == 3 and all(losses == found[0] for losses in found)


def test_outside_slurm_the_script_says_how_to_submit_it() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    done = subprocess.run(
        ["bash", "slurm/train_large.sh"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "train_large: submit it: sbatch slurm/train_large.sh\n"


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


def test_scripts_are_clean() -> None:
    if shutil.which("shellcheck") is None:
        skip("no shellcheck here: apt-get install shellcheck")
    for script in sorted((ROOT / "slurm").glob("*.sh")):
        subprocess.run(["shellcheck", str(script)], check=True)


def test_a_cluster_takes_no_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="holds other files; choose an empty folder"):
        Cluster(tmp_path).start()
    assert (tmp_path / "thesis.txt").exists()
