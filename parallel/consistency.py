"""Whether ranks agree: the first difference between what they are about to do, in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from parallel.collectives import any_rank, from_each
from parallel.mesh import Mesh


def first_difference(first: str | bytes, other: str, who: str, whose: str = "rank 0") -> str | None:
    """Describe the first key whose values differ between two JSON objects; None if none does.

    `who` has brought `other`, and `whose` is `first`.
    """
    theirs, ours = json.loads(first), json.loads(other)
    for key in dict.fromkeys([*theirs, *ours]):
        a, b = theirs.get(key, "nothing"), ours.get(key, "nothing")
        if a != b:
            return f"{who} differs from {whose}: {key} is {b} for {who} and {a} for {whose}"
    return None


def agree(mesh: Mesh, claims: Mapping[str, Any], among: list[int] | None = None) -> None:
    """Check that all ranks, or those of `among` that this rank is one of, have the same claims.

    Collective over all ranks. Raises RuntimeError naming the rank that differs, and in what.
    """
    mine = json.dumps(dict(claims))
    digest = int.from_bytes(hashlib.sha256(mine.encode()).digest()[:6])  # exact in fp64
    digests = from_each(mesh, digest)
    ranks = list(range(mesh.layout.world)) if among is None else among
    same = bool((digests[ranks] == digests[ranks[0]]).all())
    if not any_rank(mesh, not same):
        return
    texts: list[str] = [""] * mesh.layout.world
    dist.all_gather_object(texts, mine)
    for other in ranks:
        difference = first_difference(
            texts[ranks[0]], texts[other], f"rank {other}", f"rank {ranks[0]}"
        )
        if difference is not None:
            raise RuntimeError(difference)
    raise RuntimeError("other ranks differ from each other, and say in what")
