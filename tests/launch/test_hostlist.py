"""Slurm's lists of hosts are read as `scontrol show hostnames` reads them."""

from __future__ import annotations

import pytest

from launch.hostlist import expand_hosts
from model.errors import UserError


@pytest.mark.parametrize(
    ("hosts", "expanded"),
    [
        ("node7", ["node7"]),
        ("node7,node9", ["node7", "node9"]),
        ("node[1-4]", ["node1", "node2", "node3", "node4"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("node[01-03,07],login", ["node01", "node02", "node03", "node07", "login"]),
        ("n[098-101],m1", ["n098", "n099", "n100", "n101", "m1"]),
        ("n[08-10],n[8-9]", ["n08", "n09", "n10", "n8", "n9"]),
        ("n[9-010]", ["n9", "n10"]),
        ("a[1-2][3-4]", ["a13", "a14", "a23", "a24"]),
        ("n[1-2]x", ["n1x", "n2x"]),
        (
            "rack[1-2]-node[01-02,20],login",
            [
                "rack1-node01",
                "rack1-node02",
                "rack1-node20",
                "rack2-node01",
                "rack2-node02",
                "rack2-node20",
                "login",
            ],
        ),
    ],
)
def test_a_list_of_hosts_is_expanded(hosts: str, expanded: list[str]) -> None:
    assert expand_hosts(hosts) == expanded


@pytest.mark.parametrize("hosts", ["", "n[1", "n1]", "n[]", "n[5-3]", "n[a-b]", "a,,b", "n[1,]"])
def test_what_is_no_list_of_hosts_is_refused(hosts: str) -> None:
    with pytest.raises(UserError, match=r"the list of hosts '.*' cannot be read"):
        expand_hosts(hosts)
