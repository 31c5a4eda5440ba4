"""A validation as one HTML file that opens anywhere, without a network."""

from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Final

import plotly.graph_objects as go

from engine import units
from engine.atomic import replacing
from sim.report.fragments import table
from sim.report.page import page_of
from sim.report.panels import panel
from sim.validation import pictures, tables
from sim.validation.served import LATENCIES
from sim.validation.validation import Validation
from traces.settings import to_yaml

Draw = Callable[[Validation], go.Figure | None]

SECTIONS: Final[dict[str, tuple[str, dict[str, Draw]]]] = {
    "errors": ("Errors", {"errors": pictures.errors}),
    "latency": (
        "Distributions",
        {f"{name}_cdf": partial(pictures.cdf, latency=name) for name in LATENCIES},
    ),
    "requests": (
        "Request by request",
        {f"{name}_scatter": partial(pictures.scatter, latency=name) for name in LATENCIES},
    ),
    "time": (
        "Over time",
        {
            "running": partial(pictures.over_time, what="running"),
            "waiting": partial(pictures.over_time, what="waiting"),
            "kv_occupancy": partial(pictures.over_time, what="kv_occupancy"),
        },
    ),
}
"""Anchor -> heading and pictures, in the order of the page."""

ABSENT: Final = {
    "requests": "The real run does not tell.",
    "time": "The real run has no record of its queue and its KV cache over time.",
}


def write_page(validation: Validation, path: Path) -> None:
    """Write the page, whole or not at all; the same validation gives the same bytes."""
    with replacing(path) as file:
        file.write(page(validation).encode())


def page(validation: Validation) -> str:
    """The page as text."""
    drawn: dict[str, go.Figure] = {}
    sections = {
        anchor: (title, _panels(validation, anchor, asked, drawn))
        for anchor, (title, asked) in SECTIONS.items()
    }
    sections["numbers"] = ("All numbers", _numbers(validation))
    sections["scenario"] = (
        "Scenario",
        "<details><summary>The complete settings of the simulation</summary>"
        f"<pre>{escape(to_yaml(validation.scenario))}</pre></details>",
    )
    name = _name(Path(validation.real.where))
    return page_of(
        brand="validation",
        name=name,
        title=f"{name}, validated",
        answer=escape(_answer(validation)),
        setting=escape(_setting(validation)),
        banners=_banners(validation),
        sections=sections,
        drawn=drawn,
        version=str(validation.summary["kvcast"]),
    )


def _name(where: Path) -> str:
    """A log's folder says more than its own name."""
    return (where.suffix and where.parent.name) or where.name


def _answer(validation: Validation) -> str:
    """The errors of the means, and of the tails."""
    means, tails = (
        ", ".join(
            f"{name.upper()} {tables.said(validation.figures[f'{name}.{statistic}'].error)}"
            for name in ("ttft", "tpot", "e2e")
            if f"{name}.{statistic}" in validation.figures
        )
        for statistic in ("mean", "p99")
    )
    return f"Simulated against real: {means} in the mean; {tails} at the 99th percentile."


def _setting(validation: Validation) -> str:
    about = validation.real.about
    what = [str(about[key]) for key in ("model", "device") if about.get(key)]
    return " · ".join(
        [
            *what,
            f"{units.count(len(validation.real_served))} requests",
            f"profile {validation.summary['profile']['name']}",
        ]
    )


def _banners(validation: Validation) -> str:
    texts = [*validation.warnings, *(str(one) for one in validation.verdicts if not one.met)]
    return "\n".join(
        f'<div class="banner warning" role="note">{escape(text)}</div>' for text in texts
    )


def _panels(
    validation: Validation, anchor: str, asked: dict[str, Draw], drawn: dict[str, go.Figure]
) -> str:
    """Panels for the pictures there are, which are added to `drawn`."""
    made = {name: draw(validation) for name, draw in asked.items()}
    there = {name: picture for name, picture in made.items() if picture is not None}
    if not there:
        return f'<p class="absent">{ABSENT[anchor]}</p>'
    drawn.update(there)
    alone = len(there) == 1
    panels = "".join(panel(name, picture, wide=alone) for name, picture in there.items())
    return f'<div class="grid">{panels}</div>'


def _numbers(validation: Validation) -> str:
    """Every figure, then those of requests that came below and near saturation."""
    notes = [tables.counted_from(validation), _of_jitter(validation), tables.decisions(validation)]
    text = " ".join(note for note in notes if note)
    parts = [f'<p class="finding">{escape(text)}</p>']
    parts.append(table(tables.HEAD, tables.rows(validation.figures)))
    for load, found in validation.by_load.items():
        parts.append(f"<h3>{_load(validation, load)}</h3>")
        parts.append(table(tables.HEAD[:5], [row[:5] for row in tables.rows(found)]))
    return "".join(parts)


def _of_jitter(validation: Validation) -> str:
    jitter = validation.jitter
    if not jitter.replications:
        return ""
    return (
        f"Intervals hold the error with 95 %: of {jitter.replications} simulations, each arrival"
        f" moved by a normal deviate of {units.limit(jitter.sigma_s)}, and of 1,000 resamples of"
        " the requests."
    )


def _load(validation: Validation, load: str) -> str:
    assert validation.below is not None
    below = int(validation.below.sum())
    count = below if load.startswith("below") else len(validation.below) - below
    how = "admitted at once" if load.startswith("below") else "not admitted at once"
    return f"{units.count(count)} requests that came {load} ({how})"
