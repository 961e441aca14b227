"""What slurm/train_large.sh does next: end its job, requeue it, or go on.

    requeue.py folder CONFIG [ARGUMENT]...   print the run folder
    requeue.py start                         decide before anything is done
    requeue.py gpus CODE TASKS GPUS          decide by the numbers of tasks and of GPUs of a node
    requeue.py plan CODE                     decide by what `plan --json` has printed, on stdin
    requeue.py preflight CODE                decide by what `preflight --json` has printed, on stdin
    requeue.py training CODE [SAVED]         decide by how training has ended
    requeue.py limit                         wait for the time limit, and decide shortly before

All but the first take --run RUN. CODE is srun's exit code; SAVED is what the run's marker `saved`
held before training. The exit code is GO_ON where the script goes on; else the script ends with it:
the reason is printed, and the job has been requeued where it is to be.

The script runs outside of containers, where python3 may be old and have no packages: so this file
and what it imports need the standard library alone, and run under Python 3.6.
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence, Union

from launch.slurm_job import (
    Job,
    SlurmAttempt,
    UnknownJobError,
    exclude_nodes,
    requeue_job,
    show_job,
)

GO_ON = 10
"""Exit code of this program where the script goes on."""

KILLED_BY_USR1 = 128 + signal.SIGUSR1
"""Exit code of srun whose tasks had no handler for the signal yet."""

REFUSED, SRUN_REFUSED = 2, 255
"""Exit codes of a plan that cannot be, and of an srun that does not know its options."""

MAX_FAILURES = 3
"""Failures of a job in a row, after the same step, at which it gives up."""

LIMIT_SECONDS = 20
"""Seconds before the time limit at which ranks that have not saved are given up."""

EARLY = "USR1 came before it could be heeded: is --time longer than --signal's lead?"


class End(NamedTuple):
    """End the script, without requeue."""

    code: int
    sentence: str


class Requeue(NamedTuple):
    """Start the job again; where that is forbidden, end with `code`."""

    code: int
    why: str
    unfit: str = ""
    """Nodes that the job excludes from now on, separated by commas."""


class Failure(NamedTuple):
    """Record a failure, and requeue the job unless it has failed too often."""

    why: str
    unfit: str = ""


Decision = Union[End, Requeue, Failure, None]
"""What to do; None is to go on."""


# The policy: what to do, by what is known


def run_folder(config: str, arguments: Sequence[str]) -> str:
    """Return the run folder of `train CONFIG ARGUMENT...`, as trainer/prepare.py chooses it."""
    folder = str(Path("runs") / Path(config).stem)
    for before, argument in zip(["", *arguments], arguments):
        if before == "--run-dir":
            folder = argument
        elif argument.startswith("--run-dir="):
            folder = argument[len("--run-dir=") :]
    return folder


def before_start(run: Path) -> Decision:
    """Decide whether anything is done at all."""
    stop = run / "stop"
    return End(0, f"{stop} asks this run to stand still") if stop.exists() else None


def after_step(what: str, code: int, is_signalled: bool) -> Decision:
    """Decide after a step before training; `is_signalled` where USR1 has come to the script."""
    if is_signalled or code == KILLED_BY_USR1:
        return Failure(EARLY)
    return Failure(f"{what} ended with code {code}") if code else None


def after_gpus(code: int, tasks: str, gpus: str, is_signalled: bool) -> Decision:
    """Decide by the numbers of tasks and of GPUs of a node."""
    decision = after_step("srun", code, is_signalled)
    if decision is None and tasks.isdigit() and gpus.isdigit() and int(tasks) > int(gpus):
        counts = f"{tasks} tasks and {gpus} GPUs on a node"
        options = f"--ntasks-per-node={gpus} or --gres=gpu:{tasks}"
        return End(2, f"{counts}: start one task for each GPU, with {options}")
    return decision


def after_plan(run: Path, code: int, plan: Mapping[str, Any], is_signalled: bool) -> Decision:
    """Decide by what `forescale plan --json` has printed."""
    if code in (REFUSED, SRUN_REFUSED):
        return End(2, "the run is refused (above); nothing is requeued")
    decision = after_step("the plan", code, is_signalled)
    if decision is None and plan.get("is_done"):
        return End(0, f"{run} is done")
    return decision


def after_preflight(code: int, report: Mapping[str, Any], is_signalled: bool) -> Decision:
    """Decide by what `forescale preflight --json` has printed."""
    unfit = ",".join(report.get("unfit", {}))
    if unfit:
        return Failure(f"{unfit} cannot train", unfit)
    return after_step("the preflight", code, is_signalled)


def after_training(run: Path, code: int, saved_before: str) -> Decision:
    """Decide by the run's markers, and only without any by srun's exit code.

    That code is 0 after a lost node, and of ranks with different codes that of the killed ones.
    """
    if (run / "done").exists():
        return End(0, f"{run} is done")
    if (run / "stop").exists():
        return End(0, f"{run} was asked to stop")
    if (run / "saved").exists():
        saved = (run / "saved").read_text(errors="replace").strip()
        # Saved where the attempt before had saved: no step was made.
        return Failure(EARLY) if saved == saved_before else Requeue(0, f"{saved} is saved")
    return Failure(EARLY if code == KILLED_BY_USR1 else f"the ranks ended with code {code}")


def seconds_left(job: Job, now: float) -> Optional[float]:
    """Return the seconds until the ranks are given up; None where the job has no time limit."""
    try:
        end = time.mktime(time.strptime(job.end, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:  # Unknown
        return None
    return end - now - LIMIT_SECONDS


def when_replaced(job: Job, attempt: SlurmAttempt) -> Optional[End]:
    """End an attempt that is over: its node was lost, and this script was not."""
    if job.state == "RUNNING" and job.restarts == attempt.restarts:
        return None
    now = f"the job is {job.state}, start {job.restarts}"
    return End(1, f"start {attempt.restarts} is over: {now}")


def when_forbidden(wish: Requeue, attempt: SlurmAttempt) -> Optional[End]:
    """End where nothing may be requeued."""
    if attempt.may_requeue:
        return None
    way_on = "the same command goes on from there, as does the next of a chain"
    return End(wish.code, f"{wish.why}; {way_on}")


def after_failure(failure: Failure, step: int, failures: Sequence[str], beginning: str) -> Decision:
    """Decide whether the failure that ends `failures`, after `step`, is the job's last.

    `beginning` is that of the lines of this job and step.
    """
    last = failures[-MAX_FAILURES:]
    if len(last) == MAX_FAILURES and all(line.startswith(beginning) for line in last):
        why = f"failed {MAX_FAILURES} times after step {step}, for the reason above; giving up"
        return End(1, f"{failure.why}; {why}")
    return Requeue(1, f"failed after step {step}: {failure.why}", failure.unfit)


# What is known


def last_step(metrics: Path) -> int:
    """Return the step of the last whole row of metrics.jsonl; 0 where there is none."""
    try:
        with open(str(metrics), "rb") as file:
            file.seek(max(0, metrics.stat().st_size - 2**20))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):  # cut off, or garbled
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            return int(row["step"])
    return 0


def parse_object(text: str) -> Dict[str, Any]:
    """Return the JSON object in what a command has printed; {} where there is none."""
    try:
        found: Dict[str, Any] = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
    except (ValueError, RecursionError):
        return {}
    return found


# Doing it


def carry_out(decision: Decision, run: Path, attempt: SlurmAttempt) -> int:
    """Do what is decided; return the exit code."""
    if isinstance(decision, Failure):
        decision = _record(decision, run, attempt)
    if isinstance(decision, Requeue):
        decision = _requeue(decision, attempt)
    if isinstance(decision, End):
        if decision.sentence:
            print(f"train_large: {decision.sentence}", file=sys.stderr)
        return decision.code
    return GO_ON


def _record(failure: Failure, run: Path, attempt: SlurmAttempt) -> Decision:
    """Add a line to the run's `failures`; return what to do next."""
    replaced = when_replaced(show_job(attempt.job), attempt)
    if replaced is not None:
        return replaced
    step = last_step(run / "metrics.jsonl")
    beginning = f"job {attempt.chain}, step {step}:"
    file = run / "failures"
    try:
        run.mkdir(parents=True, exist_ok=True)
        with open(str(file), "a+", encoding="utf-8", errors="replace") as lines:
            lines.write(f"{beginning} start {attempt.restarts}, {failure.why}\n")
            lines.seek(0)
            failures = lines.read().splitlines()
    except OSError:
        return End(1, f"{failure.why}; {file} cannot be written, so nothing is requeued")
    return after_failure(failure, step, failures, beginning)


def _requeue(wish: Requeue, attempt: SlurmAttempt) -> End:
    """Requeue the job, unless that is forbidden or the job has been started again already."""
    forbidden = when_forbidden(wish, attempt)
    if forbidden is not None:
        return forbidden
    job = show_job(attempt.job)
    replaced = when_replaced(job, attempt)
    if replaced is not None:
        return replaced
    print(f"train_large: {wish.why}; the job is requeued", flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it comes with the requeue
    if not requeue_job(attempt.job):
        return End(1, "")
    if wish.unfit:
        exclude_nodes(attempt.job, [nodes for nodes in (job.excluded, wish.unfit) if nodes])
    return End(0, "")


def wait_for_limit(number: str) -> Decision:
    """Wait until shortly before the job's time limit, which may be moved meanwhile."""
    while True:
        left = seconds_left(show_job(number), time.time())
        if left is None:
            return None
        if left <= 0:
            return Failure("nothing was saved before the time limit")
        time.sleep(left)


def decide(options: argparse.Namespace, run: Path, attempt: SlurmAttempt) -> Decision:
    """Decide at the moment that the script has come to."""
    if options.moment == "start":
        return before_start(run)
    if options.moment == "gpus":
        return after_gpus(options.code, options.tasks, options.gpus, options.signalled)
    if options.moment == "plan":
        return after_plan(run, options.code, parse_object(sys.stdin.read()), options.signalled)
    if options.moment == "preflight":
        return after_preflight(options.code, parse_object(sys.stdin.read()), options.signalled)
    if options.moment == "training":
        return after_training(run, options.code, options.saved)
    return wait_for_limit(attempt.job) if attempt.may_requeue else None


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--run", required=True)
    common.add_argument("--signalled", action="store_true", help="USR1 has come to the script")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    moments = parser.add_subparsers(dest="moment")
    moments.required = True
    folder = moments.add_parser("folder")
    folder.add_argument("config")
    folder.add_argument("arguments", nargs=argparse.REMAINDER)
    for name in ("start", "gpus", "plan", "preflight", "training", "limit"):
        moment = moments.add_parser(name, parents=[common])
        if name not in ("start", "limit"):
            moment.add_argument("code", type=int)
        if name == "gpus":
            moment.add_argument("tasks")
            moment.add_argument("gpus")
        if name == "training":
            moment.add_argument("saved", nargs="?", default="")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Decide and act; return the exit code."""
    options = parse_arguments(arguments)
    if options.moment == "folder":
        print(run_folder(options.config, options.arguments))
        return 0
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # is for the ranks
    run, attempt = Path(options.run), SlurmAttempt.here()
    try:
        return carry_out(decide(options, run, attempt), run, attempt)
    except UnknownJobError as error:
        return carry_out(End(1, str(error)), run, attempt)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
