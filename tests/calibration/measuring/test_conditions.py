import stat
import sys
from pathlib import Path

import pytest

from calibration.measuring import conditions
from calibration.measuring.conditions import (
    cpu_name,
    cpu_sample,
    disturbance,
    gpu_sample,
    memory_bytes,
    said,
    summary_of,
)

CPUINFO = "processor\t: 0\nmodel name\t: Toy 1000 @ 2 GHz\ncpu MHz\t\t: 2000.5\n"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a script in the place of nvidia-smi."""

    def put(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", str(tmp_path))
    return put


def test_a_gpus_state_is_what_nvidia_smi_tells(nvidia_smi):
    nvidia_smi(
        "assert '--id=GPU-7' in sys.argv\n"
        "assert 'clocks.sm,clocks.mem,temperature.gpu' in ' '.join(sys.argv)\n"
        "print('1980, 2619, 41, 123.45, [N/A]')"
    )
    assert gpu_sample("GPU-7") == {
        "sm_mhz": 1980.0,
        "memory_mhz": 2619.0,
        "temperature_c": 41.0,
        "power_w": 123.45,
    }


@pytest.mark.parametrize("script", ["sys.exit(6)", "print()", "print('No devices were found')"])
def test_what_is_not_told_is_left_out(nvidia_smi, script):
    nvidia_smi(script)
    assert gpu_sample("GPU-7") == {}


def test_without_nvidia_smi_nothing_is_known(nvidia_smi):
    assert gpu_sample("GPU-7") == {}


def test_a_program_that_hangs_is_given_up(nvidia_smi, monkeypatch):
    monkeypatch.setattr(conditions, "PATIENCE_S", 0.05)
    nvidia_smi("import time; time.sleep(5)")
    assert gpu_sample("GPU-7") == {}


def test_a_cpu_is_named_by_the_operating_system(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text(CPUINFO)
    monkeypatch.setattr(conditions, "CPUINFO", file)
    monkeypatch.setattr(conditions, "FREQUENCIES", tmp_path)
    assert cpu_name() == "Toy 1000 @ 2 GHz"
    assert cpu_sample()["cpu_mhz"] == 2000.5
    scaling = tmp_path / "cpu0" / "cpufreq"
    scaling.mkdir(parents=True)
    (scaling / "scaling_cur_freq").write_text("3100000\n")
    assert cpu_sample()["cpu_mhz"] == 3100.0
    file.unlink()
    assert cpu_name()


def test_this_machine_has_memory():
    assert memory_bytes() > 2**20


def test_a_summary_spans_the_samples():
    samples = [{"sm_mhz": 1980.0}, {"sm_mhz": 1755.0, "power_w": 650.0}, {"sm_mhz": 1900.0}]
    assert summary_of(samples) == {
        "sm_mhz": {"least": 1755.0, "median": 1900.0, "most": 1980.0},
        "power_w": {"least": 650.0, "median": 650.0, "most": 650.0},
    }
    assert summary_of([]) == {}


def test_a_sample_is_said_in_few_words():
    assert said({"sm_mhz": 1980.0, "temperature_c": 41.0}) == "1,980 MHz, 41 °C"
    assert said({"load_1min": 1.5}) == "load 1.5"
    assert said({}) == ""


def test_more_work_than_cores_disturbs(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert disturbance([{"load_1min": 1.9}, {}]) == ""
    assert disturbance([{"load_1min": 3.1}]).startswith("load was 3.1 on 2 cores")
    assert disturbance([]) == ""
