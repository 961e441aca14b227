"""Triton kernels for what is bound by memory, imported where Triton is there.

Each reads its input once, computes in fp32, and writes its result once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Elements that a program computes."""


@triton.jit
def _swiglu(x, y, count, width, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < count
    gate_at = at + (at // width) * width
    gate = tl.load(x + gate_at, inside, other=0.0).to(tl.float32)
    value = tl.load(x + gate_at + width, inside, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * value
    tl.store(y + at, result.to(y.dtype.element_ty), inside)


@triton.jit
def _swiglu_backward(gradient, x, result, count, width, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < count
    gate_at = at + (at // width) * width
    gate = tl.load(x + gate_at, inside, other=0.0).to(tl.float32)
    value = tl.load(x + gate_at + width, inside, other=0.0).to(tl.float32)
    upstream = tl.load(gradient + at, inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    swish = gate * sigmoid
    grad_gate = upstream * value * (sigmoid + swish * (1.0 - sigmoid))
    tl.store(result + gate_at, grad_gate.to(result.dtype.element_ty), inside)
    grad_value = upstream * swish
    tl.store(result + gate_at + width, grad_value.to(result.dtype.element_ty), inside)


@triton.jit
def _rotate(
    x,
    result,
    cos,
    sin,
    sign,
    count,
    length,
    heads_a_token,
    heads,
    rotated,
    half: tl.constexpr,
    padded: tl.constexpr,
    rows: tl.constexpr,
):
    row = tl.program_id(0) * rows + tl.arange(0, rows)[:, None]
    column = tl.arange(0, padded)[None, :]
    inside = (row < count) & (column < half)
    first = tl.load(x + row * (2 * half) + column, inside, other=0.0).to(tl.float32)
    second = tl.load(x + row * (2 * half) + half + column, inside, other=0.0).to(tl.float32)
    angle_at = ((row // heads_a_token) % length) * half + column
    turns = inside & ((row % heads) < rotated)
    c = tl.load(cos + angle_at, turns, other=1.0)
    s = tl.load(sin + angle_at, turns, other=0.0) * sign
    into = result + row * (2 * half) + column
    tl.store(into, (first * c - second * s).to(result.dtype.element_ty), inside)
    tl.store(into + half, (first * s + second * c).to(result.dtype.element_ty), inside)


@triton.jit
def _gathered_sum(
    rows, index, gates, y, size, choices: tl.constexpr, weighted: tl.constexpr, block: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < size
    total = tl.zeros([block], tl.float32)
    for choice in tl.static_range(choices):
        row = tl.load(index + token * choices + choice)
        value = tl.load(rows + row * size + column, inside, other=0.0).to(tl.float32)
        if weighted:
            value = value * tl.load(gates + token * choices + choice).to(tl.float32)
        total += value
    tl.store(y + token * size + column, total.to(y.dtype.element_ty), inside)


@triton.jit
def _scattered_product(
    gradient,
    rows,
    choice_of_row,
    gates,
    grad_rows,
    grad_gates,
    size,
    choices,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    choice = tl.load(choice_of_row + row)
    gate = tl.load(gates + choice).to(tl.float32)
    dot = tl.zeros([block], tl.float32)
    for first in range(0, size, block):
        column = first + tl.arange(0, block)
        inside = column < size
        upstream = tl.load(gradient + (choice // choices) * size + column, inside, other=0.0)
        upstream = upstream.to(tl.float32)
        dot += upstream * tl.load(rows + row * size + column, inside, other=0.0).to(tl.float32)
        scaled = (upstream * gate).to(grad_rows.dtype.element_ty)
        tl.store(grad_rows + row * size + column, scaled, inside)
    tl.store(grad_gates + choice, tl.sum(dot, 0).to(grad_gates.dtype.element_ty))


def gathered_sum(rows: Tensor, index_NK: Tensor, gates_NK: Tensor | None) -> Tensor:
    """Return y_n = sum_k gates_nk * rows[index_nk], [N, D]; without gates they count as one."""
    (tokens, choices), size = index_NK.shape, rows.shape[1]
    y = rows.new_empty(tokens, size)
    grid = (tokens, triton.cdiv(size, BLOCK))
    gates = index_NK if gates_NK is None else gates_NK
    with torch.cuda.device(y.device):
        _gathered_sum[grid](rows, index_NK, gates, y, size, choices, gates_NK is not None, BLOCK)
    return y


def scattered_product(
    gradient_ND: Tensor, rows: Tensor, choice_of_row: Tensor, gates_NK: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `gathered_sum` for its rows and gates.

    choice_of_row counts, for each row, the choices n * K + k: the inverse of the sum's index.
    """
    grad_rows, grad_gates = torch.empty_like(rows), torch.empty_like(gates_NK)
    with torch.cuda.device(rows.device):
        _scattered_product[(len(rows),)](
            gradient_ND,
            rows,
            choice_of_row,
            gates_NK,
            grad_rows,
            grad_gates,
            rows.shape[1],
            gates_NK.shape[1],
            BLOCK,
        )
    return grad_rows, grad_gates


def swiglu(gate_value: Tensor) -> Tensor:
    """Return silu(gate) * value [..., F] of [..., gate | value]."""
    width = gate_value.shape[-1] // 2
    y = gate_value.new_empty(*gate_value.shape[:-1], width)
    with torch.cuda.device(y.device):
        _swiglu[(triton.cdiv(y.numel(), BLOCK),)](gate_value, y, y.numel(), width, BLOCK)
    return y


def swiglu_backward(gradient: Tensor, gate_value: Tensor) -> Tensor:
    """Return the gradient of [..., gate | value]."""
    result, count = torch.empty_like(gate_value), gradient.numel()
    with torch.cuda.device(result.device):
        _swiglu_backward[(triton.cdiv(count, BLOCK),)](
            gradient, gate_value, result, count, gradient.shape[-1], BLOCK
        )
    return result


def rotate(x: Tensor, cos: Tensor, sin: Tensor, rotated: int, sign: float) -> Tensor:
    """Rotate the first `rotated` heads of each group of x [B, T, groups, heads, D]; copy the rest.

    cos and sin [T, D / 2] are of the angles, which are multiplied by `sign`, 1 or -1.
    """
    _, length, groups, heads, size = x.shape
    result, half, count = torch.empty_like(x), size // 2, x.numel() // size
    padded = triton.next_power_of_2(half)
    rows = max(1, BLOCK // padded)
    with torch.cuda.device(x.device):
        _rotate[(triton.cdiv(count, rows),)](
            x,
            result,
            cos,
            sin,
            sign,
            count,
            length,
            groups * heads,
            heads,
            rotated,
            half,
            padded,
            rows,
        )
    return result
