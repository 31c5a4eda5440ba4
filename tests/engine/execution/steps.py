"""Runs a model step by step as an executor would: tables, positions and lengths by hand."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.execution.inputs import StepInput
from engine.execution.kvcache import KvPool
from engine.execution.model import Model, load_model
from engine.execution.ops import load_ops
from engine.kvformats import block_layout

CPU = torch.device("cpu")


def load(
    path: Path,
    dtype: torch.dtype = torch.float32,
    *,
    device: torch.device = CPU,
    kernels: str = "torch",
    **options: Any,
) -> Model:
    return load_model(path, dtype=dtype, device=device, ops=load_ops(kernels), **options)


class Stepper:
    """A model, its KV pool, and what every sequence has computed so far."""

    def __init__(
        self,
        model: Model,
        *,
        rows: int = 8,
        max_tokens: int = 256,
        block_tokens: int = 16,
        kv_dtype: str = "fp32",
        seed: int = 0,
    ) -> None:
        self.model = model
        layout = block_layout(
            kv_dtype, model.shape.layers, model.kv_heads, model.shape.head_dim, block_tokens
        )
        blocks_per_row = -(-max_tokens // block_tokens)
        blocks = rows * blocks_per_row
        self.device, dtype = model.weights.embedding.device, model.weights.embedding.dtype
        self.pool = KvPool(layout, blocks + 1, device=self.device, dtype=dtype, rows=rows + 1)
        names = list(range(1, blocks + 1))
        random.Random(seed).shuffle(names)  # neighbours in a sequence are strangers in memory
        null = [0] * blocks_per_row
        starts = range(0, blocks, blocks_per_row)
        table = [null, *(names[start : start + blocks_per_row] for start in starts)]
        self.tables = self._int32(table)
        self.computed = [0] * (rows + 1)

    @torch.inference_mode()
    def step(
        self,
        decodes: Sequence[tuple[int, int]] = (),
        prefills: Sequence[tuple[int, list[int]]] = (),
    ) -> Tensor:
        """[tokens, vocab]: logits after each token; a share is (row from 1, token or chunk)."""
        shares = [(row, [token]) for row, token in decodes] + list(prefills)
        hidden = self.model.forward(self._input(shares, len(decodes)), self.pool)
        return self.model.logits(hidden)

    def _input(self, shares: list[tuple[int, list[int]]], decodes: int) -> StepInput:
        positions: list[int] = []
        for row, chunk in shares:
            positions += range(self.computed[row], self.computed[row] + len(chunk))
            self.computed[row] += len(chunk)
        rows = [row for row, _ in shares]
        starts = [0]
        for _, chunk in shares[decodes:]:
            starts.append(starts[-1] + len(chunk))
        tokens = torch.tensor([token for _, chunk in shares for token in chunk])
        return StepInput(
            tokens=tokens.to(self.device),
            positions=self._int32(positions),
            token_rows=self._int32([row for row, chunk in shares for _ in chunk]),
            tables=self.tables,
            rows=self._int32(rows),
            context=self._int32([self.computed[row] for row in rows]),
            starts=self._int32(starts),
            decodes=decodes,
            max_chunk=max((len(chunk) for _, chunk in shares[decodes:]), default=0),
            max_context=max(self.computed[row] for row in rows),
        )

    def _int32(self, numbers: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)
