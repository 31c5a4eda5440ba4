"""What the run cost: money, energy, carbon, and what these figures rest on."""

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from engine import units
from sim.economics.saying import counted, kilograms, kilowatt_hours, usd
from sim.report import theme
from sim.report.bounds import Say, bounds
from sim.report.fragments import Summary


def _watts(value: float | None) -> str:
    return units.amount(value, "W")


def _watt_hours(value: float | None) -> str:
    return units.amount(value, "Wh")


def _grams(value: float | None) -> str:
    return units.amount(value, "g")


MONEY: Final[dict[str, tuple[str, Say]]] = {
    "usd_per_hour": ("Fleet, an hour", usd),
    "usd_total": ("The whole run", usd),
    "usd_per_million_tokens": ("1M tokens, input and output", usd),
    "usd_per_million_input_tokens": ("1M input tokens", usd),
    "usd_per_million_output_tokens": ("1M output tokens", usd),
    "usd_per_1k_requests": ("1,000 requests", usd),
    "usd_per_1k_good_requests": ("1,000 requests within SLO", usd),
}
ENERGY: Final[dict[str, tuple[str, Say]]] = {
    "mean_power_w": ("Mean power", _watts),
    "energy_kwh": ("Energy", kilowatt_hours),
    "wh_per_1k_output_tokens": ("Energy of 1,000 output tokens", _watt_hours),
    "kg_co2e": ("Carbon, CO2e", kilograms),
    "g_co2e_per_1k_requests": ("CO2e of 1,000 requests", _grams),
}
PARTS: Final = {"usd_input": ("input", "prefill"), "usd_output": ("output", "decode")}
"""Part of the total -> its name, and the phase whose colour it has."""


def cost_panel(summary: Summary) -> str:
    """The section's body: figures that are known, why others are not, and what they rest on.

    Empty for a run whose summary has no `economics`.
    """
    bill = summary.get("economics")
    if bill is None:
        return ""
    figures = _facts(summary, bill, MONEY) + _facts(summary, bill, ENERGY)
    panel = f'<div class="panel">{_split(bill)}<dl class="facts">{figures}</dl></div>'
    absent = "".join(f'<p class="absent">{escape(reason)}</p>' for reason in bill["missing"])
    return (panel if figures else "") + absent + _rests_on(bill)


def _facts(summary: Summary, bill: Mapping[str, Any], names: Mapping[str, tuple[str, Say]]) -> str:
    """A figure each, with its interval under it; those that are not known are left out."""
    return "".join(
        f"<div><dt>{title}</dt><dd>{escape(say(bill[name]))}"
        f"{_interval(bounds(summary, f'economics.{name}', say))}</dd></div>"
        for name, (title, say) in names.items()
        if bill[name] is not None
    )


def _interval(text: str) -> str:
    return f'<div class="interval">{escape(text)}</div>' if text else ""


def _split(bill: Mapping[str, Any]) -> str:
    """The money as a bar of two parts, input's and output's."""
    total = bill["usd_total"]
    if not total or bill["usd_input"] is None:
        return ""
    stated = bill["given"]["input_share"] is not None
    how = "as stated" if stated else "by prefill's and decode's share of the step time"
    bar = key = ""
    for name, (part, phase) in PARTS.items():
        colour, share = theme.PHASES[phase], bill[name] / total
        bar += f'<i style="flex: {share:.6f} 0 0; background: {colour}"></i>'
        key += (
            f'<li><i style="background: {colour}"></i>{part} <b>{usd(bill[name])}</b>'
            f" ({units.share(share)})</li>"
        )
    return (
        f'<p class="finding">{usd(total)} in all, split between input and output tokens {how}.</p>'
        f'<div class="bar">{bar}</div><ul class="key">{key}</ul>'
    )


def _rests_on(bill: Mapping[str, Any]) -> str:
    """Each given figure with its source."""
    given = bill["given"]
    rows: list[tuple[str, str, str]] = []
    if "usd_per_gpu_hour" in given:
        price = f"{usd(given['usd_per_gpu_hour'])} a GPU-hour"
        if "price_date" in given:
            dated = f"{given['contract']}, {given['price_date']}"
            of = f"{given['price_of']}, " if given["price_of"] else ""
            rows.append(("Price", price, f"{of}{dated}; {given['price_source']}"))
        else:
            rows.append(("Price", price, given["price_source"]))
    if "idle_w" in given:
        rows.append(("GPU between steps", _watts(given["idle_w"]), given["idle_source"]))
        rows.append(("GPU in a step", _watts(given["peak_w"]), given["peak_source"]))
        around = f"{_watts(given['host_w_per_gpu'])} a GPU, PUE {given['pue']:g}"
        said = "left out: GPUs alone" if counted(bill) else "as set"
        rows.append(("Server and site", around, said))
        grid = given["grid"]
        named = f"grid {grid}; {given['grid_source']}" if isinstance(grid, str) else "as set"
        rows.append(("Electricity", f"{given['g_co2e_per_kwh']:g} g CO2e/kWh", named))
    if not rows:
        return ""
    said = "".join(
        f'<p class="finding">{name}: <b>{escape(value)}</b> ({escape(source)})</p>'
        for name, value, source in rows
    )
    return f"<details><summary>What these figures rest on</summary>{said}</details>"
