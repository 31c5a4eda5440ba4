"""Power: what is stated beats what was measured, which beats the data sheet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.evidence import Experiment
from calibration.hardware import gpu
from calibration.power import MeasuredPower
from calibration.profile_files import save_profile
from calibration.profiles import load_profile
from sim.economics.errors import NotStatedError
from sim.economics.grids import carbon_intensity, grids
from sim.economics.power import GpuPower, gpu_power, site_power_w
from sim.economics.settings import EconomicsSettings, PowerSettings
from traces.errors import ConfigError

H200 = load_profile("h200-llama-3.1-8b")
METERED = H200.model_copy(
    update={"power": MeasuredPower(idle_w=90, peak_w=430, source="NVML, chat, 10 min")}
)


def power(profile=H200, **stated: float) -> GpuPower:
    return gpu_power(profile, EconomicsSettings(power=PowerSettings(**stated)))


def test_the_data_sheet_stands_in_where_nothing_was_measured():
    sheet, found = gpu("h200"), power()
    assert (found.idle_w, found.peak_w) == (sheet.idle_w, sheet.tdp_w)
    assert found.idle_source == sheet.source("idle_w")
    assert found.peak_source == sheet.source("tdp_w")


def test_measured_power_beats_the_data_sheet():
    found = power(METERED)
    assert (found.idle_w, found.peak_w) == (90, 430)
    assert "NVML, chat, 10 min" in found.peak_source


def test_a_calibration_knows_what_its_steps_drew():
    conditions = {"power_w": {"least": 300.0, "median": 505.0, "most": 612.0}}
    calibrated = H200.model_copy(
        update={"experiment": Experiment(date="2026-03-02", device="H200", conditions=conditions)}
    )
    found = power(calibrated)
    assert (found.idle_w, found.peak_w) == (gpu("h200").idle_w, 612)
    assert "2026-03-02" in found.peak_source
    assert power(calibrated.model_copy(update={"power": METERED.power})).peak_w == 430
    unread = calibrated.model_copy(update={"experiment": Experiment(date="x", device="cpu")})
    assert power(unread).peak_w == gpu("h200").tdp_w


def test_what_is_set_beats_everything_each_for_itself():
    found = power(METERED, peak_w=500)
    assert (found.idle_w, found.peak_w) == (90, 500)
    assert found.peak_source == "as set"


def test_a_profile_keeps_its_measured_power(tmp_path):
    path = tmp_path / "metered.yaml"
    save_profile(METERED, path)
    assert load_profile(path).power == METERED.power


def test_what_nobody_states_is_named():
    with pytest.raises(NotStatedError, match=r"idle_w of rtx-pro-6000.*economics.power.idle_w"):
        power(load_profile("analytic:rtx-pro-6000/llama-3.1-8b"))


def test_powers_that_make_no_sense_together_are_refused():
    with pytest.raises(ConfigError, match=r"at most its peak_w, got 122 W .* and 100 W \(as set\)"):
        power(peak_w=100)
    with pytest.raises(ValueError, match="idle_w must be at most peak_w"):
        PowerSettings(idle_w=2, peak_w=1)
    with pytest.raises(ValueError, match="idle_w must be at most peak_w"):
        MeasuredPower(idle_w=2, peak_w=1, source="x")


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 512))
def test_power_is_linear_between_idle_and_busy(share, other, gpus):
    one = GpuPower(100, 700, "", "")
    settings = PowerSettings(host_w_per_gpu=300, pue=1.25)

    def site(utilization: float) -> float:
        return site_power_w(one, utilization, gpus, settings)

    assert site(0) == pytest.approx(1.25 * gpus * 400)
    assert site(1) == pytest.approx(1.25 * gpus * 1000)
    assert site((share + other) / 2) == pytest.approx((site(share) + site(other)) / 2)


def test_every_gpu_with_an_idle_reading_idles_below_its_board_power():
    for name in ("a100-40", "a100-80", "h100", "h200", "b200", "l4", "l40s", "mi300x", "rtx-4090"):
        sheet = gpu(name)
        assert sheet.idle_w is not None
        assert 0 < sheet.idle_w < 0.5 * sheet.tdp_w
        assert sheet.source("idle_w")


def test_grids_have_a_year_and_a_source():
    for name, grid in grids().items():
        assert 2020 <= grid.year <= 2026, name
        assert grid.source
        assert 0 < grid.g_co2e_per_kwh < 1000
    assert carbon_intensity("sweden")[0] < carbon_intensity("world")[0]
    assert carbon_intensity(12.5) == (12.5, "stated")
