"""Intervals beside the figures they belong to: terminal and page, within 80 columns."""

from html import unescape
from io import StringIO

import pytest
from rich.console import Console

from engine import units
from sim.report.bounds import FIGURES, between, bounds, heading
from sim.report.html import report_html
from sim.report.table import summary_table
from sim.uncertainty import figures


def uncertain(summary, spread=0.1):
    """The summary with an interval of -+ `spread` on every figure."""
    found = {
        name: [(1 - spread) * value, (1 + spread) * value]
        for name, value in figures(summary).items()
    }
    return summary | {
        "uncertainty": {
            "replications": 20,
            "level": 0.95,
            "drawn": ["fitted coefficients", "step noise"],
            "intervals": found,
        }
    }


def printed(summary) -> str:
    console = Console(width=80, file=StringIO())
    console.print(summary_table(summary))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("low", "high", "say", "text"),
    [
        (1.1, 1.41, units.seconds, "[1.10, 1.41] s"),
        (0.98, 1.02, units.seconds, "[980 ms, 1.02 s]"),
        (0.0, 0.3, units.seconds, "[0, 300] ms"),
        (0.0, 0.0, units.seconds, "[0, 0] s"),
        (3, 5500, units.count, "[3, 5,500]"),
        (0.98, 0.99999, units.share, "[98.0, > 99.9] %"),
        (0.151, 0.16, units.significant, "[0.151, 0.160]"),
    ],
)
def test_two_values_share_their_unit(low, high, say, text):
    assert between(low, high, say) == text


def test_the_terminal_has_a_second_table(make_result):
    summary = make_result(800, slo={"ttft_s": 0.5}).summary
    text = printed(uncertain(summary))
    assert text.startswith(printed(summary))  # the first is as it was
    assert "95 % intervals, 20 replications: fitted coefficients, step noise" in text
    for statistic in ("mean", "p50", "p90", "p99"):
        assert bounds(uncertain(summary), f"latency.ttft_s.{statistic}") in text
    for name, (label, say) in FIGURES.items():
        assert label in text
        assert bounds(uncertain(summary), name, say) in text


@pytest.mark.parametrize("spread", [0.001, 0.6])
def test_eighty_columns_cut_no_interval_off(make_result, spread):
    summary = make_result(800, slo={"ttft_s": 0.5, "tpot_s": 0.025, "e2e_s": 150.0}).summary
    summary["latency"]["e2e_s"] = dict.fromkeys(summary["latency"]["e2e_s"], 599.0)
    summary["throughput"] = dict.fromkeys(summary["throughput"], 999_999.0)
    text = printed(uncertain(summary, spread))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_page_has_them_under_the_numbers(make_result):
    result = make_result(300, slo={"ttft_s": 0.5})
    plain = report_html(result)
    assert 'class="interval"' not in plain
    summary = uncertain(result.summary)
    object.__setattr__(result, "summary", summary)
    page = unescape(report_html(result))
    assert f"In brackets: {heading(summary)}" in page
    for latency in ("ttft_s", "tpot_s", "e2e_s"):
        for statistic in units.STATISTICS:
            assert bounds(summary, f"latency.{latency}.{statistic}") in page
    for name, (_, say) in FIGURES.items():
        if name != "goodput.share":  # has no place of its own there
            assert bounds(summary, name, say) in page, name


def test_a_figure_without_an_interval_stands_alone(make_result):
    summary = uncertain(make_result(100).summary)
    summary["uncertainty"]["intervals"]["latency.ttft_s.p99"] = None
    assert bounds(summary, "latency.ttft_s.p99") == ""
    assert units.ABSENT in printed(summary)


def test_a_run_without_intervals_says_nothing_of_them(make_result, rejected):
    assert heading(make_result(100).summary) == ""
    assert "intervals" not in printed(rejected.summary)
    assert units.ABSENT in printed(uncertain(rejected.summary))
