"""The options by which commands state a scenario, and the settings that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

TraceName = Annotated[str | None, typer.Option("--trace", help="Trace file, or sample:NAME.")]
ProfileName = Annotated[
    str | None, typer.Option("--profile", help="Profile; see `kvcast profile list`.")
]
Replicas = Annotated[str | None, typer.Option("--replicas", metavar="N", help="Engine instances.")]
Router = Annotated[str | None, typer.Option("--router", help="How requests are spread.")]
Policy = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help="KIND=POLICY, a policy's name, or your own FILE.py:NAME; repeatable."
        " See `kvcast policies`.",
    ),
]
Seed = Annotated[str | None, typer.Option("--seed", metavar="N", help="Seed of everything random.")]
Slo = Annotated[
    str | None, typer.Option("--slo", help="Limits of a good request: ttft=1s,tpot=50ms,e2e=30s.")
]
Op = Annotated[
    list[str] | None,
    typer.Option("--op", help="Operation on the trace, NAME:setting=value,...; repeatable."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting, such as scheduler.max_num_seqs=256; repeatable."),
]
TrafficMethod = Annotated[
    str | None,
    typer.Option(
        "--traffic",
        help="What replications serve: same, reseeded (a synthetic trace made anew), blocks"
        " (of the trace, drawn with replacement). Not given: reseeded if possible, else blocks.",
    ),
]
Blocks = Annotated[
    int, typer.Option("--blocks", metavar="N", help="Blocks that the trace is cut into.")
]


def stated_options(
    trace: str | None,
    profile: str | None,
    seed: str | None,
    slo: str | None,
    op: Sequence[str] | None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The settings that options state; `more` are settings of further options, None: not given.

    Raises:
        ConfigError: an option that cannot be read.
    """
    from engine.slo import parse_slo
    from traces.options import given, number
    from traces.pipeline import parse_operation
    from traces.settings import merged

    options: dict[str, Any] = {
        "trace": {"path": trace},
        "profile": profile,
        "seed": number(seed),
        "slo": parse_slo(slo) if slo is not None else None,
    }
    if op:
        options["trace"]["operations"] = [parse_operation(one).model_dump() for one in op]
    return given(merged(options, more or {}))
