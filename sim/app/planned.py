"""A plan on the page: opened, drawn, and its winner tried."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from dash import Dash, Input, Output, State, ctx, html, no_update

from sim.app import plans
from sim.app.controls import profile_parts
from sim.app.layout import control_id
from sim.app.state import Pages
from sim.app.unstated import choices_of
from traces.errors import KvcastError


def register_plan(app: Dash, pages: Pages, names: list[str]) -> None:
    """Tie the plan to its pictures; `names`: of all controls."""
    page = State("page", "data")
    app.callback(
        {
            "cost": Output("picture-plan-cost", "figure"),
            "user": Output("picture-plan-user", "figure"),
            "none": Output("plan-panel", "hidden"),
            "no_winner": Output("try-winner", "hidden"),
            "said": Output("plan-said", "children"),
        },
        {
            "opened": Input("uploaded-plan", "data"),
            "seen": Input("version", "data"),
            "token": page,
        },
        prevent_initial_call=True,
    )(partial(_draw_plan, pages))
    app.callback(
        {
            "values": {
                name: Output(control_id(name), "value", allow_duplicate=True) for name in names
            },
            "said": Output("plan-said", "children", allow_duplicate=True),
        },
        {"clicks": Input("try-winner", "n_clicks"), "token": page},
        prevent_initial_call=True,
    )(partial(_try_winner, pages, names))


def _draw_plan(
    pages: Pages, opened: Mapping[str, Any] | None, seen: int, token: str
) -> dict[str, Any]:
    """The plan that the page has, if it has one, and where the run of now lies in it."""
    page = pages.page(token)
    nothing: dict[str, Any] = dict.fromkeys(
        ("cost", "user", "none", "no_winner", "said"), no_update
    )
    if ctx.triggered_id == "uploaded-plan" and opened and "error" in opened:
        return nothing | {"said": html.Span(str(opened["error"]), className="bad")}
    plan, now = page.plan, page.now
    if plan is None:
        return nothing
    findings = now.findings if now is not None else None
    return {
        "cost": plans.cost_picture(plan, findings),
        "user": plans.user_picture(plan, findings),
        "none": False,
        "no_winner": False,
        "said": plans.said(plan),
    }


def _try_winner(pages: Pages, names: list[str], clicks: int, token: str) -> dict[str, Any]:
    """Set the controls as the winner of the plan has them."""
    plan = pages.page(token).plan
    values: dict[str, Any] = dict.fromkeys(names, no_update)
    if plan is None:
        return {"values": values, "said": no_update}
    try:
        choices = choices_of(plan["scenario"], pages.offered, "the winner")
    except KvcastError as error:
        return {"values": values, "said": html.Span(str(error), className="bad")}
    values |= {name: choices[name] for name in names}
    if choices["profile"] == plan["scenario"]["profile"]:  # the menu then sets its parts
        values |= {menu.name: no_update for menu in profile_parts()}
    else:
        values["profile"] = no_update
    return {"values": values, "said": no_update}
