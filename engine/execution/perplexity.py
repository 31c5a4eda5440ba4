"""Perplexity of a text through the paged KV cache: what a KV format costs in quality.

The text is cut into windows, each computed chunk by chunk as prompts are: a chunk's keys and values
are written to the pool in the format under test and read back from there, its own included. So
every token sees what it would see when served, and formats differ in nothing else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp

import torch

from engine.config import EngineSettings
from engine.execution.inputs import StepInput
from engine.execution.kvcache import KvPool
from engine.execution.model import Model, load_model
from engine.execution.ops import load_ops
from engine.execution.sizing import DTYPES, resolve_device
from engine.kvformats import block_layout
from traces.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model foresaw a text."""

    kv_dtype: str
    tokens: int
    """Predicted tokens: of each window all but the first."""
    nats: float
    """Sum over them of -ln(probability)."""
    kv_bytes_per_token: float
    """Memory that a token takes in this format, all layers."""

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens)."""
        return exp(self.nats / self.tokens)


def load_for_perplexity(settings: EngineSettings) -> Model:
    """The model alone, as the settings say, on one device.

    Raises:
        ConfigError: for a model or device that cannot be had.
    """
    settings = resolve_device(settings)
    return load_model(
        settings.model,
        dtype=DTYPES[settings.dtype],
        device=torch.device(settings.device),
        ops=load_ops(settings.kernels),
        weights=settings.weights,
        seed=settings.seed,
    )


@torch.inference_mode()
def measure_perplexity(
    model: Model,
    tokens: Sequence[int],
    kv_dtype: str,
    *,
    window_tokens: int = 1024,
    chunk_tokens: int = 128,
    block_tokens: int = 16,
) -> Perplexity:
    """Perplexity of `tokens` in windows, the last of them whole or left out.

    Raises:
        ConfigError: for a text shorter than a window, a window longer than the model allows, or a
            format that cannot hold the model's head_dim.
    """
    if window_tokens > len(model.rope):
        raise ConfigError(
            f"window_tokens: must be at most {len(model.rope)} for this model, got {window_tokens}"
        )
    if len(tokens) < window_tokens:
        raise ConfigError(f"text: {len(tokens)} tokens, a window takes {window_tokens}")
    weights = model.weights.embedding
    device = weights.device
    shape = model.shape
    layout = block_layout(kv_dtype, shape.layers, model.kv_heads, shape.head_dim, block_tokens)
    blocks = -(-window_tokens // block_tokens)
    pool = KvPool(layout, blocks + 1, device=device, dtype=weights.dtype, rows=2)
    tables = torch.zeros((2, blocks), dtype=torch.int32, device=device)
    tables[1] = torch.arange(1, blocks + 1)
    nats, predicted = 0.0, 0
    for start in range(0, len(tokens) - window_tokens + 1, window_tokens):
        window = torch.tensor(tokens[start : start + window_tokens], device=device)
        for step in _chunks(window, tables, chunk_tokens):
            logits = model.logits(model.forward(step, pool))
            first = int(step.positions[0])
            wanted = window[first + 1 : first + 1 + len(logits)]
            nats += float(
                torch.nn.functional.cross_entropy(
                    logits[: len(wanted)].double(), wanted, reduction="sum"
                )
            )
            predicted += len(wanted)
    return Perplexity(kv_dtype, predicted, nats, layout.block_bytes / block_tokens)


def _chunks(window: torch.Tensor, tables: torch.Tensor, chunk_tokens: int) -> Iterator[StepInput]:
    """The steps that compute one window, which has row 1."""

    def int32(*numbers: int) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=window.device)

    for first in range(0, len(window), chunk_tokens):
        chunk = window[first : first + chunk_tokens]
        end = first + len(chunk)
        yield StepInput(
            tokens=chunk,
            positions=torch.arange(first, end, dtype=torch.int32, device=window.device),
            token_rows=torch.ones_like(chunk, dtype=torch.int32),
            tables=tables,
            rows=int32(1),
            context=int32(end),
            starts=int32(0, len(chunk)),
            decodes=0,
            max_chunk=len(chunk),
            max_context=end,
        )
