"""A Slurm job as its own batch script sees it, through its environment and scontrol.

Standard library alone, and for Python 3.6: see launch/requeue.py.
"""

import os
import subprocess
import time
from typing import Mapping, NamedTuple, Optional, Sequence, Tuple

TRIES, SECONDS = 60, 10
"""How often, and how far apart, scontrol is tried: a controller that is started anew is away."""


class SlurmAttempt(NamedTuple):
    """This start of the job, as its environment describes it."""

    job: str
    restarts: str
    chain: str
    """The job, or the array that it is an element of: failures are counted over all of it."""
    may_requeue: bool

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> "SlurmAttempt":
        """Read what Slurm and the user have set."""
        job = environment["SLURM_JOB_ID"]
        return cls(
            job,
            environment.get("SLURM_RESTART_COUNT") or "0",
            environment.get("SLURM_ARRAY_JOB_ID") or job,
            environment.get("FORESCALE_REQUEUE") != "no",
        )


class Job(NamedTuple):
    """A job as Slurm knows it, its facts as scontrol prints them."""

    state: str
    restarts: str
    excluded: str
    """Nodes that it is kept away from; empty where there are none."""
    end: str
    """Local time at which its time limit ends it, or `Unknown`."""


class UnknownJobError(Exception):
    """Slurm does not answer, or has no such job."""


def parse_job(number: str, text: str) -> Optional[Job]:
    """Find a job in what `scontrol -o show job` prints: of an array's number, several jobs."""
    for line in text.splitlines():
        if line.startswith(f"JobId={number} ") and " JobState=" in line:
            facts = {name: fact for name, _, fact in (word.partition("=") for word in line.split())}
            names = ("JobState", "Restarts", "ExcNodeList", "EndTime")
            return Job(*(facts.get(name, "").replace("(null)", "") for name in names))
    return None


def show_job(number: str) -> Job:
    """Return a job as Slurm knows it; raises UnknownJobError after ten minutes without it."""
    for trial in range(TRIES):
        if trial:
            time.sleep(SECONDS)
        _, text = _scontrol("-o", "show", "job", number)
        job = parse_job(number, text)
        if job is not None:
            return job
    raise UnknownJobError(f"Slurm knows nothing of job {number}")


def requeue_job(number: str) -> bool:
    """Have Slurm start a job again; return whether it will."""
    code, _ = _scontrol("requeue", number)
    return code == 0


def exclude_nodes(number: str, nodes: Sequence[str]) -> None:
    """Keep a job away from `nodes`, each a name or a list of them, and from no others."""
    _scontrol("update", f"JobId={number}", f"ExcNodeList={','.join(nodes)}")


def _scontrol(*arguments: str) -> Tuple[int, str]:
    """Run scontrol; return its exit code and what it prints. Its errors go to the job's log."""
    environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    done = subprocess.run(
        ["scontrol", *arguments], stdout=subprocess.PIPE, env=environment, check=False
    )
    return done.returncode, done.stdout.decode("utf-8", "replace")
