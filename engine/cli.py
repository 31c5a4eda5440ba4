"""`kvcast engine ...`: generate text, replay a trace, compare what each idea is worth."""

import sys
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from traces.errors import ConfigError

if TYPE_CHECKING:
    from engine.generate import Completion
    from engine.serve import ReplaySettings
    from engine.work import Sampling

engine_app = typer.Typer(help="Run a model: text, traces, comparisons.", no_args_is_help=True)

Config = Annotated[
    Path | None, typer.Argument(help="Engine settings as YAML; the defaults if not given.")
]
Model = Annotated[
    str | None, typer.Option(help="Hugging Face folder, or .gguf file.", show_default=False)
]
Trace = Annotated[str | None, typer.Option(help="Trace file, or sample:NAME.", show_default=False)]
Operations = Annotated[
    list[str] | None,
    typer.Option(
        "--op",
        help="Operation on the trace, NAME:setting=value,...; repeatable.",
        show_default=False,
    ),
]
SetTo = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any setting, such as scheduler.max_num_seqs=64; repeatable.",
        show_default=False,
    ),
]


@engine_app.command()
def generate(
    config: Config = None,
    model: Model = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt; repeatable.", show_default=False)
    ] = None,
    prompt_file: Annotated[
        list[Path] | None,
        typer.Option(help="A file whose text is a prompt; repeatable.", show_default=False),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0, help="0: always the most likely token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Of the most likely tokens only.")
    ] = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of sampling; default the settings' seed.", show_default=False),
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on where the text ends.")
    ] = False,
    set_: SetTo = None,
) -> None:
    """Complete prompts, all of them in one continuous batch."""
    from engine.loading import load_model, load_tokenizer
    from engine.progress import waiting
    from engine.work import Sampling

    settings = _settings(config, set_, model)
    prompts = [*(prompt or ()), *map(_text_of, prompt_file or ())]
    if not prompts:
        raise ConfigError("--prompt: is missing; expected --prompt TEXT or --prompt-file FILE")
    if not isfinite(temperature):
        raise ConfigError(f"--temperature: must be a finite number, got {temperature}")
    sampling = Sampling(temperature, top_p, settings.seed if seed is None else seed)
    tokenizer = load_tokenizer(settings.model)
    with waiting(f"loading {settings.model}"):
        loaded = load_model(settings)
    with closing(loaded):
        _answer(loaded.engine(), tokenizer, prompts, max_tokens, sampling, not ignore_eos)


@engine_app.command()
def replay(
    config: Config = None,
    model: Model = None,
    trace: Trace = None,
    op: Operations = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="First requests only.", show_default=False)
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(help="Seconds of the trace in a second; default 1.", show_default=False),
    ] = None,
    asap: Annotated[
        bool, typer.Option("--asap", help="All requests arrive at once, not at their times.")
    ] = False,
    slo: Annotated[
        str | None,
        typer.Option(help="Limits of a good request: ttft=1s,tpot=50ms,e2e=30s."),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND=POLICY, a policy's name, or your own FILE.py:NAME; repeatable."
            " See `kvcast policies`.",
            show_default=False,
        ),
    ] = None,
    set_: SetTo = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for settings, summary and tables.")
    ] = None,
) -> None:
    """Serve a trace, by the wall clock or as fast as possible, and say what came of it."""
    from rich.console import Console

    from engine.progress import counting
    from engine.replay import replay as replay_on_engine
    from engine.tables import replay_table

    if asap and speed is not None:
        raise ConfigError(f"--asap: goes without --speed, got --speed {speed:g}")
    settings = _settings(
        config,
        set_,
        model,
        trace=trace,
        op=op,
        limit=limit,
        slo=slo,
        speed=speed,
        asap=asap,
        policy=policy,
    )
    with counting("requests served", limit, "loading the model") as tell:
        summary = replay_on_engine(
            settings,
            out,
            progress=tell
            and (lambda records: tell(records.ended, f"{records.generated_tokens:,} tokens")),
        )
    console = Console()
    console.print(replay_table(summary))
    if out is not None:
        written = ", ".join(sorted(path.name for path in out.iterdir()))
        console.print(f"{out}: {written}", markup=False, highlight=False)


@engine_app.command()
def compare(
    config: Config = None,
    model: Model = None,
    trace: Trace = None,
    op: Operations = None,
    limit: Annotated[int, typer.Option(min=1, help="First requests of the trace.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 32,
    repeats: Annotated[
        int, typer.Option(min=1, help="Runs of each, fewer of slow ones; the fastest counts.")
    ] = 3,
    set_: SetTo = None,
    out: Annotated[Path | None, typer.Option(help="Write the rows to a .csv or .json.")] = None,
) -> None:
    """Serve the same requests with and without each idea: what is each worth?"""
    from rich.console import Console

    from engine.compare import check_suffix, write_rows
    from engine.compare import compare as compare_on_engine
    from engine.progress import counting
    from engine.tables import compare_table

    if out is not None:
        check_suffix(out)
    settings = _settings(config, set_, model, trace=trace, op=op)
    with counting("requests served", None, "loading the model") as tell:

        def watch(variant: str, ended: int) -> None:
            if tell is not None:
                tell(ended, variant)

        rows = compare_on_engine(
            settings, limit=limit, max_tokens=max_tokens, repeats=repeats, watch=watch
        )
    if out is not None:
        write_rows(rows, out)
    Console().print(compare_table(rows))


@engine_app.command()
def perplexity(
    text: Annotated[Path, typer.Option(help="A text file.")],
    config: Config = None,
    model: Model = None,
    kv_dtype: Annotated[
        list[str] | None,
        typer.Option(help="A KV format; repeatable. All if not given.", show_default=False),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="First tokens of the text.")] = 16_384,
    window_tokens: Annotated[int, typer.Option(min=2, help="Tokens read in one go.")] = 1024,
    set_: SetTo = None,
) -> None:
    """Measure what each KV format costs in perplexity, and what it gains in room."""
    from rich.console import Console

    from engine.progress import waiting
    from engine.quality import FORMATS, measure_formats
    from engine.tables import quality_table

    settings = _settings(config, set_, model)
    with waiting(f"reading {text}"):
        rows = list(
            measure_formats(
                settings,
                _text_of(text, "--text"),
                kv_dtype or FORMATS,
                max_tokens=max_tokens,
                window_tokens=window_tokens,
            )
        )
    Console().print(quality_table(rows))


def _settings(
    config: Path | None,
    overrides: list[str] | None,
    model: str | None,
    *,
    trace: str | None = None,
    op: list[str] | None = None,
    limit: int | None = None,
    slo: str | None = None,
    speed: float | None = None,
    asap: bool = False,
    policy: list[str] | None = None,
) -> "ReplaySettings":
    from engine.kinds import policy_settings
    from engine.serve import ReplaySettings
    from engine.slo import parse_slo
    from traces.options import given
    from traces.pipeline import parse_operation
    from traces.settings import load_settings

    options: dict[str, Any] = given(
        {
            "model": model,
            "trace": {"path": trace},
            "speed": speed,
            "slo": None if slo is None else parse_slo(slo),
        }
    )
    if op:
        options.setdefault("trace", {})["operations"] = [
            parse_operation(one).model_dump() for one in op
        ]
    if asap:
        options["speed"] = None
    options |= policy_settings(policy or ())
    settings = load_settings(ReplaySettings, config, overrides or (), options)
    if limit is None:
        return settings
    first = parse_operation(f"limit:count={limit}")
    cut = settings.trace.model_copy(update={"operations": (*settings.trace.operations, first)})
    return settings.model_copy(update={"trace": cut})


def _text_of(file: Path, option: str = "--prompt-file") -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise ConfigError(f"{option} {file}: cannot be read: {said}") from None


def _answer(
    engine: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_tokens: int,
    sampling: "Sampling",
    stop_at_eos: bool,
) -> None:
    """One answer is shown as it comes, several at the end."""
    from engine.generate import generate as complete
    from engine.progress import counting

    alone = len(prompts) == 1

    def show(_: int, piece: str) -> None:
        print(piece, end="", flush=True)

    bar = nullcontext() if alone else counting("tokens", max_tokens * len(prompts))
    with bar as tell:
        completions = complete(
            engine,
            prompts,
            max_tokens,
            tokenizer=tokenizer,
            sampling=sampling,
            stop_at_eos=stop_at_eos,
            on_text=show if alone else None,
            progress=tell and (lambda tokens: tell(tokens, "")),
        )
    if alone:
        print()
    else:
        for number, completion in enumerate(completions, 1):
            print(f"[{number}] {completion.text}")
    print(_said(completions), file=sys.stderr)


def _said(completions: "Iterable[Completion]") -> str:
    """How fast that was, in a line."""
    from engine import units

    done = list(completions)
    tokens = sum(len(one.tokens) for one in done)
    longest_s = max(one.e2e_s for one in done)
    parts = [
        f"{units.count(tokens)} tokens in {units.seconds(longest_s)}",
        units.amount(tokens / longest_s, "tok/s"),
        f"first after {units.seconds(max(one.ttft_s for one in done))}",
    ]
    gaps = [one.tpot_s for one in done if one.tpot_s is not None]
    if gaps:
        parts.append(f"then one every {units.seconds(sum(gaps) / len(gaps))}")
    cut = sum(one.outcome == "truncated" for one in done)
    if cut:
        parts.append(f"{cut} cut short by scheduler.max_model_len")
    return ", ".join(parts)
