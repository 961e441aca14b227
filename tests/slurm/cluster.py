"""A real Slurm of several nodes on this machine, for tests and to try things by hand.

    python -m tests.slurm.cluster start --nodes 4     # prints what to export
    sbatch --nodes 2 --ntasks-per-node 2 slurm/train_large.sh configs/tiny.yaml
    python -m tests.slurm.cluster stop

Debian's munged, slurmctld and one slurmd for each node, started by hand with all state in one
folder. A node is a slurmd in a mount and host-name namespace of its own, called node1, node2, ...,
which only the nodes resolve. Each pretends to have 96 processors and 8 GPUs. Namespaces take root.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.slurm.processes import Process, mount_namespace, running, send

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare")
INSTALL = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
PROCESSORS, GPUS, MEMORY = 96, 8, 10_000
FOLDER = Path("/tmp/forescale-slurm")
RECORD = "daemons.json"

CONFIGURATION = """
ClusterName=forescale
# Jobs of two clusters on this machine have different numbers, and so meet at different ports.
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A credential's life is the delay before a requeued job starts, too.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
# All nodes are 127.0.0.1: other loopback addresses make the step daemon hang.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmdLogFile={folder}/%n/slurmd.log
SlurmdSpoolDir={folder}/%n/spool
TmpFS={folder}/%n/tmp
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
SlurmdTimeout=10
KillWait=5
MinJobAge=0
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
"""


def missing() -> str | None:
    """Return why no cluster can run here, with the command that mends it; None if one can."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if absent:
        return f"no {absent[0]} here: {INSTALL}"
    if os.geteuid() != 0:
        return "a cluster of namespaces takes root"
    return None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    """Return ports below those that jobs meet at, others than another cluster would choose."""
    ports: list[int] = []
    for port in random.sample(range(17000, 20000), 3000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports")


@dataclass
class Cluster:
    """A Slurm whose nodes are node1, node2, ..."""

    folder: Path = FOLDER
    nodes: int = 4
    daemons: dict[str, int] = field(default_factory=dict)
    """Daemon -> its process id."""
    namespaces: list[str] = field(default_factory=list)
    """The mount namespace of each node, in which its daemon and its tasks run."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which Slurm's commands find this cluster."""
        return {**os.environ, "PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf")}

    @property
    def names(self) -> list[str]:
        """The names of the nodes."""
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    def start(self) -> None:
        """Start all daemons, and wait for the nodes. Raises FileExistsError for others' files."""
        if self.folder.exists():
            if any(self.folder.iterdir()) and not (self.folder / RECORD).exists():
                raise FileExistsError(f"{self.folder} holds other files; choose an empty folder")
            shutil.rmtree(self.folder)
        folders = [f"{name}/{kind}" for name in self.names for kind in ("spool", "tmp")]
        for name in ("state", "munge", *folders):
            (self.folder / name).mkdir(parents=True)
        self._configure()
        self._start_munge()
        self._spawn("slurmctld", ["slurmctld", "-D", "-i"])
        for name in self.names:
            self.start_node(name)
        self.wait_for_idle()

    def stop(self) -> None:
        """Kill everything, the jobs' processes too."""
        for name in list(self.daemons):
            self._kill(name)
        for folder in Path("/proc").glob("[0-9]*"):
            if mount_namespace(int(folder.name)) in self.namespaces:
                send(int(folder.name), signal.SIGKILL)
        self.daemons.clear()

    def start_node(self, name: str) -> None:
        """Start a node's slurmd in namespaces of its own."""
        hosts = self.folder / name / "hosts"
        lines = ["127.0.0.1 localhost", *(f"127.0.0.1 {node}" for node in self.names)]
        hosts.write_text("\n".join(lines) + "\n")
        script = (
            'hostname "$1" && mount --bind "$2" /etc/hosts && mount -t tmpfs none /dev/shm '
            '&& exec slurmd -D -N "$1"'
        )
        alone = ["unshare", "--uts", "--mount", "--propagation", "private"]
        self._spawn(name, [*alone, "sh", "-c", script, "sh", name, str(hosts)])
        here, daemon = mount_namespace(os.getpid()), self.daemons[name]
        self.wait(lambda: mount_namespace(daemon) not in (None, here), "a node's namespace")
        self.namespaces.append(str(mount_namespace(daemon)))
        self._record()

    def inside(self, name: str, *command: str) -> None:
        """Run a command on a node, with its mounts."""
        self.run("nsenter", f"--target={self.daemons[name]}", "--mount", "--uts", *command)

    def kill_daemon(self, name: str) -> None:
        """Kill a node's slurmd alone: its steps go on."""
        self._kill(name)

    # Jobs

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> str:
        """Run a command of this Slurm; return what it prints."""
        done = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """Return what scontrol prints of a job; {} when it is forgotten."""
        text = self.run("scontrol", "-o", "show", "job", number, check=False)
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def states(self) -> dict[str, str]:
        """Return the state of each node; one with an asterisk does not answer, as in `IDLE*`."""
        text = self.run("scontrol", "-o", "show", "node", check=False)
        return dict(re.findall(r"NodeName=(\S+).*?State=(\S+)", text))

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Wait until the condition holds. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds:g} s for {what}: {self.states()}")
            time.sleep(0.1)

    def wait_for_idle(self) -> None:
        """Wait until no node has work, and all of them answer."""
        self.wait(lambda: set(self.states().values()) == {"IDLE"}, "the nodes to be idle")

    def tasks(self, word: str) -> list[Process]:
        """Return the processes of steps on this cluster's nodes whose command has `word`."""
        return [
            process
            for process in running()
            if word in process.command
            and "srun " not in process.command
            and str(self.folder) in process.environment
            and "SLURM_STEP_NUM_TASKS=" in process.environment
        ]

    def script(self, job: str) -> list[Process]:
        """Return the processes of a job's batch script, which are shells."""
        return [
            p
            for p in running()
            if f"/job{job:0>5}/slurm_script" in p.command and str(self.folder) in p.command
        ]

    # Daemons

    def _configure(self) -> None:
        controller, *ports = _free_ports(1 + self.nodes)
        lines = [
            f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={PROCESSORS} RealMemory={MEMORY} Gres=gpu:{GPUS} State=UNKNOWN"
            for name, port in zip(self.names, ports, strict=True)
        ]
        lines += [
            "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 "
            "PreemptMode=REQUEUE",
            "PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 "
            "PreemptMode=OFF",
        ]
        text = CONFIGURATION.format(
            folder=self.folder,
            host=socket.gethostname(),
            port=controller,
            first_job=random.randrange(1, 50_000),
        )
        (self.folder / "slurm.conf").write_text(text + "\n".join(lines) + "\n")
        gpus = [self.folder / f"gpu{number}" for number in range(GPUS)]
        for gpu in gpus:  # Slurm wants device files
            os.mknod(gpu, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(
            f"NodeName=node[1-{self.nodes}] Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n"
        )

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.chmod(0o755)
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._spawn(
            "munged",
            [
                "munged",
                "--foreground",
                "--force",
                f"--key-file={key}",
                f"--socket={folder}/socket",
                f"--pid-file={folder}/pid",
                f"--log-file={folder}/log",
                f"--seed-file={folder}/seed",
            ],
        )
        self.wait((folder / "socket").exists, "munged")

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )
        self.daemons[name] = process.pid
        self._record()

    def _record(self) -> None:
        known = {"daemons": self.daemons, "namespaces": self.namespaces}
        (self.folder / RECORD).write_text(json.dumps(known))

    def _kill(self, name: str) -> None:
        pid = self.daemons.pop(name)
        send(pid, signal.SIGKILL)
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:  # started by another command
            time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    chosen = parser.parse_args()
    cluster = Cluster(chosen.folder, chosen.nodes)
    why = missing()
    if why is not None:
        parser.exit(2, f"{why}\n")
    record = chosen.folder / RECORD
    if record.exists():
        known = json.loads(record.read_text())
        cluster.daemons, cluster.namespaces = known["daemons"], known["namespaces"]
        cluster.stop()
    if chosen.action == "start":
        try:
            cluster.start()
        except FileExistsError as error:
            parser.exit(2, f"{error}\n")
        print(f"export SLURM_CONF={chosen.folder}/slurm.conf")


if __name__ == "__main__":
    main()
