from io import StringIO

import pytest
from rich.console import Console

from engine import units
from sim.report.table import summary_table


def printed(summary, width=80):
    console = Console(width=width, file=StringIO())
    console.print(summary_table(summary))
    return console.file.getvalue()


def test_headline_is_there(make_result):
    summary = make_result(800, slo={"ttft_s": 0.5}).summary
    text = printed(summary)
    for statistic in ("mean", "p50", "p99", "max"):
        assert units.seconds(summary["latency"]["ttft_s"][statistic]) in text
    assert units.amount(summary["throughput"]["requests_per_s"], "req/s") in text
    assert units.share(summary["goodput"]["share"]) in text
    assert units.share(summary["kv"]["peak_occupancy"]) in text
    assert units.significant(summary["gpu_hours"]) in text
    assert "finished" in text


def test_eighty_columns_cut_nothing_off(make_result):
    summary = make_result(800, slo={"ttft_s": 0.5, "tpot_s": 0.025, "e2e_s": 150.0}).summary
    summary["latency"]["e2e_s"] = dict.fromkeys(summary["latency"]["e2e_s"], 754.2)
    text = printed(summary)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_an_unmeasured_profile_is_loud(make_result):
    assert "NOT MEASURED" in printed(make_result(100, measured=False).summary)
    assert "NOT MEASURED" not in printed(make_result(100).summary)


def test_warnings_and_markup_are_printed_as_they_are(make_result):
    text = printed(make_result(100, warnings=("beware of [red]brackets[/red]",)).summary)
    assert "warning: beware of [red]brackets[/red]" in text


def test_nothing_served(rejected):
    text = printed(rejected.summary)
    assert "50 rejected" in text
    assert units.ABSENT in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, units.ABSENT),
        (0.0, "0 s"),
        (0.0000005, "0.500 µs"),
        (0.00999, "9.99 ms"),
        (0.0312, "31.2 ms"),
        (0.9996, "1.00 s"),
        (12.345, "12.3 s"),
        (599.9, "600 s"),
        (754.2, "12.6 min"),
        (15_120, "4.20 h"),
    ],
)
def test_seconds(value, text):
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1 s"), (0.03, "30 ms"), (2.5, "2.5 s"), (150, "2.5 min"), (0.0001, "100 µs")],
)
def test_a_limit_has_the_digits_it_was_given(value, text):
    assert units.limit(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 %"),
        (1 + 2e-16, "100 %"),
        (1.2, "120.0 %"),
        (0.99999, "> 99.9 %"),
        (0.00001, "< 0.1 %"),
        (0.9834, "98.3 %"),
    ],
)
def test_share_is_whole_only_if_it_is(value, text):
    assert units.share(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123, "0.0123 B/s"),
        (12_340, "12,340 B/s"),
        (4.8e12, "4.80 TB/s"),
        (999_999, "999,999 B/s"),
    ],
)
def test_amount(value, text):
    assert units.amount(value, "B/s") == text
