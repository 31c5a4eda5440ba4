"""`kvcast cache`: what would a cache of this size and policy hit on this trace?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sim.scenario_options import Op
from traces.errors import ConfigError


def cache(
    trace: Annotated[str, typer.Argument(help="Trace file, or sample:NAME.")],
    capacity: Annotated[
        str | None,
        typer.Option(help="Room of a cache in tokens: 1M,3M,10M,inf. Not given: 100k to inf."),
    ] = None,
    gb: Annotated[
        str | None,
        typer.Option(help="Room in GB (10^9 bytes) of the profile's KV cache, all GPUs: 40,80."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Model and KV dtype, for --gb and for the work that hits save."),
    ] = None,
    eviction: Annotated[str, typer.Option(help="Policies, such as lru,fifo,s3fifo.")] = "lru",
    block_tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens of a block, or of a page of the tree.")
    ] = 16,
    index: Annotated[
        str, typer.Option(help="blocks: vLLM's cache; radix: SGLang's tree.")
    ] = "blocks",
    replicas: Annotated[int, typer.Option(metavar="N", help="Caches, each of that room.")] = 1,
    router: Annotated[
        str, typer.Option(help="How requests are spread over several caches.")
    ] = "round-robin",
    answers: Annotated[
        bool, typer.Option("--answers", help="Answers that nobody can hit take room too.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of everything random.")] = 0,
    op: Op = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Count malformed rows instead of failing.")
    ] = False,
    jobs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processes that share the policies.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page, the numbers and the settings.")
    ] = None,
) -> None:
    """Serve a trace from prefix caches, without time, and compare what they hit with Belady's
    bound."""
    from rich.console import Console

    from engine.progress import counting
    from sim.study.folder import check_folder, write_folder
    from sim.study.study import StudySettings, cache_study
    from sim.study.tables import study_table
    from traces.pipeline import parse_operation
    from traces.settings import COMMAND_LINE, settings_of

    policies = [spec for spec in map(str.strip, eviction.split(",")) if spec]
    if not policies:
        raise ConfigError("--eviction: names no policy; expected some, like lru,fifo")
    values: dict[str, Any] = {
        "trace": {"path": trace, "skip_bad_rows": skip_bad_rows},
        "eviction": policies,
        "block_tokens": block_tokens,
        "index": index,
        "replicas": replicas,
        "router": router,
        "answers": answers,
        "seed": seed,
    }
    if op:
        values["trace"]["operations"] = [parse_operation(one).model_dump() for one in op]
    if block_tokens >= 1:
        values["capacity_tokens"] = _capacities(capacity, gb, profile, block_tokens)
    if profile is not None:
        from calibration.profiles import load_profile

        values["context_tokens"] = load_profile(profile).shape.even_context_tokens
    settings = settings_of(StudySettings, values, COMMAND_LINE)
    if out is not None:
        check_folder(out)
    with counting("policies", len(settings.policies()), "serving") as tell:
        study = cache_study(settings, jobs=jobs, progress=tell and (lambda done: tell(done, "")))
    console = Console()
    console.print(study_table(study, console.width))
    if out is not None:
        write_folder(study, out)
        written = ", ".join(sorted(path.name for path in out.iterdir()))
        console.print(f"{out}: {written}", markup=False, highlight=False)


def _capacities(
    capacity: str | None, gb: str | None, profile: str | None, block_tokens: int
) -> list[int | None]:
    """In tokens; raises ConfigError."""
    from sim.study.study import parse_capacity

    if gb is None:
        stated = "100k,300k,1M,3M,10M,30M,inf" if capacity is None else capacity
        return [parse_capacity(text) for text in stated.split(",")]
    if capacity is not None:
        raise ConfigError("--gb: goes without --capacity; expected one of them")
    if profile is None:
        raise ConfigError(
            "--gb: needs --profile, whose model and KV dtype tell how large a token is"
        )
    from calibration.profiles import load_profile

    known = load_profile(profile)
    block = known.tp * known.shape.kv_block_bytes(known.kv_dtype, block_tokens, known.tp)
    tokens = [_bytes(text) // block * block_tokens for text in gb.split(",")]
    if not all(tokens):
        raise ConfigError(
            f"--gb {gb}: holds no block of {block_tokens} tokens, which takes {block:,} bytes"
        )
    return [*tokens]


def _bytes(text: str) -> int:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e9:
        raise ConfigError(f"--gb {text}: is no size; expected gigabytes above 0, such as 80")
    return round(size * 1e9)
