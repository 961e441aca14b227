"""A rank with an error of its own ends, whatever still holds its process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

RANK = """
import sys, threading, time
from launch import start
from launch.cluster_environment import ClusterEnvironment

def fails(*arguments, **options):
    threading.Thread(target=time.sleep, args=(60,)).start()  # Python waits for it at its end
    raise RuntimeError("this rank's own")

import trainer.job
trainer.job.train = fails
start.ENDING_SECONDS = 1
start.announced = lambda cluster: __import__("contextlib").nullcontext()
cluster = ClusterEnvironment(rank=1, world=int(sys.argv[1]), local_rank=1, local_world=2)
start._train(None, cluster, None, None)
"""


@pytest.mark.parametrize(("world", "is_ended"), [(2, True), (1, False)])
def test_a_rank_that_has_failed_ends_though_a_thread_holds_it(world: int, is_ended: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, str(world)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        while "this rank's own" not in process.stderr.readline():
            assert process.poll() is None
        if is_ended:
            assert process.wait(20) == -signal.SIGALRM
        else:  # one alone waits for nobody, and its caller may go on
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(3)
    finally:
        process.kill()
        process.wait()
