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
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare")
INSTALL = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
PROCESSORS, GPUS, MEMORY = 96, 8, 10_000
FOLDER = Path("/tmp/forescale-slurm")
RECORD = "daemons.json"

CONFIGURATION = """
ClusterName=forescale
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
    """Why no cluster can run here, with the command that mends it; None if one can."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if absent:
        return f"no {absent[0]} here: {INSTALL}"
    if os.geteuid() != 0:
        return "a cluster of namespaces takes root"
    return None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    """Below those that jobs meet at."""
    ports: list[int] = []
    for port in range(17000, 20000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports")


@dataclass
class Cluster:
    """Its nodes are node1, node2, ..."""

    folder: Path = FOLDER
    nodes: int = 4
    daemons: dict[str, int] = field(default_factory=dict)
    """Process ids by name."""
    namespaces: list[str] = field(default_factory=list)
    """Of mounts: one for each node, in which are its daemon and its tasks."""

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf")}

    @property
    def names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    def start(self) -> None:
        if self.folder.exists():
            if any(self.folder.iterdir()) and not (self.folder / RECORD).exists():
                raise FileExistsError(f"{self.folder} holds other files; choose an empty folder")
            shutil.rmtree(self.folder)
        for name in (
            "state",
            "munge",
            *(f"{n}/{kind}" for n in self.names for kind in ("spool", "tmp")),
        ):
            (self.folder / name).mkdir(parents=True)
        self._configure()
        self._start_munge()
        self._spawn("slurmctld", ["slurmctld", "-D", "-i"])
        for name in self.names:
            self.start_node(name)
        self.wait(lambda: set(self.states().values()) == {"IDLE"}, "the nodes to be idle")

    def stop(self) -> None:
        """Everything, the jobs' processes too."""
        for name in list(self.daemons):
            self._kill(name)
        for folder in Path("/proc").glob("[0-9]*"):
            if _namespace(int(folder.name)) in self.namespaces:
                _signal(int(folder.name), signal.SIGKILL)
        self.daemons.clear()

    def start_node(self, name: str) -> None:
        hosts = self.folder / name / "hosts"
        lines = ["127.0.0.1 localhost", *(f"127.0.0.1 {node}" for node in self.names)]
        hosts.write_text("\n".join(lines) + "\n")
        script = (
            'hostname "$1" && mount --bind "$2" /etc/hosts && mount -t tmpfs none /dev/shm '
            '&& exec slurmd -D -N "$1"'
        )
        self._spawn(
            name,
            [
                "unshare",
                "--uts",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                "sh",
                name,
                str(hosts),
            ],
        )
        here = _namespace(os.getpid())
        self.wait(lambda: _namespace(self.daemons[name]) not in (None, here), "a node's namespace")
        self.namespaces.append(str(_namespace(self.daemons[name])))
        self._record()

    def inside(self, name: str, *command: str) -> None:
        """Run on a node, with its mounts."""
        self.run("nsenter", f"--target={self.daemons[name]}", "--mount", "--uts", *command)

    def kill_daemon(self, name: str) -> None:
        """Only a node's slurmd: its steps go on."""
        self._kill(name)

    # Jobs

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> str:
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
        """What scontrol says of it; {} when it is forgotten."""
        text = self.run("scontrol", "-o", "show", "job", number, check=False)
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def states(self) -> dict[str, str]:
        """Of the nodes."""
        text = self.run("scontrol", "-o", "show", "node", check=False)
        return dict(re.findall(r"NodeName=(\S+).*?State=([A-Z]+)", text))

    def wait(self, condition: object, what: str, seconds: float = 60) -> None:
        assert callable(condition)
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds:g} s for {what}: {self.states()}")
            time.sleep(0.1)

    def tasks(self, word: str) -> list[Process]:
        """Processes of steps on this cluster's nodes whose command has `word`."""
        return [
            process
            for process in _processes()
            if word in process.command
            and "srun " not in process.command
            and str(self.folder) in process.environment
            and "SLURM_STEP_NUM_TASKS=" in process.environment
        ]

    def script(self, job: str) -> list[int]:
        """The processes of a job's batch script: the shell, and what it does in the background."""
        return [
            p.pid
            for p in _processes()
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
        text = CONFIGURATION.format(folder=self.folder, host=socket.gethostname(), port=controller)
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
        _signal(pid, signal.SIGKILL)
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:  # started by another command
            time.sleep(0.2)


@dataclass(frozen=True)
class Process:
    pid: int
    command: str
    environment: str

    @property
    def rank(self) -> int:
        match = re.search(r"SLURM_PROCID=(\d+)", self.environment)
        return int(match[1]) if match else -1

    @property
    def node(self) -> str:
        match = re.search(r"SLURMD_NODENAME=(\w+)", self.environment)
        return match[1] if match else ""


def _processes() -> list[Process]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (folder / "environ").read_bytes().replace(b"\0", b"\n").decode()
        except (OSError, UnicodeDecodeError):
            continue
        found.append(Process(int(folder.name), command, environment))
    return found


def _namespace(pid: int) -> str | None:
    """Of a process's mounts; None where there is no such process."""
    try:
        return str(Path(f"/proc/{pid}/ns/mnt").readlink())
    except OSError:
        return None


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


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
