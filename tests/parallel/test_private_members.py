"""DeepSpeed and torch still have what is used of them without a promise."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest
import torch

from parallel.private_members import DEEPSPEED, TORCH


def names_in(module: str) -> set[str]:
    """Every name, attribute, argument and text of a module's source."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(importlib.import_module(module)))):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # an attribute that is made lazily is made by its name
    return found


@pytest.mark.parametrize("module", sorted(DEEPSPEED))
def test_deepspeed_has_what_is_used_of_it(module: str) -> None:
    moved = sorted(set(DEEPSPEED[module]) - names_in(module))
    assert not moved, f"{module} has moved {', '.join(moved)}"


COMPILED: dict[str, object] = {
    "torch.Tensor": torch.Tensor,
    "torch._C": torch._C,
    "torch._C._distributed_c10d": torch._C._distributed_c10d,
    "torch.ops.aten": torch.ops.aten,
}
"""What has no source to read."""


@pytest.mark.parametrize("module", sorted(set(TORCH) - set(COMPILED)))
def test_torch_has_what_is_used_of_it(module: str) -> None:
    moved = sorted(set(TORCH[module]) - names_in(module))
    assert not moved, f"{module} has moved {', '.join(moved)}"


@pytest.mark.parametrize("name", COMPILED)
def test_torch_has_what_is_used_of_its_compiled_parts(name: str) -> None:
    moved = [member for member in TORCH[name] if not hasattr(COMPILED[name], member)]
    assert not moved, f"{name} has moved {', '.join(moved)}"


def test_a_name_that_moved_is_seen() -> None:
    assert "no_such_member" not in names_in("deepspeed.moe.layer")
