"""A comparison as one HTML file that opens anywhere, without a network."""

from __future__ import annotations

from html import escape
from typing import Any, Final

from sim.comparing import metrics as named
from sim.comparing import tables
from sim.comparing.comparison import Comparison
from sim.comparing.grid import shown
from sim.comparing.pictures import BETTER, pictures
from sim.report.page import page_of
from sim.report.panels import panel
from traces.version import installed_version

STYLE: Final = f"""
.verdict {{ font-weight: 600; white-space: nowrap; }}
.verdict.better {{ color: {BETTER}; }}
.verdict.worse {{ color: var(--alarm); }}
.verdict.none {{ color: var(--muted); font-weight: 400; }}
.matrix td, .matrix th {{ vertical-align: top; }}
.matrix td.better {{ background: #e6f4ee; }}
.matrix td.worse {{ background: #fbeae8; }}
.matrix tr.baseline td {{ background: #f4f6f9; }}
.matrix .under {{ font-size: 12px; color: var(--muted); white-space: nowrap; }}
.matrix .better b, .matrix .worse b, .matrix .higher b, .matrix .lower b {{ font-weight: 650; }}
.matrix b {{ font-weight: 400; }}
.matrix td.better b {{ color: {BETTER}; }}
.matrix td.worse b {{ color: var(--alarm); }}
.matrix .set {{ text-align: left; padding-left: 8px; white-space: normal; min-width: 6em; }}
.matrix .at td {{ text-align: left; font-weight: 650; padding-top: 16px;
  border-bottom-color: #c6ccd6; }}
.flip {{ background: #f7eef4; border: 1px solid #d9b3cd; color: #5a2148; }}
.panel + .panel {{ margin-top: 12px; }}
.grid .panel + .panel {{ margin-top: 0; }}
"""


def page(comparison: Comparison) -> str:
    """The page as text; the same comparison gives the same bytes."""
    drawn = pictures(comparison)
    title = "Figures" if comparison.alone else "Verdicts"
    sections = {"verdicts": (title, verdict_tables(comparison))}
    heading = "Differences and values" if comparison.rows else "Values"
    if comparison.curve:
        heading = "Along the curve"
    alone = comparison.curve is not None and len(drawn) == 1
    sections["pictures"] = (
        heading,
        '<div class="grid">'
        + "".join(panel(name, picture, wide=alone) for name, picture in drawn.items())
        + "</div>",
    )
    if comparison.failed:
        sections["failed"] = ("Failed", _failures(comparison))
    sections["method"] = (
        "How to read it",
        f'<div class="panel"><p class="finding">{escape(tables.method(comparison))}</p></div>',
    )
    sections["scenario"] = ("Scenario", _scenario(comparison))
    name = comparison.name
    return page_of(
        brand="comparison",
        name=name,
        title=f"{name}, compared",
        answer=escape(answer(comparison)),
        setting=escape(tables.design(comparison)),
        banners=_banners(comparison),
        sections=sections,
        drawn=drawn,
        version=installed_version(),
        style=STYLE,
    )


def answer(comparison: Comparison) -> str:
    """Who wins, figure by figure, in a few sentences."""
    if comparison.alone:
        along = f" along {comparison.curve[0]}" if comparison.curve else ""
        return f"One scenario{along}: nothing is varied, so nothing is compared."
    if not comparison.spread:
        return "One run of each setting: plain differences, no verdicts."
    said: list[str] = []
    for metric in comparison.metrics:
        rows = [row for row in comparison.rows if row.metric == metric and row.verdict == "better"]
        if rows:
            best = max(rows, key=lambda row: abs(row.difference.share or 0.0))
            change = named.change(best.difference.difference, best.difference.share, metric)
            at = ""
            if comparison.curve is not None:
                at = f" at {comparison.curve[0]} = {shown(best.entry.variant.at)}"
            said.append(f"{named.heading(metric)}: {best.entry.variant.label}{at} ({change})")
    if not said:
        return f"Nothing is distinguishably better than {comparison.baseline}."
    return f"Best against {comparison.baseline}: {'; '.join(said)}."


def verdict_tables(comparison: Comparison) -> str:
    """A row a combination of settings, a column a figure, coloured by verdict."""
    along = comparison.curve
    head = "".join(
        f'<th>{escape(named.heading(metric))}<div class="under">'
        f"{escape(tables.direction(metric))}</div></th>"
        for metric in comparison.metrics
    )
    names = tables.varied(comparison)
    if not names and along is not None:
        names = [along[0]]  # there is one row a value
    varied = "".join(f'<th class="set">{escape(name)}</th>' for name in names)
    columns = len(comparison.metrics) + len(names)
    body: list[str] = []
    for at in comparison.ats:
        if along is not None and not comparison.alone:
            body.append(
                f'<tr class="at"><td colspan="{columns}">{escape(along[0])} ='
                f" {escape(shown(at))}</td></tr>"
            )
        for entry in comparison.entries:
            if entry.variant.at != at:
                continue
            label = entry.variant.label
            settings = tables.values(comparison, entry)
            if not settings and along is not None:
                settings = [shown(at)]
            cells = "".join(f'<td class="set">{escape(text)}</td>' for text in settings)
            if entry.error:
                cells += f'<td class="worse" colspan="{len(comparison.metrics)}"><b>failed</b></td>'
            else:
                cells += "".join(_cell(comparison, label, m, at) for m in comparison.metrics)
            is_baseline = label == comparison.baseline and not comparison.alone
            kind = ' class="baseline"' if is_baseline else ""
            body.append(f"<tr{kind}>{cells}</tr>")
    return (
        f'<div class="panel scroll"><table class="matrix"><thead><tr>{varied}{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(comparison: Comparison, label: str, metric: str, at: Any) -> str:
    value = escape(tables.mean(comparison, comparison.entry(label, at), metric))
    row = comparison.row(label, metric, at)
    if row is None:
        under = "baseline" if label == comparison.baseline else ""
        if comparison.alone:
            entry = comparison.entry(label, at)
            under = escape(tables.interval_alone(comparison, entry, metric))
        return f'<td>{value}<div class="under">{under}</div></td>'
    change = escape(named.change(row.difference.difference, row.difference.share, metric))
    bounds = f'<div class="under">{escape(tables.interval(row))}</div>'
    said = f"<b>{escape(row.verdict)}</b>" if row.verdict else ""
    return (
        f'<td class="{escape(row.verdict.split(" ")[0])}">{value}'
        f'<div class="under"><b>{change}</b></div>{bounds if row.verdict else ""}'
        f'<div class="under">{said}</div></td>'
    )


def _banners(comparison: Comparison) -> str:
    made = [
        f'<div class="banner warning" role="note">{escape(text)}</div>'
        for text in comparison.warnings
    ]
    made += [
        f'<div class="banner flip" role="note">{escape(tables.said_of_flip(comparison, flip))}'
        "</div>"
        for flip in comparison.flips
    ]
    return "\n".join(made)


def _failures(comparison: Comparison) -> str:
    items = "".join(
        f'<p class="finding">{escape(tables.said_of_failure(comparison, entry))}</p>'
        for entry in comparison.failed
    )
    return f'<div class="panel">{items}</div>'


def _scenario(comparison: Comparison) -> str:
    import yaml

    stated = yaml.safe_dump(dict(comparison.values), sort_keys=False, allow_unicode=True, width=100)
    return (
        "<details><summary>What all settings have in common, where it is not the default</summary>"
        f"<pre>{escape(stated)}</pre></details>"
    )
