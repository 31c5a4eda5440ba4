"""The report: one HTML file that opens anywhere, without a network."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import yaml

from engine.atomic import replacing
from sim.report import fragments
from sim.report.contract import RunResult
from sim.report.cost import cost_panel
from sim.report.figures import MISSING, draw
from sim.report.page import page_of
from sim.report.panels import panel
from sim.report.tenants import tenant_table

SECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "latency": ("Latency", ("ttft_cdf", "tpot_cdf", "e2e_cdf", "queue_cdf")),
    "over-time": ("Latency over time", ("ttft_over_time", "tpot_over_time")),
    "time": ("Where the time goes", ("phases_by_percentile", "phases_over_time")),
    "load": ("Load and queue", ("outcomes", "queue_depth")),
    "replicas": ("Replicas", ("batch_size", "kv_occupancy")),
    "roofline": ("Step costs", ("roofline",)),
}
"""Anchor -> heading and pictures, in the order of the page."""


def write_report(result: RunResult, path: Path | str) -> Path:
    """Write `result` as one self-contained HTML file, whole or not at all.

    The same result gives the same bytes. Some 5 MB of it are plotly.js; what is drawn is
    aggregated first, so the rest stays small at any number of requests.
    """
    path = Path(path)
    page = report_html(result)
    with replacing(path) as file:
        file.write(page.encode())
    return path


def report_html(result: RunResult) -> str:
    """The page as text; see `write_report`."""
    summary = result.summary
    pictures: dict[str, go.Figure] = {}
    sections = {
        anchor: (title, _pictures(result, names, pictures))
        for anchor, (title, names) in SECTIONS.items()
    }
    sections["load"] = (
        sections["load"][0],
        f'<div class="panel">{fragments.outcome_bar(summary)}</div>{sections["load"][1]}',
    )
    if result.request_rows is None:
        sections["tenants"] = ("Tenants", f'<p class="absent">{MISSING["requests"]}</p>')
    elif (tenants := tenant_table(result.request_rows, summary)) is not None:
        sections["tenants"] = ("Tenants", tenants)
    if cost := cost_panel(summary):
        sections["cost"] = ("Cost and energy", cost)
    sections["numbers"] = (
        "All numbers",
        f"{_counted(summary)}{fragments.percentiles(summary)}{fragments.facts(summary)}",
    )
    sections["scenario"] = (
        "Scenario",
        "<details><summary>The complete settings of this run</summary>"
        f"<pre>{escape(_yaml(result.scenario))}</pre></details>",
    )
    name = summary["name"]
    return page_of(
        brand="forecast",
        name=name,
        title=name,
        answer=fragments.answer(summary),
        setting=fragments.setting(summary),
        banners=f"{fragments.banners(summary)}\n{fragments.cards(summary)}",
        sections=sections,
        drawn=pictures,
        version=str(summary["kvcast"]),
    )


def _pictures(result: RunResult, names: tuple[str, ...], pictures: dict[str, go.Figure]) -> str:
    """Panels for some pictures, which are added to `pictures`; a sentence where there is none."""
    drawn = {name: draw(result, name) for name in names}
    absent = [reason for reason in drawn.values() if isinstance(reason, str)]
    if len(absent) == len(names) and len(set(absent)) == 1:
        return f'<p class="absent">{escape(absent[0])}</p>'
    panels = "".join(
        f'<p class="absent">{escape(picture)}</p>'
        if isinstance(picture, str)
        else panel(name, picture, wide=len(names) == 1)
        for name, picture in drawn.items()
    )
    pictures.update({n: figure for n, figure in drawn.items() if not isinstance(figure, str)})
    return f'<div class="grid">{panels}</div>'


def _counted(summary: Mapping[str, Any]) -> str:
    counted, total = summary["requests"]["counted"], summary["requests"]["total"]
    if counted == total:
        return ""
    return (
        f'<p class="finding">Statistics count {counted:,} of {total:,} requests; the pictures show '
        "all of them.</p>"
    )


def _yaml(scenario: Mapping[str, Any]) -> str:
    """Settings in the order they were given; what YAML has no word for, as text."""
    plain = json.loads(json.dumps(dict(scenario), default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
