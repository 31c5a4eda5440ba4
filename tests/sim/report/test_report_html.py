import json
import re
import subprocess
import sys
from html import escape
from html.parser import HTMLParser

import pytest

from engine import units
from sim.report.bins import MAX_BINS
from sim.report.figures import MISSING, PICTURES
from sim.report.html import report_html, write_report

MEGABYTE = 1_000_000


class Page(HTMLParser):
    """What a browser would load, and the cards."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.cards: dict[str, str] = {}
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        self.loads += [
            value
            for name in ("src", "srcset", "data", "action", "poster")
            if (value := attributes.get(name))
        ]
        if (href := attributes.get("href")) and not href.startswith("#"):
            self.loads.append(href)
        if attributes.get("class") == "card":
            self.cards[attributes["data-label"]] = attributes["data-value"]

    def handle_data(self, data):
        if len(data) < 10_000:
            self.texts.append(data)


def plots(text: str) -> dict:
    return json.loads(re.search(r"const FIGURES = (\{.*?\});\n", text, re.DOTALL)[1])


def test_headline_values_are_those_of_the_summary(make_result):
    result = make_result(800, slo={"ttft_s": 0.5, "tpot_s": 0.03})
    text = report_html(result)
    cards = {label: float(value) for label, value in Page(text).cards.items()}
    summary = result.summary
    assert cards == {
        "Throughput": summary["throughput"]["requests_per_s"],
        "P99 TTFT": summary["latency"]["ttft_s"]["p99"],
        "P99 TPOT": summary["latency"]["tpot_s"]["p99"],
        "Goodput": summary["goodput"]["requests_per_s"],
        "KV occupancy": summary["kv"]["mean_occupancy"],
        "GPU-hours": summary["gpu_hours"],
    }
    for statistic in ("mean", "p50", "p90", "p95", "p99", "max"):
        assert units.seconds(summary["latency"]["e2e_s"][statistic]) in text


def test_page_loads_nothing(result):
    page = Page(report_html(result))
    assert page.loads == []
    assert "link" not in page.tags
    assert "iframe" not in page.tags
    assert "img" not in page.tags


def test_nothing_can_be_sent_to_a_cloud(result):
    text = report_html(result)
    assert "showSendToCloud: false" in text
    assert 'modeBarButtons: [["toImage", "resetScale2d"]]' in text


def test_every_picture_has_a_place_and_a_caption(result):
    text = report_html(result)
    assert plots(text).keys() == PICTURES.keys()
    for name in PICTURES:
        assert text.count(f'id="plot-{name}"') == 1
    assert text.count("<figcaption>") == len(PICTURES)


def test_same_input_same_bytes(make_result, tmp_path):
    first = write_report(make_result(3_000, 8), tmp_path / "a.html").read_bytes()
    second = write_report(make_result(3_000, 8), tmp_path / "b.html").read_bytes()
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_failed_write_leaves_the_old_report(result, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_report(result, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("part", ["requests", "segments", "roofline"])
def test_an_absent_part_is_said_not_shown(result, part):
    text = report_html(result.without(part))
    assert escape(MISSING[part]) in text
    assert len(plots(text)) == sum(part not in picture.needs for picture in PICTURES.values())


def test_all_rejected_still_makes_a_report(rejected):
    text = report_html(rejected)
    assert plots(text).keys() == {"outcomes"}
    assert "50 of 50 were not served" in text
    assert Page(text).cards["P99 TTFT"] == ""


def test_an_unmeasured_profile_is_loud(make_result):
    unmeasured = report_html(make_result(100, measured=False, warnings=("too short",)))
    assert 'class="banner alarm"' in unmeasured
    assert "Not measured" in unmeasured
    assert '<div class="banner warning" role="note">too short</div>' in unmeasured
    assert 'class="banner' not in report_html(make_result(100))


def test_user_strings_are_escaped(make_result):
    evil = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    result = make_result(300, tenants=(evil, "b&b"), name=evil, warnings=(evil,))
    result.scenario["trace"]["note"] = evil
    result.summary["profile"]["name"] = evil
    text = report_html(result)
    assert evil not in text
    page = Page(text)
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert evil in page.texts
    assert "b&b" in page.texts


def test_tenants_have_a_table_only_if_there_are_several(make_result):
    assert '<section id="tenants">' in report_html(make_result(200))
    assert '<section id="tenants">' not in report_html(make_result(200, tenants=("solo",)))


def test_scenario_is_shown_as_yaml(result):
    assert "router: least-loaded" in report_html(result)


def test_size_does_not_grow_with_the_requests(make_result):
    text = report_html(make_result(200_000, 64))
    assert len(text.encode()) < 6 * MEGABYTE
    for name, plot in plots(text).items():
        for trace in plot["data"]:
            for axis in ("x", "y"):
                values = trace[axis]
                size = len(values["bdata"]) * 3 // 4 // 8 if "bdata" in values else len(values)
                assert size <= (1_500 if name == "roofline" else max(MAX_BINS, 420)), name


def test_a_thousand_replicas_fit(make_result):
    text = report_html(make_result(20_000, 1024))
    assert len(text.encode()) < 10 * MEGABYTE


def test_importing_the_package_imports_no_plotting():
    program = "import sim.report, sys; print({'plotly', 'polars', 'rich'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
