"""Pools with sequences in them, and steps over those, for tests of the kernels."""

import random

import torch
from torch import Tensor

from engine.execution.inputs import StepInput
from engine.execution.kvcache import KvPool
from engine.execution.reference import read_sequence
from engine.kvformats import block_layout

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAYER = 1
"""Of two: what is before and after a layer must stay as it is."""


class Cache:
    """A pool full of NaN, so that what nobody wrote shows, and tables of sequences in rows 1, 2..

    Row 0 is that of decodes that fill a captured graph up: its table names the null block.
    """

    def __init__(
        self,
        kv_dtype: str,
        contexts: list[int],
        *,
        kv_heads: int,
        dim: int,
        block_tokens: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device = DEVICE,
        seed: int = 0,
    ) -> None:
        needed = [-(-context // block_tokens) for context in contexts]
        names = list(range(1, 1 + sum(needed)))
        random.Random(seed).shuffle(names)  # neighbours in a sequence are strangers in memory
        tables = torch.zeros((1 + len(contexts), max(needed)), dtype=torch.int32)
        for row, count in enumerate(needed, 1):
            tables[row, :count] = torch.tensor([names.pop() for _ in range(count)])
        self.tables, self.device = tables.to(device), device
        layout = block_layout(kv_dtype, 2, kv_heads, dim, block_tokens)
        rows = len(contexts) + 1
        self.pool = KvPool(layout, 1 + sum(needed), device=device, dtype=dtype, rows=rows)
        self.pool.buffer[1:] = 0xFF
        if self.pool.tail is not None:
            self.pool.tail[1:] = torch.nan

    def step(
        self,
        decodes: list[tuple[int, int]],
        prefills: list[tuple[int, int, int]],
        padding: int = 0,
        max_context: int = 0,
    ) -> StepInput:
        """Decodes (row, context) and chunks (row, context, tokens); `padding` decodes fill up."""
        decodes = [*decodes, *[(0, 1)] * padding]
        chunks = [(row, context, 1) for row, context in decodes] + prefills
        positions = [at for _, context, chunk in chunks for at in range(context - chunk, context)]
        starts = [0]
        for _, _, chunk in prefills:
            starts.append(starts[-1] + chunk)
        return StepInput(
            tokens=torch.zeros(len(positions), dtype=torch.int64, device=self.device),
            positions=self._int32(positions),
            token_rows=self._int32([row for row, _, chunk in chunks for _ in range(chunk)]),
            tables=self.tables,
            rows=self._int32([row for row, _, _ in chunks]),
            context=self._int32([context for _, context, _ in chunks]),
            starts=self._int32(starts),
            decodes=len(decodes),
            max_chunk=max((chunk for _, _, chunk in prefills), default=0),
            max_context=max(max_context, *(context for _, context, _ in chunks)),
        )

    def _int32(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)


def fused(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """Random q, k, v as a projection gives them: views of one tensor. Some channels of k are loud,
    as those of models are, and values of some heads are far from others'."""
    x = torch.randn(tokens, heads + 2 * kv_heads, dim)
    _, k, v = x.split((heads, kv_heads, kv_heads), dim=1)
    k *= 1 + 7 * (torch.rand(kv_heads, dim) < 0.05)
    v *= 4.0 ** torch.randint(-3, 3, (kv_heads, 1))
    return list(x.to(DEVICE, dtype).split((heads, kv_heads, kv_heads), dim=1))


def dense_attention(q: Tensor, pool: KvPool, step: StepInput, scale: float, window: int) -> Tensor:
    """Attention over what the pool holds, token by token in fp64: q [tokens, heads, dim]."""
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    rows, positions = step.token_rows.tolist(), step.positions.tolist()
    ends = dict(zip(step.rows.tolist(), step.context.tolist(), strict=True))
    for row in set(rows):
        keys, values = read_sequence(
            pool, LAYER, step.tables[row], row, ends[row], dtype=torch.float64
        )
        group = q.shape[1] // keys.shape[1]
        keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
        mine = [at for at, of in enumerate(rows) if of == row]
        at = torch.tensor([positions[token] for token in mine], device=q.device)
        scores = torch.einsum("thd,nhd->htn", q[mine].double(), keys) * scale
        distance = at[:, None] - torch.arange(ends[row], device=q.device)
        hidden = distance < 0
        if window:
            hidden |= distance >= window
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[mine] = torch.einsum("htn,nhd->thd", weights, values)
    return out


def error(out: Tensor, expected: Tensor) -> float:
    """||out - expected|| / ||expected||."""
    expected = expected.double()
    return float((out.double() - expected).norm() / expected.norm())
