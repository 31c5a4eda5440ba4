"""Links between tiers: transfers in line, in closed form."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.copies import CopySettings
from engine.work import CPU, DISK, GPU, REMOTE, Move, Place
from sim.links import Link, Links, link_to

S = 10**12
"""Picoseconds in a second."""


def move(source: tuple[int, int], target: tuple[int, int]) -> Move:
    return Move(Place(*source), Place(*target))


def up(level: int, *slots: int) -> list[Move]:
    return [move((level, slot), (GPU, 100 + slot)) for slot in slots]


def down(level: int, *slots: int) -> list[Move]:
    return [move((GPU, 100 + slot), (level, slot)) for slot in slots]


def test_blocks_follow_one_another_and_the_latency_passes_once():
    links = Links({REMOTE: Link(3, latency_ps=50)})
    assert links.carry(up(REMOTE, 1, 2, 3, 4), 1000, 1000) == 1000 + 50 + 4 * 3
    # the latency keeps nobody else waiting
    assert links.carry(up(REMOTE, 5), 1000, 1000) == 1000 + 50 + 5 * 3


def test_replicas_that_share_a_link_queue_for_it():
    """The last of several that begin together ends when a fair share would end it too: at the sum
    of their sizes. The first is done after its own."""
    shared = Link(7)
    replicas = [Links({CPU: Link(1), REMOTE: shared}) for _ in range(3)]
    ends = [links.carry(up(REMOTE, *range(10)), 0, 0) for links in replicas]
    assert ends == [70, 140, 210]
    assert replicas[0].carry(up(CPU, 1), 0, 0) == 1  # other links are free meanwhile


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), min_size=1, max_size=12))
def test_a_link_is_never_idle_while_somebody_waits(asked: list[tuple[int, int]]):
    """Lindley's recursion: the end is the latest, over those before, of when one came, plus the
    work from then on."""
    link, now, ends = Link(5), 0, list[int]()
    came: list[tuple[int, int]] = []
    for gap, blocks in asked:
        now += gap
        came.append((now, 5 * blocks))
        ends.append(max(link.read(slot, now) for slot in range(blocks)))
    for i, end in enumerate(ends):
        work = [came[j][0] + sum(size for _, size in came[j : i + 1]) for j in range(i + 1)]
        assert end == max(work)


def test_links_to_different_tiers_run_beside_each_other():
    links = Links({CPU: Link(5), DISK: Link(11)})
    assert links.carry([*up(CPU, 1, 2, 3), *up(DISK, 1)], 0, 0) == 15
    assert links.carry([*up(CPU, 1), *up(DISK, 1)], 15, 15) == 26


def test_what_is_read_has_arrived():
    shared = Link(10, latency_ps=100, staged_blocks=9)
    writer, reader = (Links({CPU: Link(1), REMOTE: shared}) for _ in range(2))
    writer.carry([move((CPU, 0), (REMOTE, 4))], 0, 0)
    assert reader.carry(up(REMOTE, 4), 0, 0) == (10 + 100) + 10 + 100
    chain = Links({CPU: Link(10), DISK: Link(100, staged_blocks=9)})
    moves = [*down(CPU, 3), move((CPU, 3), (DISK, 6)), *up(DISK, 6)]
    assert chain.carry(moves, 0, 0) == 10 + 100 + 100


def test_what_is_still_computed_is_written_behind_what_others_ask_for_until_then():
    shared = Link(10)
    one, other = (Links({REMOTE: shared}) for _ in range(2))
    one.carry(down(REMOTE, 1), ready_ps=500, now_ps=0)
    assert other.carry(up(REMOTE, 2), 20, 20) == 30
    assert other.carry(up(REMOTE, 2), 496, 496) == 506
    assert other.carry(up(REMOTE, 2), 504, 504) == 526  # its turn came at 506
    one.carry(down(REMOTE, 1), ready_ps=1000, now_ps=600)
    assert other.carry(up(REMOTE, 1), 700, 700) == 1020  # this is what it waits for


def test_nobody_waits_for_a_spill_until_the_staging_area_is_full():
    links = Links({CPU: Link(1), DISK: Link(100, staged_blocks=2)})
    ends = [
        links.carry([move((CPU, slot), (DISK, slot)), *down(CPU, slot)], 0, 0) for slot in range(4)
    ]
    # the third spill has a place when the first is on disk, the fourth when the second is
    assert ends == [1, 2, 101, 201]
    unstaged = Links({CPU: Link(1), DISK: Link(100)})
    assert unstaged.carry([move((CPU, 0), (DISK, 0)), *down(CPU, 0)], 0, 0) == 101


@given(
    st.lists(st.tuples(st.sampled_from([CPU, DISK, REMOTE]), st.integers(0, 5)), max_size=12),
    st.lists(st.tuples(st.sampled_from([CPU, DISK, REMOTE]), st.integers(0, 5)), min_size=1),
    st.integers(0, 200),
)
def test_what_is_foreseen_comes_true(
    before: list[tuple[int, int]], asked: list[tuple[int, int]], now: int
):
    links = Links({CPU: Link(3), DISK: Link(20, staged_blocks=1), REMOTE: Link(7, 40, 1)})
    for level, slot in before:
        links.carry([move((GPU, 9), (level, slot))], 0, 0)
    foreseen = links.foreseen([Place(*place) for place in asked], now)
    assert foreseen == links.foreseen([Place(*place) for place in asked], now)
    done = now
    for (level, slot), said in zip(asked, foreseen, strict=True):
        done = max(done, links.carry(up(level, slot), now, now))
        assert done == said


def test_each_link_has_its_rate():
    copies = CopySettings(
        block_s=0.5,
        cpu_bytes_per_s=10.0,
        disk_bytes_per_s=2.0,
        remote_bytes_per_s=4.0,
        remote_latency_s=3.0,
        staging_bytes=0,
    )
    # GPUs that share a replica have a link each to CPU memory; they share the others
    took = {
        (level, tp): Fraction(
            Links({level: link_to(level, copies, 20, tp)}).carry(up(level, 0), 0, 0), S
        )
        for level in (CPU, DISK, REMOTE)
        for tp in (1, 2)
    }
    assert took == {
        (CPU, 1): Fraction(5, 2),
        (CPU, 2): Fraction(5, 2),
        (DISK, 1): Fraction(21, 2),
        (DISK, 2): Fraction(41, 2),
        (REMOTE, 1): 3 + Fraction(11, 2),
        (REMOTE, 2): 3 + Fraction(21, 2),
    }


@pytest.mark.parametrize("level", [DISK, REMOTE])
def test_staging_has_room_for_whole_blocks(level: int):
    copies = CopySettings(block_s=1.0, staging_bytes=299)
    links = Links({CPU: Link(0), level: link_to(level, copies, 100, tp=1)})
    ends = [links.carry(down(level, slot), 0, 0) for slot in range(3)]
    assert ends[:2] == [0, 0] and ends[2] > S
