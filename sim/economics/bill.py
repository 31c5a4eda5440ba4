"""The bill of a run: money, energy and carbon, in total and for what was served."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from calibration.profiles import Profile
from sim.economics.errors import NotStatedError
from sim.economics.grids import carbon_intensity
from sim.economics.power import gpu_power, site_power_w
from sim.economics.prices import stated_price, usd_per_gpu_hour
from sim.economics.settings import EconomicsSettings

HOUR_S: Final = 3600
MILLION: Final = 1_000_000
THOUSAND: Final = 1000


@dataclass(frozen=True, slots=True)
class Usage:
    """What of a run a bill is made from."""

    gpus: int
    duration_s: float
    """For which the fleet is held."""
    utilization: float
    """Share of replica time with a step running."""
    prefill_share: float | None
    """Share of step time that prefill took (sim.economics.split); None: not known."""
    requests_per_s: float
    good_requests_per_s: float | None
    """Those that met the SLO; None: there is none."""
    prompt_tokens_per_s: float
    output_tokens_per_s: float

    @classmethod
    def of_summary(cls, summary: Mapping[str, Any]) -> Self:
        """What a run's summary says."""
        throughput, goodput = summary["throughput"], summary["goodput"]
        return cls(
            gpus=summary["gpus"],
            duration_s=summary["duration_s"],
            utilization=summary["utilization"],
            prefill_share=summary.get("prefill_share"),
            requests_per_s=throughput["requests_per_s"],
            good_requests_per_s=goodput["requests_per_s"] if goodput else None,
            prompt_tokens_per_s=throughput["prompt_tokens_per_s"],
            output_tokens_per_s=throughput["output_tokens_per_s"],
        )

    @classmethod
    def of_figures(cls, figures: Mapping[str, float], gpus: int) -> Self:
        """The same of a summary's numbers by their dotted names, of a fleet of so many GPUs."""
        return cls(
            gpus=gpus,
            duration_s=figures["duration_s"],
            utilization=figures["utilization"],
            prefill_share=figures.get("prefill_share"),
            requests_per_s=figures["throughput.requests_per_s"],
            good_requests_per_s=figures.get("goodput.requests_per_s"),
            prompt_tokens_per_s=figures["throughput.prompt_tokens_per_s"],
            output_tokens_per_s=figures["throughput.output_tokens_per_s"],
        )


@dataclass(frozen=True, slots=True)
class Bill:
    """Money in US dollars, energy from the grid and greenhouse gases as CO2 equivalents.

    A figure is None where nothing was served that it could be divided by, or where nobody states
    what it needs: a price, a power, the split.
    """

    usd_per_hour: float | None
    """Of the whole fleet."""
    usd_total: float | None
    """For the duration of the run, warm-up included."""
    usd_input: float | None
    """Input tokens' part of `usd_total`; the two parts add up to it exactly."""
    usd_output: float | None
    usd_per_million_tokens: float | None
    """Input and output tokens alike."""
    usd_per_million_input_tokens: float | None
    """Prompt tokens of served requests, those found in a cache too."""
    usd_per_million_output_tokens: float | None
    usd_per_1k_requests: float | None
    """Served ones: finished or truncated."""
    usd_per_1k_good_requests: float | None
    """Those that met the SLO."""
    mean_power_w: float | None
    """Of the whole fleet, its servers and site as far as they are stated."""
    energy_kwh: float | None
    """For the duration of the run."""
    wh_per_1k_output_tokens: float | None
    kg_co2e: float | None
    g_co2e_per_1k_requests: float | None


def bill(summary: Mapping[str, Any], profile: Profile, settings: EconomicsSettings) -> Bill:
    """The bill of a run with this summary.

    Raises:
        NotStatedError: nobody states a price; the message says how to. (Power that nobody states
            leaves its figures None.)
        ConfigError: a price file that cannot be used.
    """
    return bill_for(Usage.of_summary(summary), profile, settings)


def bill_for(usage: Usage, profile: Profile, settings: EconomicsSettings) -> Bill:
    """The bill of what a run used; raises as `bill`."""
    usd_per_hour = usage.gpus * usd_per_gpu_hour(profile, settings)
    try:
        power_w = _power_w(usage, profile, settings)
    except NotStatedError:
        power_w = None
    return _bill(usage, settings, usd_per_hour, power_w)


def economics(
    summary: Mapping[str, Any], profile: Profile, settings: EconomicsSettings
) -> dict[str, Any]:
    """A run's bill as its summary has it, with `given` (what it rests on) and `missing` (texts).

    Raises:
        ConfigError: a price file that cannot be used.
    """
    usage = Usage.of_summary(summary)
    missing: list[str] = []
    given: dict[str, Any] = {}
    usd_per_hour = power_w = None
    try:
        given |= _given_price(profile, settings)
        usd_per_hour = usage.gpus * given["usd_per_gpu_hour"]
    except NotStatedError as error:
        missing.append(_reason(error))
    try:
        given |= _given_power(profile, settings)
        power_w = _power_w(usage, profile, settings)
    except NotStatedError as error:
        missing.append(_reason(error))
    given["input_share"] = settings.input_share
    figures = asdict(_bill(usage, settings, usd_per_hour, power_w))
    return {**figures, "given": given, "missing": missing}


def check(profile: Profile, settings: EconomicsSettings) -> None:
    """Refuse settings that no bill can be made by, before a long run rather than after it.

    Raises:
        ConfigError: a price file that cannot be used, or powers that make no sense. That nobody
            states one is no error here.
    """
    for stated in (stated_price, gpu_power):
        with suppress(NotStatedError):
            stated(profile, settings)


def _bill(
    usage: Usage, settings: EconomicsSettings, usd_per_hour: float | None, power_w: float | None
) -> Bill:
    hours = usage.duration_s / HOUR_S
    usd_per_s = None if usd_per_hour is None else usd_per_hour / HOUR_S
    input_share = usage.prefill_share if settings.input_share is None else settings.input_share
    usd_total = None if usd_per_hour is None else usd_per_hour * hours
    usd_input, usd_output = _parts(usd_total, input_share)
    input_usd_per_s, output_usd_per_s = _parts(usd_per_s, input_share)
    g_per_kwh, _ = carbon_intensity(settings.grid)
    kwh = None if power_w is None else power_w / THOUSAND * hours
    wh_per_s = None if power_w is None else power_w / HOUR_S
    tokens_per_s = usage.prompt_tokens_per_s + usage.output_tokens_per_s
    g_per_s = None if wh_per_s is None else wh_per_s / THOUSAND * g_per_kwh
    return Bill(
        usd_per_hour=usd_per_hour,
        usd_total=usd_total,
        usd_input=usd_input,
        usd_output=usd_output,
        usd_per_million_tokens=_per(MILLION, usd_per_s, tokens_per_s),
        usd_per_million_input_tokens=_per(MILLION, input_usd_per_s, usage.prompt_tokens_per_s),
        usd_per_million_output_tokens=_per(MILLION, output_usd_per_s, usage.output_tokens_per_s),
        usd_per_1k_requests=_per(THOUSAND, usd_per_s, usage.requests_per_s),
        usd_per_1k_good_requests=_per(THOUSAND, usd_per_s, usage.good_requests_per_s),
        mean_power_w=power_w,
        energy_kwh=kwh,
        wh_per_1k_output_tokens=_per(THOUSAND, wh_per_s, usage.output_tokens_per_s),
        kg_co2e=None if kwh is None else kwh * g_per_kwh / THOUSAND,
        g_co2e_per_1k_requests=_per(THOUSAND, g_per_s, usage.requests_per_s),
    )


def _power_w(usage: Usage, profile: Profile, settings: EconomicsSettings) -> float:
    gpu = gpu_power(profile, settings)
    return site_power_w(gpu, usage.utilization, usage.gpus, settings.power)


def _given_price(profile: Profile, settings: EconomicsSettings) -> dict[str, Any]:
    price = stated_price(profile, settings)
    usd = usd_per_gpu_hour(profile, settings)
    if price is None:
        return {"usd_per_gpu_hour": usd, "price_source": "as set"}
    return {
        "usd_per_gpu_hour": usd,
        "contract": settings.contract,
        "price_of": price.derivation,
        "price_date": price.date.isoformat(),
        "price_source": price.source,
    }


def _given_power(profile: Profile, settings: EconomicsSettings) -> dict[str, Any]:
    gpu = gpu_power(profile, settings)
    g_per_kwh, grid_source = carbon_intensity(settings.grid)
    return {
        "idle_w": gpu.idle_w,
        "idle_source": gpu.idle_source,
        "peak_w": gpu.peak_w,
        "peak_source": gpu.peak_source,
        "host_w_per_gpu": settings.power.host_w_per_gpu,
        "pue": settings.power.pue,
        "grid": settings.grid,
        "g_co2e_per_kwh": g_per_kwh,
        "grid_source": grid_source,
    }


def _parts(total: float | None, share: float | None) -> tuple[float | None, float | None]:
    """`share` of a total and the rest; the smaller part is a difference, so that both add up."""
    if total is None or share is None:
        return None, None
    if share < 0.5:
        rest = total * (1 - share)
        return total - rest, rest
    part = total * share
    return part, total - part


def _per(count: int, amount_per_s: float | None, rate_per_s: float | None) -> float | None:
    """What `count` of something cost that is served at a rate; None where nothing is."""
    return count * amount_per_s / rate_per_s if amount_per_s is not None and rate_per_s else None


def _reason(error: NotStatedError) -> str:
    return str(error).removeprefix("economics: ")
