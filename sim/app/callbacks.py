"""What happens when something is done on the page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from dash import ALL, Dash, Input, Output, State, ctx, html, no_update

from engine import units
from sim.app import panels
from sim.app.controls import TIMES, controls
from sim.app.layout import LATENCY_PICTURES, TIME_PICTURES, control_id
from sim.app.menus import register_menus
from sim.app.pictures import COLOURS, NOW, Drawn, pictures
from sim.app.planned import register_plan
from sim.app.state import Finished, Page, Pages
from sim.app.words import control_words, trace_words
from sim.report import theme
from traces.settings import to_yaml

PATIENCE_S: Final = 0.9
"""How long a change waits for its figures; a longer run is looked at by and by."""

PICTURES: Final = (*LATENCY_PICTURES, *TIME_PICTURES)

ALONE: Final = (
    "Pin a run, change a setting: both then stand side by side, here and in the pictures."
)
COMPARED: Final = (
    "Shaded: the settings that differ. In small: how far a run is from the one of now."
)

UNDER_WAY: Final = {
    "version": ("version", "data"),
    "idle": ("tick", "disabled"),
    "status": ("status", "children"),
    "no_progress": ("progress", "hidden"),
    "progress": ("progress-bar", "style"),
    "no_cancel": ("cancel", "disabled"),
}
"""What shows how far a run has come: component and property."""


def register(app: Dash, pages: Pages) -> None:
    """Tie the page's components to what they do."""
    names = ["trace", "profile", *(one.name for one in controls())]
    page, version = State("page", "data"), State("version", "data")
    app.callback(
        _under_way(),
        {
            "values": {name: Input(control_id(name), "value") for name in names},
            "stated": Input({"kind": ALL, "parameter": ALL}, "value"),
            "parameter_ids": State({"kind": ALL, "parameter": ALL}, "id"),
            "clicks": Input("run", "n_clicks"),
            "live": State("live", "value"),
            "token": page,
            "seen": version,
        },
    )(partial(_run, pages))
    app.callback(
        _under_way(duplicate=True),
        {"ticks": Input("tick", "n_intervals"), "token": page, "seen": version},
        prevent_initial_call=True,
    )(partial(_look, pages))
    app.callback(
        _under_way(duplicate=True),
        {"clicks": Input("cancel", "n_clicks"), "token": page, "seen": version},
        prevent_initial_call=True,
    )(partial(_cancel, pages))
    app.callback(
        Output("version", "data", allow_duplicate=True),
        {
            "pinned": Input("pin", "n_clicks"),
            "unpinned": Input({"unpin": ALL}, "n_clicks"),
            "token": page,
        },
        prevent_initial_call=True,
    )(partial(_pin, pages))
    app.callback(
        {
            **{name: Output(name, "children") for name in ("heading", "answer", "setting")},
            **{name: Output(name, "children") for name in ("banners", "cards", "comparison")},
            **{name: Output(name, "children") for name in ("pins", "error", "trace-numbers")},
            **{f"no-{name}": Output(name, "disabled") for name in ("pin", "report", "scenario")},
            **{name: Output(name, "children") for name in ("price-said", "compare-hint")},
            "figures": [Output(f"picture-{name}", "figure") for name in PICTURES],
            "found": [Output(f"found-{name}", "children") for name in PICTURES],
        },
        {"seen": Input("version", "data"), "token": page},
        prevent_initial_call=True,
    )(partial(_draw, pages))
    app.callback(
        Output("download", "data"),
        {
            "report": Input("report", "n_clicks"),
            "scenario": Input("scenario", "n_clicks"),
            "token": page,
        },
        prevent_initial_call=True,
    )(partial(_download, pages))
    register_plan(app, pages, names)
    register_menus(app, pages)


# ---- a run


def _under_way(*, duplicate: bool = False) -> dict[str, Output]:
    return {key: Output(*where, allow_duplicate=duplicate) for key, where in UNDER_WAY.items()}


def _run(
    pages: Pages,
    values: Mapping[str, Any],
    stated: list[Any],
    parameter_ids: list[Mapping[str, str]],
    clicks: int | None,
    live: list[str] | None,
    token: str,
    seen: int,
) -> dict[str, Any]:
    """A control has changed, or Run was pressed: the figures, if they are soon there."""
    page = pages.page(token)
    asked = ctx.triggered_id == "run"
    if not asked and page.now is not None and not live:
        return dict.fromkeys(UNDER_WAY, no_update) | {"status": "Settings have changed: press Run."}
    choices = {**values, "parameters": _parameters(stated, parameter_ids)}
    if not page.wait_its_turn():
        return dict.fromkeys(UNDER_WAY, no_update)
    with page.lock:
        pages.run(page, choices, again=asked)
        job = page.job
    if job is not None:
        job.wait(PATIENCE_S)
    return _progress(page, seen)


def _look(pages: Pages, ticks: int, token: str, seen: int) -> dict[str, Any]:
    """How far the run has come."""
    return _progress(pages.page(token), seen)


def _cancel(pages: Pages, clicks: int, token: str, seen: int) -> dict[str, Any]:
    page = pages.page(token)
    with page.lock:
        page.cancel()
    return _progress(page, seen)


def _progress(page: Page, seen: int) -> dict[str, Any]:
    with page.lock:
        page.settle()
        job = page.job
        working = job is not None and job.state == "working"
        share, status = _how_far(page)
        return {
            "version": no_update if page.version == seen else page.version,
            "idle": not working,
            "status": status,
            "no_progress": not working,
            "progress": {"width": f"{100 * share:.1f}%"},
            "no_cancel": not working,
        }


def _how_far(page: Page) -> tuple[float, str]:
    """Share of the requests that have arrived, and the state in words."""
    job = page.job
    if job is None:
        return 0.0, page.notice
    path = page.asked[0].trace.path if page.asked else ""
    known = job.described or page.described.get(path)
    if known is None:
        return 0.0, "Reading the trace …"
    total = known["requests"]
    if not job.arrived:
        return 0.0, f"Simulating {units.count(total)} requests …"
    said = f"{units.count(job.arrived)} of {units.count(total)} requests have arrived"
    return min(1.0, job.arrived / total), f"Simulating: {said} …"


def _parameters(stated: list[Any], ids: list[Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Parameters of policies that were stated: kind -> name -> text."""
    found: dict[str, dict[str, str]] = {}
    for value, one in zip(stated, ids, strict=True):
        if value not in (None, ""):
            found.setdefault(str(one["kind"]), {})[str(one["parameter"])] = str(value)
    return found


# ---- what is shown


def _draw(pages: Pages, seen: int, token: str) -> dict[str, Any]:
    """Everything that shows the latest run and the pinned ones."""
    page = pages.page(token)
    with page.lock:
        now, pins, error = page.now, page.pins, page.error
        described = page.described.get(now.scenario.trace.path) if now else None
    shown = {
        "error": _failure(error, stale=now is not None) if error else None,
        "pins": [_pin_label(pin) for pin in pins],
        "no-pin": now is None or bool(error),
        "no-report": now is None,
        "no-scenario": now is None,
        "compare-hint": COMPARED if pins else ALONE,
    }
    if now is None:
        return {
            **dict.fromkeys(("heading", "answer", "setting", "banners", "cards"), no_update),
            **dict.fromkeys(("comparison", "trace-numbers", "price-said"), no_update),
            **{"figures": [no_update] * len(PICTURES), "found": [no_update] * len(PICTURES)},
            **shown,
            "heading": "Nothing to show yet" if error else no_update,
        }
    runs = [Drawn(NOW, theme.ACCENT, now.findings, True)]
    runs += [Drawn(pin.letter, COLOURS[pin.place], pin.findings, False) for pin in pins]
    choices = {run.label: one.choices for run, one in zip(runs, (now, *pins), strict=True)}
    slo = now.scenario.slo
    limits = {"ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s, "e2e_s": slo.e2e_s}
    drawn = pictures(runs, limits)
    summary = now.findings["summary"]
    say = partial(control_words, page)
    return {
        "heading": panels.heading(now.findings),
        "answer": panels.answer(summary),
        "setting": panels.setting(summary, now.took_s),
        "banners": panels.banners(summary),
        "cards": panels.cards(summary),
        "comparison": panels.comparison(runs, choices, say),
        "trace-numbers": trace_words(described),
        "price-said": panels.price(summary),
        "figures": [drawn[name].figure for name in PICTURES],
        "found": [drawn[name].finding for name in PICTURES],
        **shown,
    }


def _pin(pages: Pages, pinned: int, unpinned: list[int | None], token: str) -> Any:
    """Pin the run that is shown, or forget a pinned one."""
    page = pages.page(token)
    asked: Any = ctx.triggered_id
    job = page.job
    if asked == "pin" and job is not None:
        job.wait(PATIENCE_S)  # who has just changed a setting means that run
    with page.lock:
        if asked == "pin":
            page.settle()
            page.pin()
        elif asked and any(unpinned):
            page.unpin(str(asked["unpin"]))
        else:
            return no_update
        return page.version


def _failure(error: str, *, stale: bool) -> Any:
    below = html.Div("The figures below are those of the run before.") if stale else None
    return html.Div([html.B(error), below], className="banner failed")


def _pin_label(pin: Finished) -> Any:
    return html.Button(
        [
            html.I(className="dot", style={"background": COLOURS[pin.place]}),
            pin.letter,
            html.Span(TIMES),
        ],
        id={"unpin": pin.letter},
        className="pin",
        title=f"Forget run {pin.letter}",
    )


# ---- files


def _download(pages: Pages, report: int, scenario: int, token: str) -> Any:
    """The report or the scenario of the run that is shown."""
    page = pages.page(token)
    now = page.now
    if now is None:
        return no_update
    if ctx.triggered_id == "scenario":
        return {"content": to_yaml(page.shown_scenario(now)), "filename": "scenario.yaml"}
    settings = now.scenario.model_dump(mode="json")
    text = pages.work(page, "report", settings=settings)
    return {"content": text, "filename": "report.html", "type": "text/html"}
