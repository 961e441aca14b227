"""What slurm/train_large.sh does when something has ended: the policy, without a Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import requeue
from launch.cli import main
from launch.requeue import EARLY, Decision, End, Failure, Requeue
from launch.slurm_job import Job, SlurmAttempt

RUN = Path("runs/large")


@pytest.mark.parametrize(
    ("config", "arguments", "folder"),
    [
        ("configs/large.yaml", [], "runs/large"),
        ("configs/v1.2/large.yaml", ["train.steps=3"], "runs/large"),
        ("large", ["--resume", "never"], "runs/large"),
        ("large.yaml", ["--run-dir", "/scratch/x", "train.steps=3"], "/scratch/x"),
        ("large.yaml", ["a=b", "--run-dir=x y/z"], "x y/z"),
        ("large.yaml", ["--run-dir=x", "--run-dir", "y"], "y"),
        ("large.yaml", ["--run-dir"], "runs/large"),  # the plan refuses it
    ],
)
def test_the_run_folder_is_known_before_the_plan(
    config: str, arguments: list[str], folder: str
) -> None:
    assert requeue.run_folder(config, arguments) == folder


@pytest.mark.parametrize("arguments", [[], ["--run-dir=runs/another"]])
def test_the_run_folder_is_that_of_the_plan(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["plan", "configs/tiny.yaml", *arguments, "--world=1", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert requeue.run_folder("configs/tiny.yaml", arguments) == plan["run_folder"]


@pytest.mark.parametrize(
    ("code", "is_signalled", "decision"),
    [
        (0, False, None),
        (1, False, Failure("the plan ended with code 1")),
        (137, False, Failure("the plan ended with code 137")),
        (138, False, Failure(EARLY)),
        (0, True, Failure(EARLY)),
        (1, True, Failure(EARLY)),
    ],
)
def test_a_step_before_training_fails_by_its_code_or_a_signal(
    code: int, is_signalled: bool, decision: Decision
) -> None:
    assert requeue.after_step("the plan", code, is_signalled) == decision
    assert requeue.after_plan(RUN, code, {"is_done": False}, is_signalled) == decision


@pytest.mark.parametrize(
    ("code", "plan", "decision"),
    [
        (2, {}, End(2, "the run is refused (above); nothing is requeued")),
        (255, {}, End(2, "the run is refused (above); nothing is requeued")),
        (0, {"is_done": True}, End(0, "runs/large is done")),
        (0, {}, None),  # nothing was printed that can be read
    ],
)
def test_a_refused_or_finished_run_ends_at_its_plan(
    code: int, plan: dict[str, bool], decision: Decision
) -> None:
    assert requeue.after_plan(RUN, code, plan, is_signalled=False) == decision


def test_more_tasks_than_gpus_end_the_job() -> None:
    assert requeue.after_gpus(0, "8", "8", is_signalled=False) is None
    assert requeue.after_gpus(0, "4", "2", is_signalled=False) == End(
        2,
        "4 tasks and 2 GPUs on a node: start one task for each GPU, with --ntasks-per-node=2 or "
        "--gres=gpu:4",
    )
    assert requeue.after_gpus(1, "8", "", False) == Failure("srun ended with code 1")


def test_unfit_nodes_are_excluded_whatever_else_there_was() -> None:
    report = {"unfit": {"node2": "no disk", "node7": "no GPU"}}
    failure = Failure("node2,node7 cannot train", "node2,node7")
    for code, is_signalled in ((1, False), (138, False), (1, True)):
        assert requeue.after_preflight(code, report, is_signalled) == failure
    for empty in ({}, {"unfit": {}}):
        assert requeue.after_preflight(0, empty, False) is None
        failure = Failure("the preflight ended with code 1")
        assert requeue.after_preflight(1, empty, False) == failure


@pytest.mark.parametrize(
    ("markers", "code", "decision"),
    [
        ({"done": "step 9\n"}, 0, End(0, "{run} is done")),
        ({"done": "step 9\n", "stop": "", "saved": ""}, 137, End(0, "{run} is done")),
        ({"stop": "", "saved": "step 5\n"}, 0, End(0, "{run} was asked to stop")),
        ({"saved": "step 5\n"}, 0, Requeue(0, "step 5 is saved")),
        ({"saved": "step 5\n"}, 138, Requeue(0, "step 5 is saved")),
        ({"saved": "step 5\n"}, 143, Requeue(0, "step 5 is saved")),  # TERM, from a preemption
        ({"saved": "step 4\n"}, 0, Failure(EARLY)),  # where the attempt before had saved
        ({}, 138, Failure(EARLY)),
        ({}, 137, Failure("the ranks ended with code 137")),
        ({}, 0, Failure("the ranks ended with code 0")),  # a lost node
    ],
)
def test_the_markers_say_how_training_ended(
    markers: dict[str, str], code: int, decision: End | Requeue | Failure, tmp_path: Path
) -> None:
    for name, text in markers.items():
        (tmp_path / name).write_text(text)
    if isinstance(decision, End):
        decision = decision._replace(sentence=decision.sentence.format(run=tmp_path))
    assert requeue.after_training(tmp_path, code, "step 4") == decision


def test_a_stop_file_keeps_a_run_from_starting(tmp_path: Path) -> None:
    assert requeue.before_start(tmp_path) is None
    (tmp_path / "stop").touch()
    sentence = f"{tmp_path}/stop asks this run to stand still"
    assert requeue.before_start(tmp_path) == End(0, sentence)


OLD = [  # as earlier versions of the script wrote them
    "job 17, step 40: start 0, the ranks ended with code 137",
    "job 17, step 40: start 1, node2 cannot train",
    "job 17, step 40: start 2, USR1 came before it could be heeded: is --time longer than ...",
]


@pytest.mark.parametrize(
    ("failures", "gives_up"),
    [
        (OLD[:1], False),
        (OLD[:2], False),
        (OLD, True),
        (["job 16, step 40: start 9, lightning", *OLD], True),
        (["job 17, step 30: start 0, lightning", *OLD[1:]], False),
        (["job 16, step 40: start 0, lightning", *OLD[1:]], False),
        ([*OLD[:2], "job 17, step 4: start 2, lightning"], False),
        ([*OLD[:2], "job 17, step 400: start 2, lightning"], False),
        ([*OLD, "job 18, step 40: start 0, lightning"], False),
    ],
)
def test_a_jobs_third_failure_after_the_same_step_is_its_last(
    failures: list[str], gives_up: bool
) -> None:
    decision = requeue.after_failure(Failure("it broke", "node2"), 40, failures, "job 17, step 40:")
    if gives_up:
        why = "it broke; failed 3 times after step 40, for the reason above; giving up"
        assert decision == End(1, why)
    else:
        assert decision == Requeue(1, "failed after step 40: it broke", "node2")


@pytest.mark.parametrize(
    ("state", "restarts", "is_over"),
    [("RUNNING", "1", False), ("RUNNING", "2", True), ("REQUEUED", "1", True)],
)
def test_an_attempt_that_is_over_decides_nothing(state: str, restarts: str, is_over: bool) -> None:
    job, attempt = Job(state, restarts, "", ""), SlurmAttempt("7", "1", "7", True)
    sentence = f"start 1 is over: the job is {state}, start {restarts}"
    assert requeue.when_replaced(job, attempt) == (End(1, sentence) if is_over else None)


def test_where_requeue_is_forbidden_the_script_ends_with_its_code() -> None:
    environment = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "FORESCALE_REQUEUE": "no"}
    attempt = SlurmAttempt.here(environment)
    assert attempt == SlurmAttempt("9", "0", "7", False)
    way_on = "the same command goes on from there, as does the next of a chain"
    saved = Requeue(0, "step 5 is saved")
    assert requeue.when_forbidden(saved, attempt) == End(0, f"step 5 is saved; {way_on}")
    assert requeue.when_forbidden(Requeue(1, "it broke"), attempt) == End(1, f"it broke; {way_on}")
    assert requeue.when_forbidden(saved, SlurmAttempt("9", "0", "9", True)) is None


def test_ranks_are_given_up_shortly_before_the_time_limit() -> None:
    at = Job("RUNNING", "0", "", "2024-05-01T12:00:00")
    left = requeue.seconds_left(at, 0.0)
    assert left is not None
    later = at._replace(end="2024-05-01T12:01:30")
    assert requeue.seconds_left(later, 0.0) == left + 90
    assert requeue.seconds_left(at, left) == 0  # 20 s before it
    assert requeue.seconds_left(at._replace(end="Unknown"), 0.0) is None


@pytest.mark.parametrize(
    ("content", "step"),
    [
        ("", 0),
        ('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.5}\n', 2),
        ('{"loss": 0.5, "step": 12}\n', 12),
        ('{ "step":7 }\n', 7),
        ('{"step": 12, "loss": null, "experts": [1, 2]}\n\n', 12),
        ('{"step": 1, "loss": 0.5}\n{"step": 2, "lo', 1),  # a row that was cut off does not count
        ('{"step": 1}\n{"note": "no step"}\n[3]\nx\n\x00', 1),
        ('{"step": 1}\n{"step": true}\n{"step": "5"}\n' + "[" * 100_000, 1),
    ],
)
def test_the_last_step_is_read_from_the_last_whole_row(
    content: str, step: int, tmp_path: Path
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(content)
    assert requeue.last_step(file) == step


def test_the_last_step_of_a_long_file_is_found(tmp_path: Path) -> None:
    assert requeue.last_step(tmp_path / "metrics.jsonl") == 0
    rows = [json.dumps({"pad": "x" * 999, "step": step}) for step in range(1, 3001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert requeue.last_step(tmp_path / "metrics.jsonl") == 3000


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"is_done": true}\n', {"is_done": True}),
        (
            'A container greets you.\n{\n "unfit": {"a": "no {disk}"}\n}\nbye\n',
            {"unfit": {"a": "no {disk}"}},
        ),
        ("", {}),
        ("srun: nothing\n", {}),
        ('{"is_done": tr', {}),
        ('{"is_done": ' + "[" * 100_000, {}),
    ],
)
def test_the_object_in_a_commands_output_is_found(text: str, found: dict[str, object]) -> None:
    assert requeue.parse_object(text) == found
