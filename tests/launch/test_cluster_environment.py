"""Every launcher's environment is read, and names the same rendezvous on all ranks."""

from __future__ import annotations

import pytest

from launch.cluster_environment import (
    FIRST_PORT,
    PORTS,
    ClusterEnvironment,
    announce,
    announced,
    discover,
    port_of,
)
from launch.hostlist import expand_hosts
from model.errors import UserError

SRUN = {
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[03-04,9]",
}
MPIRUN = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_ranks_over_machines_meet_at_one_port() -> None:
    variables = {**MPIRUN, "MASTER_ADDR": "head", "PMIX_NAMESPACE": "17"}
    others = {**variables, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    met = discover(variables).master
    assert met == discover(others).master == ("head", port_of("17"))
    with pytest.raises(UserError, match="MASTER_PORT: not set"):
        announce(discover({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "head"}), {})


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 0, 1, 1)),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}, (3, 1, 4, 2)),
        (
            {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"},
            (3, 3, 4, 4),
        ),
        (SRUN, (9, 1, 11, 3)),
        ({**SRUN, "RANK": "1", "WORLD_SIZE": "2"}, (1, 1, 2, 2)),  # torchrun under srun
        ({**MPIRUN, "MASTER_ADDR": "host"}, (3, 1, 4, 2)),
        ({**SRUN, **MPIRUN, "MASTER_ADDR": "host"}, (3, 1, 4, 2)),  # mpirun in an allocation
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, (0, 0, 1, 1)),  # no srun
    ],
)
def test_a_launchers_environment_is_read(
    variables: dict[str, str], expected: tuple[int, ...]
) -> None:
    found = discover(variables)
    assert (found.rank, found.local_rank, found.world, found.local_world) == expected


def test_all_ranks_of_a_slurm_step_derive_one_meeting_point() -> None:
    first = discover(SRUN).master
    other = discover({**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"})
    assert first == other.master and first is not None
    assert first[0] == "gpu03" and FIRST_PORT <= first[1] < FIRST_PORT + PORTS
    for changed in ({"SLURM_RESTART_COUNT": "1"}, {"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "8"}):
        assert discover({**SRUN, **changed}).master != first  # no meeting with another start's
    alone = {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "11", "SLURM_NODEID": "0"}
    assert (discover(alone).master or ("",))[0] == "127.0.0.1"


def test_what_the_user_names_counts_more() -> None:
    environment = {"MASTER_ADDR": "head-ib0", "MASTER_PORT": "4000"}
    announce(discover(SRUN), environment)
    assert environment == {
        "MASTER_ADDR": "head-ib0",
        "MASTER_PORT": "4000",
        "RANK": "9",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "11",
    }
    fresh: dict[str, str] = {}
    announce(ClusterEnvironment(0, 0, 1, 1), fresh)
    assert fresh["MASTER_ADDR"] == "127.0.0.1" and int(fresh["MASTER_PORT"]) > 0


def test_a_run_leaves_the_environment_as_it_was() -> None:
    for before in ({}, {"RANK": "0", "MASTER_ADDR": "head"}):
        environment = dict(before)
        with (
            pytest.raises(RuntimeError, match="lightning"),
            announced(ClusterEnvironment(0, 0, 1, 1), environment),
        ):
            assert environment["WORLD_SIZE"] == "1"
            raise RuntimeError("lightning")
        assert environment == before


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("node[1-4]", "node1"),
        ("node[01-04,07],login", "node01"),
        ("rack[1-2]-node[01-16,20],login", "rack1-node01"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert expand_hosts(nodes)[0] == first


def test_mpirun_over_machines_without_mpi4py_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    with pytest.raises(UserError, match=r"mpirun -x MASTER_ADDR=HOST.*forescale\[mpi\]"):
        discover(MPIRUN)


def test_more_tasks_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match=r"srun: 3 tasks on this node and 2 GPUs: .*=2 or --gres"):
        discover({**SRUN, "SLURM_GPUS_ON_NODE": "2"})
    assert discover({**SRUN, "SLURM_GPUS_ON_NODE": "4"}).local_world == 3


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RANK", "x", "RANK: expected a whole number, 0 to 1, got 'x'"),
        ("RANK", "5", "RANK: expected a whole number, 0 to 1, got '5'"),
        ("WORLD_SIZE", "0", "WORLD_SIZE: expected a whole number, 1 or more, got '0'"),
        ("MASTER_PORT", "abc", "MASTER_PORT: expected a whole number, 1 to 65535, got 'abc'"),
    ],
)
def test_a_launchers_wrong_variable_is_named(name: str, value: str, expected: str) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "29500", name: value}
    with pytest.raises(UserError) as caught:
        discover(variables)
    assert str(caught.value) == expected
