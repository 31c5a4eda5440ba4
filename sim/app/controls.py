"""The page's controls as data: what each is called, what it may be, which setting it states.

A control left at its default states nothing, so that the page's defaults are the scenario's, and
the way of serving (`preset`) decides what nobody else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from calibration.hardware import gpus, model_cards
from calibration.profiles import Profile
from engine.kvformats import KV_DTYPES
from engine.shapes import WEIGHT_DTYPES
from sim.economics.settings import CONTRACTS
from sim.kinds import KINDS

TIMES: Final = "×"  # noqa: RUF001 the multiplication sign, as in print

USUAL: Final = ""
"""Of a menu: nothing is stated."""


@dataclass(frozen=True, slots=True)
class Slider:
    """One of a row of values; its own value is the place in the row."""

    name: str
    label: str
    hint: str
    values: tuple[Any, ...]
    """None: nothing is stated."""
    texts: tuple[str, ...]
    """Each value with its unit."""
    start: int = 0
    """The default's place."""
    setting: str = ""
    """What it states; empty: more than one setting, see `sim.app.stated`."""


@dataclass(frozen=True, slots=True)
class Menu:
    """One of a list."""

    name: str
    label: str
    hint: str
    options: tuple[tuple[str, str], ...]
    """Value and text."""
    start: str = USUAL
    setting: str = ""


@dataclass(frozen=True, slots=True)
class Number:
    """A number that may be left open."""

    name: str
    label: str
    hint: str
    unit: str
    setting: str
    per_unit: float = 1.0
    """The setting's units in one of the control's."""
    open: str = "no limit"
    """Shown where it is left open."""


Control = Slider | Menu | Number


def _counts(setting: str, values: Sequence[int | None], unit: str, none: str) -> dict[str, Any]:
    texts = [none if value is None else f"{value:,} {unit}" for value in values]
    return {"setting": setting, "values": tuple(values), "texts": tuple(texts)}


RATES: Final = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
RATES_MORE: Final = (48.0, 64.0, 96.0, 128.0)
REPLICAS: Final = (*range(1, 13), 14, 16, 20, 24, 28, 32, 48, 64)
SEQUENCES: Final = (None, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
STEP_TOKENS: Final = (None, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
CACHE_TOKENS: Final = (None, *(2**n for n in range(13, 24)))
CPU_GIB: Final = (4, 8, 16, 32, 64, 128, 256, 512)

RATE: Final = Slider(
    "rate",
    "Rate",
    "The same requests, this many times as fast.",
    (*RATES, *RATES_MORE),
    tuple(f"{TIMES} {value:g}" for value in (*RATES, *RATES_MORE)),
    RATES.index(1.0),
)
TRACE_RATE: Final = Number(
    "trace_rate",
    "Arrivals",
    "Only for a trace that has lengths but no times.",
    "requests/s",
    "trace.rate_per_s",
    open="as traced",
)
REPLICA_COUNT: Final = Slider(
    "replicas",
    "Replicas",
    "Engine instances; each has the GPUs below.",
    REPLICAS,
    tuple(f"{count} replica{'s' * (count != 1)}" for count in REPLICAS),
    setting="cluster.replicas",
)
TP: Final = Menu(
    "tp",
    "GPUs a replica",
    "Tensor parallel: the model is split over them.",
    tuple((str(count), str(count)) for count in (1, 2, 4, 8)),
)
WEIGHTS: Final = Menu(
    "weights", "Weights", "Format of the layers' weights.", tuple((n, n) for n in WEIGHT_DTYPES)
)
KV_DTYPE: Final = Menu(
    "kv_dtype", "KV dtype", "Format of the KV cache.", tuple((name, name) for name in KV_DTYPES)
)
PRESET: Final = Menu(
    "preset",
    "Way of serving",
    "What everything below starts from.",
    (
        ("vllm", "vllm: chunked prefill, continuous"),
        ("vllm-v0", "vllm-v0: prefills first, whole"),
        ("orca", "orca: whole prompts, contiguous KV"),
        ("static", "static: batches run to their end"),
    ),
    "vllm",
    "preset",
)
MAX_SEQUENCES: Final = Slider(
    "max_num_seqs",
    "Sequences at once",
    "Most that run together; usual: as vLLM has it for the GPU.",
    **_counts("scheduler.max_num_seqs", SEQUENCES, "sequences", "usual"),
)
MAX_TOKENS: Final = Slider(
    "max_num_batched_tokens",
    "Tokens a step",
    "Budget of one step, prompts and answers together.",
    **_counts("scheduler.max_num_batched_tokens", STEP_TOKENS, "tokens", "usual"),
)
CACHE: Final = Slider(
    "cache_tokens",
    "KV cache",
    "Room of a replica; usual: what its memory holds.",
    CACHE_TOKENS,
    tuple("usual" if n is None else f"{n // 1024:,} ki tokens" for n in CACHE_TOKENS),
)
PREFIX_CACHING: Final = Menu(
    "prefix_caching",
    "Prefix cache",
    "Keep computed blocks for requests that begin alike.",
    ((USUAL, "usual"), ("false", "off")),
    setting="cache.prefix_caching",
)
CPU_TIER: Final = Menu(
    "cpu_gib",
    "CPU memory below it",
    "Where a replica's evicted blocks go. Takes seconds: steps are then simulated one by one.",
    ((USUAL, "none"), *((str(gib), f"{gib} GiB") for gib in CPU_GIB)),
)
SLO: Final = (
    Number("slo_ttft", "First token (TTFT)", "", "ms", "slo.ttft_s", 1e-3),
    Number("slo_tpot", "Per token (TPOT)", "", "ms", "slo.tpot_s", 1e-3),
    Number("slo_e2e", "End to end", "", "s", "slo.e2e_s"),
)

POLICY_LABELS: Final = {
    "order": "Order of service",
    "router": "Router",
    "eviction": "Eviction",
    "admission": "Admission",
    "victim": "Who gives way",
    "chunking": "Chunks",
}
OPEN_KINDS: Final = ("victim", "chunking")
"""Kinds of which a scenario need not choose one."""
POLICY_STARTS: Final = {
    "order": "fcfs",
    "router": "round-robin",
    "eviction": "lru",
    "admission": "everybody",
}


def _policy(kind: str) -> Menu:
    names = tuple((name, name) for name in KINDS[kind].table)
    usual = ((USUAL, "usual"),) if kind in OPEN_KINDS else ()
    return Menu(
        kind,
        POLICY_LABELS[kind],
        KINDS[kind].asks,
        usual + names,
        POLICY_STARTS.get(kind, USUAL),
        KINDS[kind].setting,
    )


POLICIES: Final = tuple(_policy(kind) for kind in POLICY_LABELS)


@cache
def profile_parts() -> tuple[Menu, ...]:
    """The menus that together make a profile which no file holds."""
    known_gpus = tuple((one.name, one.name) for one in gpus())
    known_models = tuple((name, name) for name in model_cards())
    return (
        Menu("model", "Model", "By its config.json.", known_models),
        Menu("gpu", "GPU", "By its data sheet.", known_gpus),
        TP,
        WEIGHTS,
        KV_DTYPE,
    )


def parts_of(profile: Profile) -> dict[str, str]:
    """What `profile_parts` are for a profile, in their order."""
    return {
        "model": profile.model,
        "gpu": profile.device.name,
        "tp": str(profile.tp),
        "weights": profile.weight_dtype,
        "kv_dtype": profile.kv_dtype,
    }


def parted(gpu: str, model: str, tp: str, weights: str, kv_dtype: str) -> str:
    """The name of the profile that the parts make."""
    return f"analytic:{gpu}/{model}/tp{tp}/w-{weights}/kv-{kv_dtype}"


TRAFFIC: Final = (RATE, TRACE_RATE)
FLEET: Final = (REPLICA_COUNT,)
ENGINE: Final = (MAX_SEQUENCES, MAX_TOKENS, CACHE, PREFIX_CACHING, CPU_TIER)
PRICES: Final = (
    Menu(
        "contract",
        "Contract",
        "Which of a GPU's prices.",
        tuple((name, name) for name in CONTRACTS),
        CONTRACTS[0],
        "economics.contract",
    ),
    Number(
        "usd_per_gpu_hour",
        "Price of a GPU",
        "Instead of the price list's.",
        "USD/h",
        "economics.usd_per_gpu_hour",
        open="as listed",
    ),
)


def controls() -> tuple[Control, ...]:
    """All of them, but for the menus of traces and profiles, which depend on what is offered."""
    return (
        *TRAFFIC,
        *FLEET,
        *profile_parts(),
        PRESET,
        *ENGINE,
        *POLICIES,
        *SLO,
        *PRICES,
    )
