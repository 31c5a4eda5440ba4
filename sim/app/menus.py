"""What menus say and offer: profiles and their parts, policies and their parameters, traces."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from dash import Dash, Input, Output, State, dcc, html, no_update

from calibration.profiles import load_profile
from engine import units
from engine.named import parameters
from sim.app.controls import POLICIES, Menu, Slider, controls, parts_of, profile_parts
from sim.app.layout import control_id
from sim.app.state import Pages
from sim.app.stated import used_profile
from sim.kinds import KINDS
from sim.policies_cli import documentation, first_sentence
from traces.errors import KvcastError


def register_menus(app: Dash, pages: Pages) -> None:
    """Tie menus to what depends on them."""
    parts = [control_id(menu.name) for menu in profile_parts()]
    app.callback(
        [Output(part, "value") for part in parts],
        Input(control_id("profile"), "value"),
        prevent_initial_call=True,
    )(partial(_part_profile, pages))
    app.callback(
        Output("profile-used", "children"),
        {
            "profile": Input(control_id("profile"), "value"),
            "parts": {menu.name: Input(control_id(menu.name), "value") for menu in profile_parts()},
        },
    )(partial(_name_profile, pages))
    for menu in POLICIES:
        app.callback(
            Output(f"{control_id(menu.name)}-hint", "children"),
            Output(f"parameters-{menu.name}", "children"),
            Input(control_id(menu.name), "value"),
        )(partial(_tell_policy, menu))
    app.callback(
        Output(control_id("trace"), "options"),
        Output(control_id("trace"), "value"),
        Output("upload-said", "children"),
        {"uploaded": Input("uploaded", "data"), "token": State("page", "data")},
        prevent_initial_call=True,
    )(partial(_take_upload, pages))
    app.callback(
        Output("arrivals", "hidden"),
        {"trace": Input(control_id("trace"), "value"), "token": State("page", "data")},
    )(partial(_hide_arrivals, pages))
    for control in controls():
        if isinstance(control, Slider):
            texts = json.dumps(control.texts, ensure_ascii=True)
            name = control_id(control.name)
            app.clientside_callback(
                f"(moved, value) => {texts}[moved ?? value]",
                Output(f"{name}-text", "children"),
                Input(name, "drag_value"),
                Input(name, "value"),
            )


def _part_profile(pages: Pages, name: str) -> list[str]:
    """A profile was chosen: its parts."""
    return list(parts_of(load_profile(_offered(pages, name))).values())


def _offered(pages: Pages, name: str) -> str:
    return name if name in pages.offered.profiles else pages.offered.profiles[0]


def _name_profile(pages: Pages, profile: str, parts: Mapping[str, str]) -> str:
    """Which profile is used, where it is not the one on the menu."""
    try:
        used = used_profile({"profile": profile, **parts}, pages.offered)
    except KvcastError:
        return "What a step costs."
    if used.name == profile or profile == used.name.lower():
        return "What a step costs; the parts below change it."
    return f"Changed: {used.name}"


def _hide_arrivals(pages: Pages, trace: str, token: str) -> bool:
    """A rate of arrivals is asked for where a trace has none, or may have none."""
    upload = pages.page(token).uploads.get(trace)
    if upload is not None:
        return not upload.described["needs_rate"]
    return not trace.startswith("file:")


def _tell_policy(menu: Menu, name: str) -> tuple[str, list[Any]]:
    """What a policy does, and fields for its parameters."""
    policy = KINDS[menu.name].table.get(name)
    if policy is None:
        return menu.hint, []
    fields = [_field(menu.name, *one) for one in parameters(policy).items()]
    return first_sentence(documentation(policy)), fields


def _field(kind: str, parameter: str, default: Any) -> Any:
    """A field for a parameter, empty for its default."""
    name = {"kind": kind, "parameter": parameter}
    shown = "" if default is inspect.Parameter.empty else str(default)
    return html.Div(
        [
            html.Label(
                parameter.replace("_", " "),
                htmlFor=json.dumps(name, sort_keys=True, separators=(",", ":")),
            ),
            dcc.Input(id=name, debounce=True, placeholder=shown),
        ],
        className="control",
    )


def _take_upload(pages: Pages, uploaded: Mapping[str, Any] | None, token: str) -> tuple[Any, ...]:
    """A trace has been uploaded, or has not."""
    if not uploaded:
        return no_update, no_update, no_update
    if "error" in uploaded:
        return no_update, no_update, html.Span(str(uploaded["error"]), className="bad")
    page = pages.page(token)
    with page.lock:
        mine = [{"value": one.key, "label": one.name} for one in page.uploads.values()]
        upload = page.uploads.get(str(uploaded.get("key")))
    theirs = [{"value": key, "label": path} for key, path in pages.offered.traces.items()]
    if upload is None:
        return no_update, no_update, no_update
    said = f"{upload.described['format']}, {units.count(upload.described['requests'])} requests"
    return [*theirs, *mine], upload.key, said
