"""Price files: what comes with kvcast, a user's own, what is refused, and how."""

import os
from datetime import date
from pathlib import Path

import pytest
import yaml

from calibration.hardware import gpus
from calibration.profiles import Profile, load_profile
from sim.economics.errors import NotStatedError
from sim.economics.prices import (
    Price,
    load_prices,
    old_price,
    shipped_prices,
    shipped_text,
    usd_per_hour,
)
from sim.economics.settings import EconomicsSettings
from traces.errors import ConfigError

H200 = load_profile("h200-llama-3.1-8b")


def price_file(folder: Path, gpus: str, currency: str = "USD") -> str:
    path = folder / "prices.yaml"
    path.write_text(f"currency: {currency}\ngpus: {gpus}\n", encoding="utf-8")
    return str(path)


def entry(usd: float, contract: str = "on-demand", gpu: str = "h200") -> str:
    return f"{{{gpu}: {{{contract}: {{usd_per_gpu_hour: {usd}, date: 2026-01-31, source: us}}}}}}"


# ---- what comes with kvcast


def test_every_gpu_of_the_data_file_has_a_price_on_demand():
    known = shipped_prices()
    assert set(known.gpus) == {one.name for one in gpus()}
    for name in known.gpus:
        assert known.price(name).usd > 0


def test_every_price_has_a_source_and_a_date_and_follows_from_its_instance():
    for contracts in shipped_prices().gpus.values():
        for price in contracts.values():
            assert price.source
            assert date(2025, 1, 1) <= price.date <= date(2026, 12, 31)
            assert price.usd_per_instance_hour is not None
            assert price.gpus is not None
            assert price.usd * price.gpus == pytest.approx(price.usd_per_instance_hour, rel=1e-15)
            assert price.instance in price.derivation


def test_a_reservation_is_cheaper_and_a_longer_one_cheaper_still():
    for contracts in shipped_prices().gpus.values():
        usd = [contracts[name].usd for name in contracts]  # in the order of their length
        assert usd == sorted(usd, reverse=True)
        assert len(set(usd)) == len(usd)


def test_a_gpu_is_found_by_its_other_names():
    known = shipped_prices()
    assert known.price("NVIDIA A100-SXM4-80GB") == known.price("a100-80")


# ---- a user's own


def test_a_copy_of_the_shipped_file_says_the_same(tmp_path):
    copy = tmp_path / "mine.yaml"
    copy.write_text(shipped_text(), encoding="utf-8")
    assert load_prices(copy).gpus == shipped_prices().gpus


def test_a_price_of_ones_own(tmp_path):
    mine = EconomicsSettings(prices=price_file(tmp_path, entry(2.5)))
    assert usd_per_hour(H200, mine, replicas=3) == 7.5


def test_an_edited_file_is_read_again(tmp_path):
    path = price_file(tmp_path, entry(2.5))
    assert load_prices(path).price("h200").usd == 2.5
    price_file(tmp_path, entry(3.5))
    os.utime(path, ns=(1, 1))  # however coarse the clock of the file system
    assert load_prices(path).price("h200").usd == 3.5


def test_a_device_of_ones_own_can_be_priced(tmp_path):
    profile = Profile(
        name="mine",
        measured=False,
        provenance="stated",
        model="llama-3.1-8b",
        device={"name": "our cpu", "memory_bytes": 64_000_000_000},
        cost={
            "kind": "linear",
            "step_s": 0.01,
            "prefill_token_s": 1e-4,
            "decode_s": 0,
            "context_token_s": 0,
        },
    )
    mine = EconomicsSettings(prices=price_file(tmp_path, entry(0.3, gpu="our cpu")))
    assert usd_per_hour(profile, mine, replicas=2) == 0.6


def test_a_stated_price_beats_every_file(tmp_path):
    mine = EconomicsSettings(prices=price_file(tmp_path, entry(2.5)), usd_per_gpu_hour=1.25)
    assert usd_per_hour(H200, mine, replicas=2) == 2.5


def test_a_replica_pays_for_all_its_gpus():
    one, four = (load_profile(f"analytic:h100/llama-3.1-70b/tp{tp}/w-fp8") for tp in ("1", "4"))
    settings = EconomicsSettings(usd_per_gpu_hour=3)
    assert usd_per_hour(one, settings, replicas=2) == 6
    assert usd_per_hour(four, settings, replicas=2) == 24


def test_the_contract_chooses_the_price(tmp_path):
    both = (
        "{h200: {on-demand: {usd_per_gpu_hour: 4, date: 2026-01-31, source: us},"
        " reserved-3y: {usd_per_gpu_hour: 1, date: 2026-01-31, source: us}}}"
    )
    path = price_file(tmp_path, both)
    assert usd_per_hour(H200, EconomicsSettings(prices=path), 1) == 4
    assert usd_per_hour(H200, EconomicsSettings(prices=path, contract="reserved-3y"), 1) == 1


# ---- what is missing, old or wrong


def test_a_missing_price_says_which_and_what_to_do():
    with pytest.raises(NotStatedError) as said:
        usd_per_hour(H200, EconomicsSettings(contract="reserved-3y"), 1)
    for part in ("reserved-3y", "h200", "on-demand", "usd_per_gpu_hour", "economics.prices"):
        assert part in str(said.value)
    assert "\n" not in str(said.value)


def test_a_price_more_than_a_year_old_is_pointed_out():
    seen = shipped_prices().price("h200").date

    def said(as_of: date, **others: object) -> str:
        return old_price(H200, EconomicsSettings(as_of=as_of, **others))

    assert said(seen.replace(year=seen.year + 1)) == ""
    late = said(date.fromordinal(seen.replace(year=seen.year + 1).toordinal() + 1))
    assert str(seen) in late
    assert "h200" in late
    assert said(date(2099, 1, 1), usd_per_gpu_hour=1) == ""
    assert said(date(2099, 1, 1), contract="reserved-3y") == ""
    assert old_price(H200, EconomicsSettings()) == ""


@pytest.mark.parametrize(
    ("gpus", "parts"),
    [
        ("[1]", ("gpus",)),
        ("{h200: {on-demand: 2.0}}", ("gpus.h200.on-demand", "mapping")),
        ("{h200: {on-demand: {date: 2026-01-31, source: us}}}", ("usd_per_gpu_hour",)),
        (
            "{h200: {on-demand: {usd_per_instance_hour: 8, date: 2026-01-31, source: us}}}",
            ("the instance's gpus",),
        ),
        (
            "{h200: {on-demand: {usd_per_gpu_hour: 1, gpus: 8, date: 2026-01-31, source: us}}}",
            ("the instance's gpus",),
        ),
        ("{h200: {on-demand: {usd_per_gpu_hour: 1, date: 2026-01-31}}}", ("source", "required")),
        ("{h200: {on-demand: {usd_per_gpu_hour: 1, source: us}}}", ("date", "required")),
        (
            "{h200: {on-demand: {usd_per_gpu_hour: 1, date: soon, source: us}}}",
            ("date", "2026-01-31", "soon"),
        ),
        (
            "{h200: {on-demand: {usd_per_gpu_hour: -1, date: 2026-01-31, source: us}}}",
            ("at least 0", "-1"),
        ),
        (
            "{h200: {on-demand: {usd_per_gpu_hour: .inf, date: 2026-01-31, source: us}}}",
            ("usd_per_gpu_hour", "finite"),
        ),
        (entry(1, "spot"), ("spot", "on-demand, reserved-1y, reserved-3y")),
        (f"{entry(1)[:-1]}, {entry(1, gpu='H200-SXM')[1:]}", ("h200", "twice", "H200-SXM")),
    ],
)
def test_what_is_wrong_is_said_of_the_file(tmp_path, gpus, parts):
    path = price_file(tmp_path, gpus)
    with pytest.raises(ConfigError) as said:
        load_prices(path)
    assert str(said.value).startswith(path)
    for part in parts:
        assert part in str(said.value)
    assert "\n" not in str(said.value)


def test_another_currency_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="currency: must be 'USD', got 'EUR'"):
        load_prices(price_file(tmp_path, "{}", currency="EUR"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"economics.prices: .*none.yaml: cannot be read"):
        load_prices(tmp_path / "none.yaml")


def test_a_price_reads_back_as_it_was_written():
    price = shipped_prices().price("h100")
    again = Price.model_validate(yaml.safe_load(yaml.safe_dump(price.model_dump(mode="json"))))
    assert again == price
