"""What becomes of blocks on a disk that fills up, cannot be written, or loses them."""

import logging
import os
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from threading import Event

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import OffloadSettings
from engine.execution.offload import Offloader
from engine.work import CPU, DISK, GPU, Move, Place
from tests.engine.execution.rehearsal import (
    HOST,
    Model,
    fill,
    largest_file,
    numbers,
    offload_settings,
    pool_of,
    slow_disk,
)
from traces.errors import KvcastError

seeds = st.integers(0, 2**32)
rooms = st.tuples(st.integers(2, 8), st.integers(0, 6), st.integers(1, 6))


def open_below(folder: Path) -> int:
    """Files in a folder that this process has open, those without a name included."""
    links = Path("/proc/self/fd")
    if not links.is_dir():
        pytest.skip("needs /proc")
    found = 0
    for link in links.iterdir():
        try:
            found += str(link.readlink()).startswith(str(folder.resolve()))
        except OSError:  # the one that listed them
            continue
    return found


@settings(max_examples=30, deadline=None)
@given(seed=seeds, slots=rooms, writable=st.integers(0, 5))
def test_a_disk_that_fills_up_loses_its_tier_but_no_block(seed, slots, writable):
    random = Random(seed)
    model, pool = Model(slots, random), pool_of(slots[GPU])
    below = slots[CPU] > 0
    with TemporaryDirectory() as folder:
        offloader = Offloader(pool, offload_settings(pool, slots, folder), HOST, spare_rows=2)
        try:
            model.run_at_once(offloader, pool, 5)
            assert offloader.lost() == ()
            with largest_file(writable * pool.layout.block_bytes):
                model.run_at_once(offloader, pool, 10)
                last = Place(DISK, slots[DISK] - 1)
                if below and Place(CPU, 0) in model.at:
                    offloader.before([model.move(Move(Place(CPU, 0), last))], False)
                offloader.before([model.move(Move(Place(GPU, 0), last))], False)
                model.check(offloader, pool, lambda: None)
            expected = (DISK,) if writable < slots[DISK] else ()
            assert offloader.lost() == expected
            assert offloader.lost() == ()
            model.run_at_once(offloader, pool, 5)
            model.check(offloader, pool, lambda: None)
        finally:
            offloader.close()


def below_a_file(folder: Path) -> dict:
    (folder / "file").write_text("")
    return {"disk_path": str(folder / "file" / "tier")}


def too_large(folder: Path) -> dict:
    return {"disk_path": str(folder), "disk_bytes": 2**50}


@pytest.mark.parametrize("trouble", [below_a_file, too_large])
def test_a_disk_that_cannot_be_used_is_lost_at_once(trouble, tmp_path, caplog):
    pool = pool_of(3)
    size = pool.layout.block_bytes
    chosen = OffloadSettings(**{"disk_bytes": 4 * size, "cpu_bytes": size, **trouble(tmp_path)})
    with caplog.at_level(logging.WARNING, "kvcast"):
        offloader = Offloader(pool, chosen, HOST)
    assert [record.name for record in caplog.records] == ["kvcast"]
    assert chosen.disk_path in caplog.text
    assert open_below(tmp_path) == 0
    assert offloader.lost() == (DISK,)
    assert offloader.lost() == ()
    fill(pool, 1, 17)
    there, back = Move(Place(GPU, 1), Place(DISK, 2)), Move(Place(DISK, 2), Place(GPU, 2))
    offloader.before([there, back], False)  # decided before the loss was told
    assert numbers(pool) == [0, 17, 17]
    assert len(caplog.records) == 1
    offloader.close()


def test_no_file_is_left_whatever_happens(tmp_path):
    pool = pool_of(3)
    chosen = offload_settings(pool, (3, 1, 4), tmp_path / "made")
    one, other = (Offloader(pool, chosen, HOST) for _ in range(2))
    assert open_below(tmp_path) == 2
    assert list((tmp_path / "made").iterdir()) == []  # nothing to leave behind, even if killed
    for offloader in (one, other):
        with slow_disk(Random(1)):
            offloader.before([Move(Place(GPU, 1), Place(DISK, slot)) for slot in range(4)], False)
            offloader.close()
        offloader.close()
    assert open_below(tmp_path) == 0


def test_two_engines_share_a_folder(tmp_path):
    pools = [pool_of(3) for _ in range(2)]
    both = [Offloader(pool, offload_settings(pool, (3, 0, 2), tmp_path), HOST) for pool in pools]
    for number, (pool, offloader) in enumerate(zip(pools, both, strict=True)):
        fill(pool, 1, 40 + number)
        offloader.before([Move(Place(GPU, 1), Place(DISK, 1))], False)
    for number, (pool, offloader) in enumerate(zip(pools, both, strict=True)):
        offloader.before([Move(Place(DISK, 1), Place(GPU, 2))], False)
        assert numbers(pool)[2] == 40 + number
        offloader.close()


def test_a_block_that_cannot_be_read_back_names_the_folder(tmp_path):
    pool = pool_of(3)
    offloader = Offloader(pool, offload_settings(pool, (3, 1, 4), tmp_path), HOST)
    offloader.before([Move(Place(GPU, 1), Place(DISK, 3))], False)
    offloader.before([Move(Place(DISK, 3), Place(GPU, 2))], False)
    os.truncate(offloader._disk._file.fileno(), 2 * pool.layout.block_bytes)
    load = Move(Place(DISK, 3), Place(GPU, 2))
    with pytest.raises(KvcastError, match=rf"^{tmp_path}: .*offload\.disk_bytes: 0"):
        offloader.before([load], False)
    offloader.close()
    assert open_below(tmp_path) == 0


def test_a_slot_filled_while_two_writes_of_it_are_under_way(tmp_path, monkeypatch):
    pool, released, write = pool_of(3), Event(), os.pwrite
    offloader = Offloader(pool, offload_settings(pool, (3, 1, 4), tmp_path), HOST, spare_rows=2)
    on_cpu = Place(CPU, 0)

    def first_waits(descriptor, block, offset):
        if offset == 0:
            assert released.wait(10)
        return write(descriptor, block, offset)

    monkeypatch.setattr(os, "pwrite", first_waits)
    fill(pool, 1, 11)
    down = [Move(on_cpu, Place(DISK, slot)) for slot in range(2)]
    offloader.before([Move(Place(GPU, 1), on_cpu), *down], False)
    offloader.before([Move(Place(DISK, 1), Place(GPU, 2))], False)  # the second is done
    fill(pool, 1, 12)
    offloader.before([Move(Place(GPU, 1), on_cpu)], False)
    released.set()
    offloader.before([Move(Place(DISK, 0), Place(GPU, 0)), Move(on_cpu, Place(GPU, 2))], False)
    assert numbers(pool) == [11, 12, 12]
    offloader.close()
