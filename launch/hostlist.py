"""Slurm's lists of hosts, such as `rack[1-2]-node[01-16,20],login`."""

from __future__ import annotations

import re
from itertools import product

from model.errors import UserError

_NAME = re.compile(r"(?:[^,\[\]]|\[[^\[\]]+\])+")
"""One name of a list; the commas in its brackets do not end it."""


def expand_hosts(hosts: str) -> list[str]:
    """Return the hosts of a list in Slurm's order, as `scontrol show hostnames` prints them.

    `n[08-10,12],login` is n08, n09, n10, n12, login; of several brackets the last varies fastest.
    Raises UserError where it is no such list.
    """
    names = _NAME.findall(hosts)
    if not names or ",".join(names) != hosts:
        raise _unreadable(hosts)
    expanded: list[str] = []
    for name in names:
        pieces = re.split(r"\[(.+?)\]", name)  # outside and inside of brackets take turns
        choices = [_numbers(p, hosts) if i % 2 else [p] for i, p in enumerate(pieces)]
        expanded += map("".join, product(*choices))
    return expanded


def _numbers(inside: str, hosts: str) -> list[str]:
    """Return the numbers of `01-03,20`, each as wide as the first of its range is written."""
    numbers: list[str] = []
    for part in inside.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise _unreadable(hosts)
        first, last = match[1], match[2] or match[1]
        numbers += [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    return numbers


def _unreadable(hosts: str) -> UserError:
    return UserError(f"the list of hosts {hosts!r} cannot be read")
