"""The bill: conservation laws, closed forms, what is not known."""

from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.profiles import load_profile
from sim.economics.bill import Bill, Usage, bill_for
from sim.economics.errors import NotStatedError
from sim.economics.settings import EconomicsSettings, PowerSettings

H200 = load_profile("h200-llama-3.1-8b")
POWER = PowerSettings(idle_w=100, peak_w=600, host_w_per_gpu=300, pue=1.5)
TOTALS = ("usd_total", "usd_input", "usd_output", "energy_kwh", "kg_co2e")
MONEY = tuple(field.name for field in fields(Bill) if field.name.startswith("usd"))


def settings(**stated: object) -> EconomicsSettings:
    return EconomicsSettings(**{"usd_per_gpu_hour": 2.0, "grid": 500, "power": POWER, **stated})


def bill(usage: Usage, **stated: object) -> Bill:
    return bill_for(usage, H200, settings(**stated))


USAGE = Usage(
    gpus=4,
    duration_s=1800,
    utilization=0.6,
    prefill_share=0.25,
    requests_per_s=10,
    good_requests_per_s=8,
    prompt_tokens_per_s=20_000,
    output_tokens_per_s=5_000,
)

positive = st.floats(1e-3, 1e6)
shares = st.floats(0, 1)
plain_shares = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)
"""So that one less a share has as many digits as the share."""
usages = st.builds(
    Usage,
    gpus=st.integers(1, 10_000),
    duration_s=positive,
    utilization=shares,
    prefill_share=plain_shares,
    requests_per_s=positive,
    good_requests_per_s=positive,
    prompt_tokens_per_s=positive,
    output_tokens_per_s=positive,
)


def test_by_hand():
    found = bill(USAGE)
    watts = 1.5 * 4 * (100 + 500 * 0.6 + 300)
    assert asdict(found) == pytest.approx(
        {
            "usd_per_hour": 8,
            "usd_total": 4,
            "usd_input": 1,
            "usd_output": 3,
            "usd_per_million_tokens": 4 / (25_000 * 1800) * 1e6,
            "usd_per_million_input_tokens": 1 / (20_000 * 1800) * 1e6,
            "usd_per_million_output_tokens": 3 / (5_000 * 1800) * 1e6,
            "usd_per_1k_requests": 4 / 18_000 * 1e3,
            "usd_per_1k_good_requests": 4 / 14_400 * 1e3,
            "mean_power_w": watts,
            "energy_kwh": watts / 1000 / 2,
            "wh_per_1k_output_tokens": watts / 2 / (5_000 * 1800) * 1e3,
            "kg_co2e": watts / 1000 / 2 * 0.5,
            "g_co2e_per_1k_requests": watts / 1000 / 2 * 500 / 18_000 * 1e3,
        }
    )


@given(usages, st.none() | shares)
def test_parts_add_up_to_the_total_exactly(usage, input_share):
    found = bill(usage, input_share=input_share)
    assert found.usd_input + found.usd_output == found.usd_total
    assert min(found.usd_input, found.usd_output) >= 0


def test_parts_add_up_exactly_where_products_would_not():
    usage = replace(USAGE, duration_s=1234.567)
    for thousandths in range(1001):
        found = bill(usage, usd_per_gpu_hour=0.7, input_share=thousandths / 1000)
        assert found.usd_input + found.usd_output == found.usd_total


@given(usages)
def test_tokens_pay_for_the_fleet(usage):
    """Input and output tokens times their prices are what the fleet costs."""
    found = bill(usage)
    served_usd_per_s = (
        usage.prompt_tokens_per_s * found.usd_per_million_input_tokens
        + usage.output_tokens_per_s * found.usd_per_million_output_tokens
    ) / 1e6
    assert served_usd_per_s * 3600 == pytest.approx(found.usd_per_hour)
    assert found.usd_per_1k_requests * usage.requests_per_s * 3.6 == pytest.approx(
        found.usd_per_hour
    )


@given(usages, st.floats(0.1, 10))
def test_money_is_linear_in_the_price_and_energy_does_not_know_it(usage, factor):
    cheap, dear = bill(usage), bill(usage, usd_per_gpu_hour=2.0 * factor)
    for field in fields(Bill):
        one, other = getattr(cheap, field.name), getattr(dear, field.name)
        assert other == pytest.approx(one * (factor if field.name in MONEY else 1)), field.name


@given(usages)
def test_twice_as_long_at_the_same_load_doubles_totals_and_nothing_else(usage):
    once, twice = bill(usage), bill(replace(usage, duration_s=2 * usage.duration_s))
    for field in fields(Bill):
        one, other = getattr(once, field.name), getattr(twice, field.name)
        assert other == pytest.approx(one * (2 if field.name in TOTALS else 1)), field.name


@given(usages)
def test_twice_the_fleet_at_twice_the_load_costs_a_token_the_same(usage):
    double = replace(
        usage,
        gpus=2 * usage.gpus,
        requests_per_s=2 * usage.requests_per_s,
        good_requests_per_s=2 * usage.good_requests_per_s,
        prompt_tokens_per_s=2 * usage.prompt_tokens_per_s,
        output_tokens_per_s=2 * usage.output_tokens_per_s,
    )
    one, other = bill(usage), bill(double)
    for field in fields(Bill):
        factor = 2 if field.name in (*TOTALS, "usd_per_hour", "mean_power_w") else 1
        assert getattr(other, field.name) == pytest.approx(factor * getattr(one, field.name))


@given(usages, st.floats(0, 900))
def test_carbon_is_energy_times_intensity(usage, grams):
    found = bill(usage, grid=grams)
    assert found.kg_co2e == pytest.approx(found.energy_kwh * grams / 1000)


def test_a_stated_share_overrides_the_split():
    assert bill(USAGE, input_share=1.0).usd_output == 0
    assert bill(USAGE, input_share=0.0).usd_input == 0


def test_without_a_split_the_rest_is_there():
    found = bill(replace(USAGE, prefill_share=None))
    assert found.usd_input is None
    assert found.usd_per_million_output_tokens is None
    assert found.usd_per_million_tokens == bill(USAGE).usd_per_million_tokens


def test_nothing_served_costs_but_has_no_price():
    idle = replace(
        USAGE,
        utilization=0,
        requests_per_s=0,
        good_requests_per_s=None,
        prompt_tokens_per_s=0,
        output_tokens_per_s=0,
    )
    found = bill(idle)
    assert found.usd_total == 4
    assert found.mean_power_w == pytest.approx(1.5 * 4 * 400)
    for name in MONEY[4:]:
        assert getattr(found, name) is None, name
    assert found.wh_per_1k_output_tokens is None
    assert found.g_co2e_per_1k_requests is None


def test_a_missing_price_is_an_error_and_missing_power_a_gap():
    with pytest.raises(NotStatedError, match="reserved-3y price of h200"):
        bill(USAGE, usd_per_gpu_hour=None, contract="reserved-3y")
    unread = load_profile("analytic:rtx-pro-6000/llama-3.1-8b")
    found = bill_for(USAGE, unread, EconomicsSettings())
    assert found.usd_per_hour == pytest.approx(4 * 3.36312)
    assert found.energy_kwh is None
    assert found.kg_co2e is None
