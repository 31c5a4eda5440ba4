"""`kvcast trace`: look at a trace, convert it, make one."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from traces.request import Request

if TYPE_CHECKING:
    from traces.describe import Description, Tokens
    from traces.reader import Trace
    from traces.synthetic import SyntheticSpec

trace_app = typer.Typer(
    name="trace", help="Look at request traces, convert and make them.", no_args_is_help=True
)

_PROGRESS_EVERY = 1000

Input = Annotated[str, typer.Argument(help="A trace file, or sample:NAME.", show_default=False)]
Output = Annotated[
    Path, typer.Argument(help="Where to write: .parquet, .csv or .csv.gz.", show_default=False)
]
Format = Annotated[
    str | None,
    typer.Option(help="The input's format; recognised if not given.", show_default=False),
]
SkipBadRows = Annotated[bool, typer.Option(help="Count malformed rows instead of failing.")]
RatePerS = Annotated[
    float | None,
    typer.Option(help="Requests a second, for a trace of lengths only.", show_default=False),
]
Seed = Annotated[int, typer.Option(help="Seed of the arrivals drawn with --rate-per-s.")]
HashTokens = Annotated[int, typer.Option(help="Tokens in a block of a Mooncake trace.")]
Operations = Annotated[
    list[str] | None,
    typer.Option(
        "--op",
        help="Operation NAME:setting=value,...; may be repeated, applied in order.",
        show_default=False,
    ),
]


@trace_app.command()
def info(
    path: Input,
    format: Format = None,
    skip_bad_rows: SkipBadRows = False,
    rate_per_s: RatePerS = None,
    seed: Seed = 0,
    hash_tokens: HashTokens = 512,
    op: Operations = None,
) -> None:
    """Say what is in a trace: requests, rates, lengths, sessions, reuse."""
    from rich.console import Console

    from traces.describe import describe

    trace = _opened(path, format, skip_bad_rows, rate_per_s, seed, hash_tokens, op)
    description = describe(_with_progress(trace, "reading"))
    Console().print(*_tables(trace, description), sep="\n")


@trace_app.command()
def convert(
    path: Input,
    output: Output,
    format: Format = None,
    skip_bad_rows: SkipBadRows = False,
    rate_per_s: RatePerS = None,
    seed: Seed = 0,
    hash_tokens: HashTokens = 512,
    op: Operations = None,
) -> None:
    """Write a trace, perhaps changed by operations, in kvcast's own format."""
    from traces.writer import write_trace

    trace = _opened(path, format, skip_bad_rows, rate_per_s, seed, hash_tokens, op)
    count = write_trace(_with_progress(trace, "writing"), output)
    left_out = f" ({trace.skipped} skipped, {trace.failed} failed)"
    typer.echo(f"{output}: {count} requests{left_out if trace.skipped or trace.failed else ''}")


@trace_app.command()
def make(
    output: Output,
    spec: Annotated[
        Path | None, typer.Option(help="YAML file that states the trace.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; default the spec's, or 0.")] = None,
    requests: Annotated[int | None, typer.Option(help="Stop after so many requests.")] = None,
    duration_s: Annotated[float | None, typer.Option(help="Stop after so many seconds.")] = None,
    rate_per_s: Annotated[
        float | None, typer.Option(help="Sessions (or lone requests) a second.")
    ] = None,
    cv: Annotated[
        float | None, typer.Option(help="Burstiness: gamma gaps with this cv (1 is Poisson).")
    ] = None,
    prompt_tokens: Annotated[
        float | None, typer.Option(help="Mean prompt length, lognormal with cv 1.")
    ] = None,
    output_tokens: Annotated[
        float | None, typer.Option(help="Mean output length, lognormal with cv 1.")
    ] = None,
) -> None:
    """Make a synthetic trace from a YAML spec, from flags, or from a spec that flags override."""
    from traces.synthetic import synthetic_trace
    from traces.writer import write_trace

    given: dict[str, Any] = {"seed": seed, "requests": requests, "duration_s": duration_s}
    arrivals: dict[str, Any] = {} if rate_per_s is None else {"rate": rate_per_s}
    if cv is not None:
        arrivals |= {"process": "gamma", "cv": cv}
    for name, mean in (("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens)):
        if mean is not None:
            given[name] = {"distribution": "lognormal", "mean": mean, "cv": 1.0}
    stated = _spec(spec, {k: v for k, v in given.items() if v is not None}, arrivals)
    made = _with_progress(synthetic_trace(stated), "making", stated.requests)
    count = write_trace(made, output)
    typer.echo(f"{output}: {count} requests, seed {stated.seed}")


def _spec(path: Path | None, given: dict[str, Any], arrivals: dict[str, Any]) -> "SyntheticSpec":
    """The spec of a file, with what flags say put over it."""
    from traces.settings import checked, read_mapping
    from traces.synthetic import SyntheticSpec

    stated = read_mapping(path) if path else {}
    before: Any = stated.get("arrivals", {})
    if arrivals and isinstance(before, dict):
        given["arrivals"] = {**before, **arrivals}
    return checked(SyntheticSpec, {**stated, **given}, str(path or "kvcast trace make"))


def _opened(
    path: str,
    format: str | None,
    skip_bad_rows: bool,
    rate_per_s: float | None,
    seed: int,
    hash_tokens: int,
    op: list[str] | None,
) -> "Trace":
    from traces.pipeline import parse_operation, transformed
    from traces.reader import open_trace

    steps = [parse_operation(text) for text in op or ()]
    trace = open_trace(
        path,
        format=format,
        skip_bad_rows=skip_bad_rows,
        rate_per_s=rate_per_s,
        seed=seed,
        hash_tokens=hash_tokens,
    )
    return transformed(trace, steps)


def _with_progress(
    requests: Iterable[Request], doing: str, total: int | None = None
) -> Iterator[Request]:
    """The same requests; shows how many have passed where someone watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(doing, total=total)
        for passed, request in enumerate(requests):
            if not passed % _PROGRESS_EVERY:
                progress.update(task, completed=passed)
            yield request


def _tables(trace: "Trace", description: "Description") -> list[Any]:
    from rich.table import Table

    reuse = description.reuse
    facts = Table(show_header=False, title=f"{trace.name} ({trace.format})", title_justify="left")
    facts.add_column()
    facts.add_column(justify="right")
    facts.add_row("requests", f"{description.requests:,}")
    if trace.skipped or trace.failed:
        facts.add_row("left out: malformed / failed", f"{trace.skipped:,} / {trace.failed:,}")
    facts.add_row("span", f"{description.span_s:,.1f} s")
    facts.add_row("mean rate", f"{description.mean_rate_per_s:.3f} /s")
    facts.add_row("peak in a second", f"{description.peak_rate_per_s:,}")
    facts.add_row("peak in a minute", f"{description.peak_rate_per_min:,}")
    facts.add_row("interarrival cv (Poisson: 1)", f"{description.interarrival_cv:.3f}")
    facts.add_row("prompt tokens", f"{description.prompt_tokens.total:,}")
    facts.add_row("output tokens", f"{description.output_tokens.total:,}")
    facts.add_row("sessions", f"{description.sessions:,}")
    if description.sessions:
        turns = description.requests_in_sessions / description.sessions
        facts.add_row("turns a session", f"{turns:.2f}")
    if reuse.block_tokens:
        sizes = ", ".join(map(str, reuse.block_tokens))
        facts.add_row("tokens a hash", sizes)
        facts.add_row("endless cache: share of tokens", f"{reuse.token_share:.1%}")
        facts.add_row("endless cache: share of blocks", f"{reuse.block_share:.1%}")
        facts.add_row("endless cache: mean over requests", f"{reuse.mean_request_share:.1%}")
    lengths = Table("tokens", title="Lengths", title_justify="left")
    for name in ("mean", "min", "p50", "p90", "p95", "p99", "max"):
        lengths.add_column(name, justify="right")
    lengths.add_row("prompt", *_length_cells(description.prompt_tokens))
    lengths.add_row("output", *_length_cells(description.output_tokens))
    tables = [facts, lengths]
    for title, shares in (
        ("tenant", description.tenants),
        ("SLO class", description.slo_classes),
    ):
        if set(shares) != {""}:
            table = Table(title, "requests", title_justify="left")
            for name, count in shares.items():
                table.add_row(name or "(none)", f"{count:,}")
            tables.append(table)
    return tables


def _length_cells(tokens: "Tokens") -> list[str]:
    numbers = (tokens.minimum, *tokens.percentiles.values(), tokens.maximum)
    return [f"{tokens.mean:,.1f}", *(f"{number:,}" for number in numbers)]
