"""`--ranks N`: start N local ranks through the deepspeed launcher, and pass signals on to them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from launch.cluster_environment import free_port
from launch.machine import processors
from trainer.faults.signals import PARENT, SIGNALS, StopRequest, acknowledge, requests_stop

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel")
"""Device files of accelerators. Without any, DeepSpeed is spared its search and its warning."""


def launch(
    ranks: int, arguments: Sequence[str], stop: StopRequest, is_saved: Callable[[], bool]
) -> int:
    """Train with `arguments` on `ranks` ranks, and return the exit code.

    Where `stop` has been asked for already, the ranks save after their first step.

    DeepSpeed's launcher ends its ranks at once on SIGINT and SIGTERM. So it runs in a session of
    its own, where a Ctrl-C does not reach it, and ignores SIGUSR1, which this process sends
    instead: the ranks save and end by themselves, with 0, and `stop` has the signal that came here.
    A second Ctrl-C ends everything at once; `is_saved` returns whether the ranks had saved.
    """
    # What `deepspeed` itself starts on each machine: starting that first would import all of
    # DeepSpeed once more.
    devices = json.dumps({"localhost": _devices(ranks)}).encode()
    command = [
        sys.executable,
        "-u",
        "-m",
        "deepspeed.launcher.launch",
        "--quiet",
        f"--world_info={base64.urlsafe_b64encode(devices).decode()}",
        "--master_addr=127.0.0.1",
        f"--master_port={free_port()}",
        str(Path(__file__).with_name("train.py")),
        *arguments,
    ]
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if not asked:
            acknowledge(number)
        asked.append(number)
        stop.number = stop.number or number

    for number in filter(requests_stop, SIGNALS):
        signal.signal(number, ask)
    # An ignored signal stays ignored in the launcher; the ranks install a handler.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    process = subprocess.Popen(command, start_new_session=True, env=_environment(ranks))
    signal.signal(signal.SIGUSR1, ask)
    while True:
        try:
            code = process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if asked or stop:
                _pass_on(process, at_once=asked.count(signal.SIGINT) > 1)
            continue
        if asked.count(signal.SIGINT) > 1 and code < 0:
            if sys.stdout.isatty():
                print(SHOW_CURSOR, end="", flush=True)  # which a rank's progress bar has hidden
            unsaved = "" if is_saved() else ", without saving"
            print(f"forescale: ended at once{unsaved}", file=sys.stderr)
            return 128 + signal.SIGINT
        # The launcher exits with 1 whatever else ended it by a signal.
        return code if code >= 0 else 1


SHOW_CURSOR = "\x1b[?25h"


def _pass_on(process: subprocess.Popen[bytes], *, at_once: bool) -> None:
    """Signal the ranks; repeated until they end, since one that is starting has no handler yet."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL if at_once else signal.SIGUSR1)


def _devices(ranks: int) -> list[str]:
    """Return the ranks' devices: of those that CUDA_VISIBLE_DEVICES names, if it does, the first.

    Ranks beyond the number of devices share them.
    """
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if not any(named):
        return [str(rank) for rank in range(ranks)]
    return (named + ["-1"] * ranks)[:ranks]  # -1 ends CUDA's list


def _environment(ranks: int) -> dict[str, str]:
    """Return the ranks' environment; each takes its share of the processors by default."""
    environment = {**os.environ, PARENT: str(os.getpid())}
    if not any(Path(device).exists() for device in GPU_DEVICES):
        environment.setdefault("DS_ACCELERATOR", "cpu")
    environment.setdefault("OMP_NUM_THREADS", str(max(1, processors() // ranks)))
    return environment
