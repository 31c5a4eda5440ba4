"""A capacity as one HTML file that opens anywhere, without a network."""

from __future__ import annotations

from html import escape
from typing import Final

from engine import units
from sim.planning import capacity_tables as tables
from sim.planning.capacity import Capacity
from sim.planning.capacity_pictures import pictures
from sim.report.page import page_of
from sim.report.panels import panel
from traces.settings import to_yaml
from traces.version import installed_version

STYLE: Final = """
td.verdict { font-weight: 600; }
tr.met td.verdict { color: #1a7f5a; }
tr.missed td.verdict { color: var(--alarm); }
tr.undecided td.verdict { color: var(--muted); }
td.words { text-align: left; }
.panel + .panel { margin-top: 12px; }
.grid .panel + .panel { margin-top: 0; }
"""


def page(found: Capacity) -> str:
    """The page as text; the same capacity gives the same bytes."""
    drawn = pictures(found) if found.curve else {}
    sections: dict[str, tuple[str, str]] = {}
    if drawn:
        panels = "".join(
            panel(name, picture, wide=name == "trials") for name, picture in drawn.items()
        )
        sections["rates"] = ("By rate", f'<div class="grid">{panels}</div>')
    if found.binding is not None:
        sections["binds"] = ("What binds", _binding(found))
    sections["decisions"] = ("Decisions", _decisions(found))
    sections["method"] = (
        "How to read it",
        f'<div class="panel"><p class="finding">{escape(tables.method(found))}</p></div>',
    )
    sections["scenario"] = (
        "Scenario",
        "<details><summary>The scenario at this rate: what scenario.yaml holds</summary>"
        f"<pre>{escape(to_yaml(found.at_capacity))}</pre></details>",
    )
    return page_of(
        brand="capacity",
        name=found.name,
        title=f"{found.name}, capacity",
        answer=escape(f"{tables.answer(found)} {tables.per_gpu(found)}"),
        setting=escape(tables.setting(found)),
        banners="\n".join(
            f'<div class="banner warning" role="note">{escape(text)}</div>'
            for text in found.warnings
        ),
        sections=sections,
        drawn=drawn,
        version=installed_version(),
        style=STYLE,
    )


def _binding(found: Capacity) -> str:
    assert found.binding is not None
    objective = found.binding.objective
    rows = [("as it is", objective.shown(found.binding.value))]
    rows += [
        (f"{tables.MORE_WORDS} more of {tables.resource(one.resource)}", objective.shown(one.value))
        for one in found.binding.experiments
    ]
    return (
        f'<div class="panel"><p class="finding">{escape(tables.bound(found))}</p>'
        f'<div class="scroll"><table><thead><tr><th class="words">one resource at a time</th>'
        f"<th>{escape(objective.what)}</th></tr></thead><tbody>{_rows(rows)}</tbody></table></div>"
        "</div>"
        '<div class="panel scroll"><table><thead><tr><th class="words">how full it was</th>'
        f"<th></th></tr></thead><tbody>{_rows(tables.evidence(found))}</tbody></table></div>"
    )


def _rows(rows: list[tuple[str, str]]) -> str:
    return "".join(
        f'<tr><td class="words">{escape(words)}</td><td>{escape(value)}</td></tr>'
        for words, value in rows
    )


def _decisions(found: Capacity) -> str:
    body = "".join(
        f'<tr class="{decision.verdict}"><td>{units.significant(decision.rate_per_s, 4)}</td>'
        f"<td>{decision.simulated}</td><td>{decision.met}</td><td>{decision.missed}</td>"
        f'<td class="verdict">{decision.verdict}</td></tr>'
        for decision in found.decisions
    )
    return (
        '<div class="panel scroll"><table><thead><tr><th>requests/s</th><th>simulated</th>'
        f"<th>meet</th><th>miss</th><th>decided</th></tr></thead><tbody>{body}</tbody></table></div>"
    )
