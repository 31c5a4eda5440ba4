"""The page: controls on the left, what they do on the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from dash import dcc, html

from sim.app.controls import (
    ENGINE,
    FLEET,
    POLICIES,
    PRESET,
    PRICES,
    SLO,
    TRAFFIC,
    Control,
    Menu,
    Number,
    Slider,
    profile_parts,
)
from sim.app.pictures import (
    CAPTIONS,
    LATENCY_HEIGHT,
    TIME_HEIGHT,
    TITLES,
    empty,
)
from sim.app.plans import HEIGHT
from sim.app.stated import Choices, Offer

TICK_MS: Final = 250
"""Between two looks at a run that takes longer."""

GRAPH: Final[dict[str, Any]] = {
    "displaylogo": False,
    "displayModeBar": "hover",
    "modeBarButtons": [["toImage", "resetScale2d"]],
    "showSendToCloud": False,
    "responsive": True,
    "toImageButtonOptions": {"scale": 2},
}

LATENCY_PICTURES: Final = ("ttft", "tpot", "e2e", "queue")
PLAN_PICTURES: Final = {
    "plan-cost": (
        "Price against P99 time to first token",
        "Lower left is better; the line: candidates that no other one betters in both.",
    ),
    "plan-user": (
        "Throughput of a GPU against speed for a user",
        "Upper right is better.",
    ),
}
TIME_PICTURES: Final = ("queue_depth", "kv_cache")


def control_id(name: str) -> str:
    """The id of a control's component."""
    return f"set-{name}"


def page_layout(
    token: str, offered: Offer, starts: Choices, *, upload_bytes: int, plan: bool
) -> Any:
    """Everything, for the page of a token.

    Args:
        token: of the page.
        offered: traces and profiles to choose from.
        starts: where the controls stand at first.
        upload_bytes: that a file may have.
        plan: whether there is one from the start.
    """
    return html.Div(
        [
            dcc.Store(id="page", data=token),
            dcc.Store(id="version", data=0),
            dcc.Store(id="uploaded"),
            dcc.Store(id="uploaded-plan"),
            dcc.Interval(id="tick", interval=TICK_MS, disabled=True),
            dcc.Download(id="download"),
            html.Div(id="token", hidden=True, **_data(page=token, most=str(upload_bytes))),
            _top(),
            html.Div(
                [
                    html.Aside(
                        _settings(offered, starts), className="settings", **_labelled("Settings")
                    ),
                    html.Main(_results(plan), className="results"),
                ],
                className="columns",
            ),
        ]
    )


def _top() -> Any:
    return html.Header(
        html.Div(
            [
                html.Div("kvcast what-if", className="brand"),
                html.H1("Simulating …", id="heading"),
                html.P("", id="answer", className="answer"),
                html.P("", id="setting", className="setting"),
            ]
        ),
        className="top",
    )


# ---- settings


def _settings(offered: Offer, starts: Choices) -> list[Any]:
    return [
        _group("Traffic", [_trace_menu(offered, starts), *_traffic(starts)]),
        _group("Fleet", [*_all(FLEET, starts), *_profile(offered, starts)]),
        _group("Engine", _all((PRESET, *ENGINE), starts)),
        _group("Objectives", _objectives(starts)),
        _group("Policies", [_policy(menu, starts) for menu in POLICIES], opened=False),
        _group(
            "Prices",
            [*_all(PRICES, starts), html.Div("", id="price-said", className="hint")],
            opened=False,
        ),
    ]


def _traffic(starts: Choices) -> list[Any]:
    """Rate, and arrivals, which only some traces want."""
    rate, arrivals = _all(TRAFFIC, starts)
    return [rate, html.Div(arrivals, id="arrivals", hidden=True)]


def _group(title: str, children: Sequence[Any], *, opened: bool = True) -> Any:
    return html.Details([html.Summary(title), html.Div(children, className="group")], open=opened)


def _all(controls: Sequence[Control], starts: Choices) -> list[Any]:
    return [_control(control, starts[control.name]) for control in controls]


def _control(control: Control, start: Any) -> Any:
    if isinstance(control, Slider):
        return _slider(control, start)
    return _menu(control, start) if isinstance(control, Menu) else _number(control, start)


def _slider(control: Slider, start: int) -> Any:
    name = control_id(control.name)
    return html.Div(
        [
            html.Div(
                [
                    html.Label(control.label, id=f"{name}-label"),
                    html.Output(control.texts[start], id=f"{name}-text"),
                ],
                className="line",
            ),
            html.Div(
                dcc.Slider(
                    0,
                    len(control.values) - 1,
                    step=1,
                    value=start,
                    marks=None,
                    id=name,
                    allow_direct_input=False,
                    updatemode="mouseup",
                ),
                className="slid",
                **_data(names=name),
            ),
            html.Div(control.hint, className="hint"),
        ],
        className="control",
    )


def _menu(control: Menu, start: str, extra: Any = None) -> Any:
    name = control_id(control.name)
    return html.Div(
        [
            html.Label(control.label, htmlFor=name, id=f"{name}-label"),
            dcc.Dropdown(
                [{"value": value, "label": text} for value, text in control.options],
                start,
                id=name,
                clearable=False,
                searchable=len(control.options) > 8,
            ),
            html.Div(control.hint, className="hint", id=f"{name}-hint"),
            extra,
        ],
        className="control",
    )


def _number(control: Number, start: Any) -> Any:
    name = control_id(control.name)
    return html.Div(
        [
            html.Label(control.label, htmlFor=name),
            html.Div(
                [
                    dcc.Input(
                        id=name,
                        type="number",
                        min=0,
                        value=start,
                        debounce=True,
                        placeholder=control.open,
                    ),
                    html.Span(control.unit, className="unit"),
                ],
                className="measured",
            ),
            html.Div(control.hint, className="hint") if control.hint else None,
        ],
        className="control",
    )


def _trace_menu(offered: Offer, starts: Choices) -> Any:
    name = control_id("trace")
    return html.Div(
        [
            html.Label("Trace", htmlFor=name, id=f"{name}-label"),
            dcc.Dropdown(
                [{"value": key, "label": path} for key, path in offered.traces.items()],
                starts["trace"],
                id=name,
                clearable=False,
                searchable=False,
            ),
            html.Div("", id="trace-numbers", className="hint"),
            html.Div(
                [
                    html.Button(
                        "Upload a trace",
                        id="upload-trace",
                        className="upload",
                        **_data(upload="trace"),
                    ),
                    html.Span("", id="upload-said", className="said", role="status"),
                ],
                className="line opener",
            ),
        ],
        className="control",
    )


def _profile(offered: Offer, starts: Choices) -> list[Any]:
    name = control_id("profile")
    return [
        html.Div(
            [
                html.Label("Profile", htmlFor=name, id=f"{name}-label"),
                dcc.Dropdown(
                    [{"value": one, "label": one} for one in offered.profiles],
                    starts["profile"],
                    id=name,
                    clearable=False,
                ),
                html.Div(
                    "What a step costs. The parts below change it.",
                    id="profile-used",
                    className="hint",
                ),
            ],
            className="control",
        ),
        html.Div(_all(profile_parts(), starts), className="pairs"),
    ]


def _objectives(starts: Choices) -> list[Any]:
    return [
        html.Div("Limits that a good request keeps; red lines in the pictures.", className="hint"),
        html.Div(_all(SLO, starts), className="pairs"),
    ]


def _policy(menu: Menu, starts: Choices) -> Any:
    return _menu(menu, starts[menu.name], html.Div(id=f"parameters-{menu.name}", className="pairs"))


# ---- results


def _results(plan: bool) -> list[Any]:
    return [
        _bar(),
        html.Div(id="error", role="alert"),
        html.Div(id="banners"),
        html.Div(id="cards", className="cards"),
        html.Section(
            [
                html.H2("Latency"),
                html.Div([_picture(name) for name in LATENCY_PICTURES], className="grid"),
            ],
            id="latency",
        ),
        html.Section(
            [
                html.H2("Over time"),
                html.Div([_picture(name) for name in TIME_PICTURES], className="grid"),
            ],
            id="over-time",
        ),
        html.Section(
            [
                html.H2("Figures"),
                html.P("", id="compare-hint", className="finding"),
                html.Div(id="comparison", className="panel scroll", tabIndex="0"),
            ],
            id="figures",
        ),
        _plan_section(plan),
        html.Footer("kvcast runs on this machine; this page needs no network."),
    ]


def _bar() -> Any:
    return html.Div(
        [
            html.Div(
                [
                    html.Button("Run", id="run", className="primary"),
                    html.Button("Cancel", id="cancel", disabled=True),
                    html.Button(
                        "Pin", id="pin", disabled=True, title="Keep this run for comparison"
                    ),
                    html.Button("Report", id="report", disabled=True, title="Download report.html"),
                    html.Button(
                        "Scenario", id="scenario", disabled=True, title="Download scenario.yaml"
                    ),
                ],
                className="buttons",
            ),
            dcc.Checklist([{"value": "live", "label": "run on every change"}], ["live"], id="live"),
            html.Div("", id="status", className="said", role="status"),
            html.Div(id="pins", className="pins"),
            html.Div(html.Div(id="progress-bar"), id="progress", className="progress", hidden=True),
        ],
        className="bar-of-actions",
    )


def _picture(name: str) -> Any:
    height = LATENCY_HEIGHT if name in LATENCY_PICTURES else TIME_HEIGHT
    return html.Figure(
        [
            html.H3(TITLES[name]),
            html.P("", id=f"found-{name}", className="finding"),
            dcc.Graph(
                id=f"picture-{name}",
                figure=empty(height),
                config=GRAPH,  # pyright: ignore[reportArgumentType] a plain dict will do
                style={"height": f"{height}px"},
            ),
            html.Figcaption(CAPTIONS[name]),
        ],
        className="panel",
    )


def _plan_section(plan: bool) -> Any:
    return html.Section(
        [
            html.H2("Plan"),
            html.Div(
                [
                    html.Button(
                        "Open a plan", id="upload-plan", className="upload", **_data(upload="plan")
                    ),
                    html.Button(
                        "Try its winner", id="try-winner", className="upload", hidden=not plan
                    ),
                    html.Span(
                        "The plan.json of a finished kvcast plan: its Pareto fronts, with the run"
                        " shown above among them.",
                        id="plan-said",
                        className="said",
                        role="status",
                    ),
                ],
                className="line opener",
            ),
            html.Div(
                [_plan_picture(name) for name in PLAN_PICTURES],
                id="plan-panel",
                className="grid",
                hidden=not plan,
            ),
        ],
        id="plan",
    )


def _plan_picture(name: str) -> Any:
    title, caption = PLAN_PICTURES[name]
    return html.Figure(
        [
            html.H3(title),
            dcc.Graph(
                id=f"picture-{name}",
                figure=empty(HEIGHT),
                config=GRAPH,  # pyright: ignore[reportArgumentType] a plain dict will do
                style={"height": f"{HEIGHT}px"},
            ),
            html.Figcaption(caption),
        ],
        className="panel",
    )


def _data(**values: str) -> dict[str, Any]:
    """Attributes for the page's script."""
    return {f"data-{name}": value for name, value in values.items()}


def _labelled(text: str) -> dict[str, Any]:
    return {"aria-label": text}
