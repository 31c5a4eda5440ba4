"""Norms, rotary embedding and gated activation: one pass over memory each, arithmetic in fp32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.execution.kernels.chip import require_kernels

TILE = 2048
"""Elements a program of four warps has in registers; rows shorter than that share one."""


@triton.jit
def _rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    total,
    rows,
    inner,
    outer_stride,
    inner_stride,
    residual_stride,
    eps,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    ADD: tl.constexpr,
):
    """Row r of x stands at r // inner * outer_stride + r % inner * inner_stride."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    valid = (row < rows)[:, None] & (column < N)[None, :]
    start = (row // inner).to(tl.int64) * outer_stride + (row % inner) * inner_stride
    numbers = tl.load(x + start[:, None] + column[None, :], mask=valid, other=0.0).to(tl.float32)
    dense = row.to(tl.int64)[:, None] * N + column[None, :]
    if ADD:
        there = row.to(tl.int64)[:, None] * residual_stride + column[None, :]
        numbers += tl.load(residual + there, mask=valid, other=0.0).to(tl.float32)
        rounded = numbers.to(total.dtype.element_ty)
        tl.store(total + dense, rounded, mask=valid)
        numbers = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(numbers * numbers, axis=1) / N + eps)
    factors = tl.load(weight + column, mask=column < N, other=0.0).to(tl.float32)
    normed = numbers * inverse[:, None] * factors[None, :]
    tl.store(out + dense, normed.to(out.dtype.element_ty), mask=valid)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., n] of up to three dimensions, with any strides but the last -> normed x, dense."""
    require_kernels(x)
    n = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x.numel() // n
    view = x if x.dim() == 3 else x.reshape(rows, 1, n)
    _normalise(view, None, weight, out, out, eps)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x [tokens, n], residual, weight, eps) -> (norm of their sum, the sum)."""
    require_kernels(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _normalise(x.unsqueeze(1), residual, weight, out, total, eps)
    return out, total


def _normalise(
    x: Tensor, residual: Tensor | None, weight: Tensor, out: Tensor, total: Tensor, eps: float
) -> None:
    outer, inner, n = x.shape
    if not outer * inner:
        return
    width = triton.next_power_of_2(n)
    rows = max(1, TILE // width)
    _rms_norm_kernel[(triton.cdiv(outer * inner, rows),)](
        x,
        x if residual is None else residual,
        weight,
        out,
        total,
        outer * inner,
        inner,
        x.stride(0),
        x.stride(1),
        n if residual is None else residual.stride(0),
        eps,
        N=n,
        WIDTH=width,
        ROWS=rows,
        ADD=residual is not None,
        num_warps=min(16, max(4, width // 1024)),
    )


@triton.jit
def _rope_kernel(
    q,
    k,
    positions,
    table,
    q_token,
    q_head,
    k_token,
    k_head,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_ROWS: tl.constexpr,
):
    """A program turns the heads of one token: HEAD_ROWS of q and of k at a time."""
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    real = channel < HALF
    angles = table + tl.load(positions + token).to(tl.int64) * (2 * HALF) + channel
    cos = tl.load(angles, mask=real, other=0.0)[None, :]
    sin = tl.load(angles + HALF, mask=real, other=0.0)[None, :]
    first = tl.program_id(1) * HEAD_ROWS
    heads = first + tl.arange(0, HEAD_ROWS)
    _turn(q + token * q_token, heads, q_head, channel, cos, sin, HEADS, HALF)
    if first < KV_HEADS:
        _turn(k + token * k_token, heads, k_head, channel, cos, sin, KV_HEADS, HALF)


@triton.jit
def _turn(base, heads, head_stride, channel, cos, sin, HEADS: tl.constexpr, HALF: tl.constexpr):
    valid = (heads < HEADS)[:, None] & (channel < HALF)[None, :]
    low = base + heads[:, None] * head_stride + channel[None, :]
    high = low + HALF
    a = tl.load(low, mask=valid, other=0.0).to(tl.float32)
    b = tl.load(high, mask=valid, other=0.0).to(tl.float32)
    tl.store(low, (a * cos - b * sin).to(base.dtype.element_ty), mask=valid)
    tl.store(high, (b * cos + a * sin).to(base.dtype.element_ty), mask=valid)


def rope(q: Tensor, k: Tensor, positions: Tensor, table: Tensor) -> None:
    """Rotate q [tokens, heads, dim] and k [tokens, kv_heads, dim] in place; see ops.Ops."""
    require_kernels(q)
    tokens, heads, dim = q.shape
    if not tokens:
        return
    width = triton.next_power_of_2(dim // 2)
    head_rows = min(triton.next_power_of_2(max(heads, k.shape[1])), max(1, TILE // width))
    _rope_kernel[(tokens, triton.cdiv(max(heads, k.shape[1]), head_rows))](
        q,
        k,
        positions,
        table,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        HEADS=heads,
        KV_HEADS=k.shape[1],
        HALF=dim // 2,
        WIDTH=width,
        HEAD_ROWS=head_rows,
    )


@triton.jit
def _silu_mul_kernel(gate_up, out, stride, n, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    valid = column < n
    gate = tl.load(gate_up + row * stride + column, mask=valid, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + n + column, mask=valid, other=0.0).to(tl.float32)
    small = tl.exp(-tl.abs(gate))  # never overflows
    silu = gate * tl.where(gate < 0, small, 1.0) / (1.0 + small)
    tl.store(out + row * n + column, (silu * up).to(out.dtype.element_ty), mask=valid)


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [tokens, 2 n] -> silu(gate) x up [tokens, n]."""
    require_kernels(gate_up)
    tokens, n = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((tokens, n), dtype=gate_up.dtype, device=gate_up.device)
    if tokens:
        tile = min(TILE, triton.next_power_of_2(n))
        _silu_mul_kernel[(tokens, triton.cdiv(n, tile))](
            gate_up, out, gate_up.stride(0), n, TILE=tile
        )
    return out
