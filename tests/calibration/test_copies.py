"""Rates of the links between tiers."""

from calibration.copies import CopySettings
from engine.config import OffloadSettings


def test_the_settings_of_the_tiers_come_before_the_profile():
    copies = CopySettings(cpu_bytes_per_s=1.0, disk_bytes_per_s=2.0)
    stated = copies.stated_by(OffloadSettings(disk_bytes_per_s=9.0, remote_latency_s=0.0))
    assert stated == copies.model_copy(update={"disk_bytes_per_s": 9.0, "remote_latency_s": 0.0})
    assert copies.stated_by(OffloadSettings()) == copies
