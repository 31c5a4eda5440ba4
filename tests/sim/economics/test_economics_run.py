"""The bill in a run: summary, intervals, terminal, report, command line, comparisons."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from calibration.power import MeasuredPower
from calibration.profiles import load_profile
from sim.comparing.metrics import good, heading
from sim.economics.bill import Bill, Usage, bill, bill_for
from sim.economics.prices import load_prices
from sim.economics.saying import cost_line, kilograms, kilowatt_hours, missing_lines, usd
from sim.replay import replay
from sim.report.cost import cost_panel
from sim.scenario import Scenario, scenario_of
from sim.uncertainty import figures
from traces.errors import ConfigError
from traces.request import Request
from traces.settings import merged

H200 = "h200-llama-3.1-8b"
REQUESTS = [Request(i, 0.05 * i, 400 + 37 * (i % 11), 20 + i % 7) for i in range(200)]
UNREAD = "analytic:rtx-pro-6000/llama-3.1-8b"
STATED = {
    "name": "our cpu",
    "measured": False,
    "provenance": "stated",
    "model": "llama-3.1-8b",
    "device": {"name": "our cpu", "memory_bytes": 64_000_000_000},
    "cost": {
        "kind": "linear",
        "step_s": 0.002,
        "prefill_token_s": 1e-6,
        "decode_s": 1e-5,
        "context_token_s": 1e-9,
    },
}


def scenario(**settings: Any) -> Scenario:
    return scenario_of(merged({"cluster": {"replicas": 2}, "slo": {"ttft_s": 0.1}}, settings))


def summary(requests: list[Request] = REQUESTS, **settings: Any) -> Any:
    run = replay(scenario(**settings), requests, keep_requests=False, keep_segments=False)
    return run.summary


def of_stated_device(folder: Path, **settings: Any) -> Any:
    path = folder / "stated.yaml"
    path.write_text(yaml.safe_dump(STATED), encoding="utf-8")
    return summary(profile=str(path), **settings)


# ---- in the summary


def test_the_summarys_bill_is_the_bill_of_the_summary():
    found = summary()
    settings = scenario().economics
    again = bill(found, load_profile(H200), settings)
    section = found["economics"]
    assert {name: section[name] for name in again.__dataclass_fields__} == {
        name: getattr(again, name) for name in again.__dataclass_fields__
    }
    assert section["missing"] == []
    assert section["usd_total"] == pytest.approx(
        section["usd_per_hour"] * found["duration_s"] / 3600
    )
    assert section["given"]["price_date"] in section["given"]["price_source"]
    json.dumps(found, allow_nan=False)


def test_figures_of_a_sweep_can_be_priced_anew():
    found = summary()
    plain = figures(found)
    dearer = scenario(economics={"usd_per_gpu_hour": 20}).economics
    profile = load_profile(H200)
    assert bill_for(Usage.of_figures(plain, found["gpus"]), profile, dearer) == bill(
        found, profile, dearer
    )


def test_prices_change_no_decision():
    plain, priced = summary(), summary(economics={"usd_per_gpu_hour": 99, "grid": "sweden"})
    assert plain.pop("economics") != priced.pop("economics")
    assert plain == priced


def test_equal_runs_have_equal_bills():
    assert summary() == summary()


def test_a_tokens_price_does_not_depend_on_the_warm_up_that_is_left_out():
    """Twice the same traffic, the first half as warm-up: the second half alone sets the price."""
    once = [Request(i, 0.1 * i, 256, 16) for i in range(100)]
    twice = [Request(i, 0.1 * i, 256, 16) for i in range(200)]
    alone = summary(once, cache={"prefix_caching": False})["economics"]
    warmed = summary(twice, cache={"prefix_caching": False}, warmup_s=10.0)["economics"]
    for name in ("usd_per_million_input_tokens", "usd_per_1k_requests", "usd_per_hour"):
        assert warmed[name] == pytest.approx(alone[name], rel=0.03), name
    assert warmed["usd_total"] == pytest.approx(2 * alone["usd_total"], rel=0.03)


def test_no_request_at_all():
    section = summary([])["economics"]
    assert section["usd_per_million_tokens"] is None
    assert section["usd_input"] is None
    assert section["usd_total"] == 0


def test_what_nobody_states_is_missing_with_a_reason(tmp_path):
    unread = summary(profile=UNREAD)["economics"]
    assert unread["usd_per_hour"] > 0
    assert unread["energy_kwh"] is None
    assert unread["missing"] == ["no idle_w of rtx-pro-6000 is known; state economics.power.idle_w"]
    stated = of_stated_device(tmp_path)["economics"]
    assert stated["usd_total"] is None
    assert len(stated["missing"]) == 2
    full = {"usd_per_gpu_hour": 0.5, "power": {"idle_w": 60, "peak_w": 200}}
    priced = of_stated_device(tmp_path, economics=full)["economics"]
    assert priced["missing"] == []
    assert priced["usd_per_hour"] == 1.0
    assert 120 < priced["mean_power_w"] < 400


def test_settings_without_sense_stop_a_run_before_it_begins(tmp_path):
    def never() -> Any:
        raise AssertionError("a request was asked for")
        yield

    wrong = [{"prices": str(tmp_path / "none.yaml")}, {"power": {"peak_w": 10}}]
    for economics in wrong:
        with pytest.raises(ConfigError, match="economics"):
            replay(scenario(economics=economics), never())


@pytest.mark.parametrize(
    ("economics", "said"),
    [
        ({"grid": "frnce"}, "unknown grid 'frnce'; did you mean france?"),
        ({"grid": -1}, "at least 0 g CO2e per kWh"),
        ({"contract": "spot"}, "'on-demand', 'reserved-1y' or 'reserved-3y', got 'spot'"),
        ({"as_of": "yesterday"}, "as_of: must be a date like 2026-01-31, got 'yesterday'"),
        ({"as_of": 5}, "as_of: must be a date like 2026-01-31, got 5"),
        ({"usd_per_gpu_hour": -1}, "must be at least 0"),
        ({"input_share": 1.5}, "must be at most 1"),
        ({"power": {"pue": 0.9}}, "must be at least 1"),
        ({"price": 1}, "did you mean economics.prices?"),
    ],
)
def test_a_wrong_setting_is_refused(economics, said):
    with pytest.raises(ConfigError) as error:
        scenario(economics=economics)
    assert said in str(error.value)


def test_settings_survive_the_scenario_file():
    stated = scenario(economics={"as_of": "2026-05-01", "grid": 12, "contract": "reserved-1y"})
    again = scenario_of(yaml.safe_load(yaml.safe_dump(stated.model_dump(mode="json"))))
    assert again == stated


def test_an_old_price_is_a_warning():
    assert any(
        "2026-01-21" in line for line in summary(economics={"as_of": "2028-01-01"})["warnings"]
    )
    assert summary(economics={"as_of": "2026-02-01"})["warnings"] == summary()["warnings"]


# ---- intervals and comparisons


def test_costs_have_intervals_and_given_prices_none():
    found = replay(
        scenario(uncertainty={"replications": 5, "cost_share": 0.3}), REQUESTS, keep_requests=False
    ).summary
    intervals = found["uncertainty"]["intervals"]
    low, high = intervals["economics.usd_per_million_output_tokens"]
    assert low < found["economics"]["usd_per_million_output_tokens"] < high
    assert 0 <= intervals["prefill_share"][0] <= intervals["prefill_share"][1] <= 1
    assert "economics.usd_per_hour" not in intervals
    assert not [name for name in intervals if name.startswith("economics.given")]


def test_less_is_better_of_every_figure_of_a_bill():
    names = [name for name in figures(summary()) if name.startswith("economics.")]
    assert len(names) == 13
    for name in names:
        assert good(name) == "lower"
        assert heading(name) != name.replace("_", " "), name
    assert good("prefill_share") == ""


# ---- in words


@pytest.mark.parametrize(
    ("said", "value", "text"),
    [
        (usd, None, "–"),  # noqa: RUF001 an en dash, as in print
        (usd, 0.0, "$0"),
        (usd, 0.0123456, "$0.0123"),
        (usd, 7.5, "$7.50"),
        (usd, 123.456, "$123"),
        (usd, 1234.5, "$1,234"),
        (kilowatt_hours, 0.0983, "98.3 Wh"),
        (kilowatt_hours, 0.99951, "1.00 kWh"),
        (kilowatt_hours, 3100, "3.10 MWh"),
        (kilograms, 0.048, "48.0 g"),
        (kilograms, 1020, "1.02 t"),
    ],
)
def test_figures_as_a_reader_wants_them(said, value, text):
    assert said(value) == text


def test_one_line_says_what_is_known(tmp_path):
    known = summary()
    section = known["economics"]
    assert cost_line(known) == (
        f"$15.82/h, {usd(section['usd_per_million_output_tokens'])} per 1M output tokens,"
        f" {kilowatt_hours(section['energy_kwh'])} (GPUs alone)"
    )
    assert "(GPUs alone)" not in cost_line(summary(economics={"power": {"pue": 1.2}}))
    assert cost_line(summary(profile=UNREAD)).endswith("per 1M output tokens")
    stated = of_stated_device(tmp_path)
    assert cost_line(stated) == ""
    assert len(missing_lines(stated)) == 2
    assert cost_line({}) == ""
    assert missing_lines({}) == []


def test_the_panel_shows_the_bill_and_what_it_rests_on(tmp_path):
    known = summary()
    panel = cost_panel(known)
    section, given = known["economics"], known["economics"]["given"]
    assert usd(section["usd_per_million_output_tokens"]) in panel
    assert kilowatt_hours(section["energy_kwh"]) in panel
    assert given["price_source"] in panel
    assert given["price_date"] in panel
    assert "by prefill's and decode's share of the step time" in panel
    assert "as stated" in cost_panel(summary(economics={"input_share": 0.3}))
    stated = cost_panel(of_stated_device(tmp_path))
    assert stated.count('class="absent"') == 2
    assert "<dl" not in stated
    assert cost_panel({}) == ""


def test_a_source_cannot_write_html(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text(
        "currency: USD\ngpus: {h200: {on-demand: {usd_per_gpu_hour: 1, date: 2026-01-31,"
        ' instance: "<i>x</i>", source: "<script>alert(1)</script>"}}}',
        encoding="utf-8",
    )
    panel = cost_panel(summary(economics={"prices": str(path)}))
    assert "<script>" not in panel
    assert "<i>x" not in panel
    assert "&lt;script&gt;" in panel


# ---- on the command line


def test_prices_are_listed_with_dates_and_sources(kvcast):
    code, out, _ = kvcast("prices")
    assert code == 0
    for text in ("h200", "reserved-1y", "2026-01-21", "AWS p5en.48xlarge", "(1) AWS price list"):
        assert text in out
    code, out, _ = kvcast("prices", "--grids")
    assert code == 0
    assert "sweden" in out
    assert "35.89" in out


def test_a_copy_is_edited_and_used(kvcast):
    assert kvcast("prices", "--write", "mine.yaml")[0] == 0
    code, _, error = kvcast("prices", "--write", "mine.yaml")
    assert code == 2
    assert "mine.yaml: exists already" in error
    text = Path("mine.yaml").read_text("utf-8")
    assert text.startswith("# What GPUs cost")
    Path("mine.yaml").write_text(text.replace("63.296", "80.0"), "utf-8")
    code, out, _ = kvcast("replay", "--set", "economics.prices=mine.yaml", "--out", "out")
    assert code == 0
    assert "cost          $10.00/h, " in out
    given = json.loads(Path("out/summary.json").read_text())["economics"]["given"]
    assert given["usd_per_gpu_hour"] == 10
    assert 'id="cost"' in Path("out/report.html").read_text("utf-8")
    code, out, _ = kvcast("prices", "mine.yaml")
    assert code == 0
    assert "$10.00" in out


def test_the_same_run_writes_the_same_bytes(kvcast):
    for folder in ("a", "b"):
        assert kvcast("replay", "--out", folder)[0] == 0
    for name in ("summary.json", "report.html", "scenario.yaml"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()


def test_the_terminal_says_why_there_is_no_cost(kvcast):
    code, out, _ = kvcast("replay", "--set", "economics.contract=reserved-3y")
    assert code == 0
    assert "prices.yaml has no reserved-3y price of h200" in " ".join(out.split())


def test_a_price_file_that_cannot_be_used_is_one_line(kvcast):
    Path("mine.yaml").write_text("currency: USD\ngpus: {h200: {on-demand: 2}}\n", "utf-8")
    code, _, error = kvcast("replay", "--set", "economics.prices=mine.yaml")
    assert code == 2
    assert error.startswith("error: mine.yaml: gpus.h200.on-demand: must be a mapping")
    assert error.count("\n") == 1


def test_the_python_of_the_page_runs(capsys):
    page = Path(__file__).parents[3] / "docs" / "economics.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    exec(example, {})
    per_million, per_hour = capsys.readouterr().out.split()
    assert 0 < float(per_million) < 10
    assert float(per_hour) == 36


def test_the_page_has_every_figure_and_its_price_file_can_be_used(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "economics.md").read_text("utf-8")
    assert [name for name in Bill.__dataclass_fields__ if f"`{name}`" not in page] == []
    (example,) = re.findall(r"```yaml\n(currency.*?)```", page, re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(example, encoding="utf-8")
    assert load_prices(path).price("h200").usd == pytest.approx(3.8)
    (power,) = re.findall(r"```yaml\npower: (.*?)```", page, re.DOTALL)
    assert MeasuredPower.model_validate(yaml.safe_load(power)).peak_w == 486
