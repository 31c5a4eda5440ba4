"""`kvcast trace` as a user types it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from traces.cli import trace_app
from traces.errors import ConfigError, KvcastError
from traces.reader import open_trace


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(
        trace_app, list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "100"}
    )
    assert result.exit_code == 0, result.output
    return result.output


def test_info() -> None:
    said = run("info", "sample:chat", "--op", "window:end_s=120", "--op", "tag:tenant=acme")
    assert "chat (parquet)" in said
    assert "interarrival cv" in said
    assert "acme" in said


def test_convert_and_back(tmp_path: Path) -> None:
    csv, parquet = tmp_path / "a.csv.gz", tmp_path / "a.parquet"
    assert run("convert", "sample:agentic", csv) == f"{csv}: 2000 requests\n"
    run("convert", csv, parquet)
    assert list(open_trace(parquet)) == list(open_trace("sample:agentic"))


def test_make_from_flags_and_from_a_spec(tmp_path: Path) -> None:
    out = tmp_path / "m.csv"
    flags = ["--rate-per-s", "4", "--prompt-tokens", "300", "--output-tokens", "50"]
    assert run("make", out, "--requests", "50", *flags, "--seed", "3").endswith(
        "50 requests, seed 3\n"
    )
    first = out.read_bytes()
    run("make", out, "--requests", "50", *flags, "--seed", "3")
    assert out.read_bytes() == first
    spec = tmp_path / "s.yaml"
    spec.write_text(
        "requests: 9\narrivals: {process: gamma, cv: 2, rate: 1}\n"
        "prompt_tokens: 10\noutput_tokens: 5\n"
    )
    run("make", out, "--spec", spec, "--rate-per-s", "100")
    trace = list(open_trace(out))
    assert len(trace) == 9
    assert trace[-1].arrival_s < 5


def test_errors_are_raised_for_the_main_program(tmp_path: Path) -> None:
    with pytest.raises(KvcastError, match="no such file"):
        run("info", tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="kvcast trace make: arrivals: is required"):
        run("make", tmp_path / "m.csv")
    with pytest.raises(ConfigError, match="unknown operation 'x'"):
        run("info", "sample:chat", "--op", "x:y=1")
