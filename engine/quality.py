"""What a KV format costs in quality and gains in memory, on a text of the user's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.config import EngineSettings
from engine.kvformats import KV_DTYPES
from engine.loading import load_tokenizer, not_installed
from traces.errors import ConfigError

FORMATS = ("bf16", "int8", "fp8_token_head", "fp8", "k8v4", "int4_channel", "int4")
"""Measured unless others are asked for; the first is what the others are compared with."""


@dataclass(frozen=True, slots=True)
class Quality:
    """One format on one text."""

    kv_dtype: str
    tokens: int
    """Predicted."""
    perplexity: float
    more: float
    """Perplexity above that of the first format, as a share of it."""
    kv_bytes_per_token: float
    room: float
    """Tokens in the memory that holds one of the first format."""


def measure_formats(
    settings: EngineSettings,
    text: str,
    kv_dtypes: Sequence[str] = FORMATS,
    *,
    max_tokens: int,
    window_tokens: int,
) -> Iterator[Quality]:
    """Perplexity of the text's first `max_tokens` tokens in every format, one after the other.

    Raises:
        ConfigError: for an unknown format, a text shorter than a window, and a model that cannot
            be loaded.
    """
    for kv_dtype in kv_dtypes:
        if kv_dtype not in KV_DTYPES:
            raise ConfigError(f"kv dtype {kv_dtype!r} is unknown; known: {', '.join(KV_DTYPES)}")
    tokens = load_tokenizer(settings.model).encode(text)[:max_tokens]
    try:
        from engine.execution.perplexity import load_for_perplexity, measure_perplexity
    except ModuleNotFoundError as missing:
        raise not_installed(missing) from None
    model = load_for_perplexity(settings)
    first = None
    for kv_dtype in kv_dtypes:
        found = measure_perplexity(
            model,
            tokens,
            kv_dtype,
            window_tokens=window_tokens,
            block_tokens=settings.cache.block_tokens,
        )
        first = first or found
        yield Quality(
            kv_dtype,
            found.tokens,
            found.perplexity,
            found.perplexity / first.perplexity - 1,
            found.kv_bytes_per_token,
            first.kv_bytes_per_token / found.kv_bytes_per_token,
        )
