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


@pytest.mark.parametrize("module", sorted(set(TORCH) - {"torch._tensor"}))
def test_torch_has_what_is_used_of_it(module: str) -> None:
    moved = sorted(set(TORCH[module]) - names_in(module))
    assert not moved, f"{module} has moved {', '.join(moved)}"


def test_torch_makes_wrapper_subclasses() -> None:
    """Its class is compiled: there is no source to read."""
    assert all(hasattr(torch.Tensor, name) for name in TORCH["torch._tensor"])


def test_a_name_that_moved_is_seen() -> None:
    assert "no_such_member" not in names_in("deepspeed.moe.layer")
