"""Copies between tiers take what their links need."""

import pytest

from calibration.copies import CopySettings
from engine.work import CPU, DISK, GPU, Move, Place


def test_each_link_has_its_rate():
    copies = CopySettings(block_s=0.5, cpu_bytes_per_s=10.0, disk_bytes_per_s=2.0)
    up = Move(Place(CPU, 0), Place(GPU, 1))
    down = Move(Place(GPU, 1), Place(CPU, 2))
    spill = Move(Place(CPU, 2), Place(DISK, 3))
    assert copies.seconds((), 20) == 0
    assert copies.seconds((up, down), 20) == pytest.approx(2 * 2.5)
    assert copies.seconds((up, spill), 20) == pytest.approx(2.5 + 10.5)
