"""What the server keeps of each page, and that nobody gets another's."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.app.bounds import Limits
from sim.app.pictures import COLOURS
from sim.app.state import IDLE_S, MOST_PAGES, MOST_PINS, SILENT_S, Page, Pages
from sim.app.stated import Offer, first_choices, offer
from sim.app.uploads import Upload
from traces.errors import ConfigError

GOOD = "arrival_s,prompt_tokens,output_tokens\n0,10,5\n0.5,20,3\n1,10,1\n"
OFFER = offer()
FIRST = first_choices(OFFER)


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    long = tmp_path / "long.csv"
    rows = (f"{number / 50},200,100\n" for number in range(200_000))
    long.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(rows))
    offered = Offer({**OFFER.traces, "file:0": str(long)}, OFFER.profiles)
    made = Pages(offered, Limits())
    yield made
    made.close()
    assert not made._folder.exists()


def ran(pages: Pages, page: Page, **choices) -> None:
    pages.run(page, {**FIRST, **choices})
    if page.job is not None:
        assert page.job.wait(60)
    page.settle()


def uploaded(page: Page, key: str = "upload:1") -> str:
    path = page.folder / "0123"
    path.write_text(GOOD)
    page.uploads[key] = Upload(key, "mine.csv", path, {})
    return key


def test_a_run_is_the_page_s_until_the_next(pages: Pages):
    page = pages.new()
    ran(pages, page)
    assert page.now is not None and page.now.scenario.cluster.replicas == 1
    version = page.version
    ran(pages, page)
    assert page.version == version  # the same is not run again
    ran(pages, page, replicas=3)
    assert page.now.scenario.cluster.replicas == 4
    assert page.version > version


def test_what_cannot_run_leaves_the_figures_and_says_why(pages: Pages):
    page = pages.new()
    ran(pages, page)
    before = page.now
    ran(pages, page, model="llama-3.1-405b")
    assert "llama-3.1-405b" in page.error or "does not fit" in page.error
    assert page.now is before
    ran(pages, page, replicas=-1)
    assert page.error.startswith("Replicas: -1")
    assert page.now is before
    ran(pages, page)
    assert page.error == ""


def test_a_change_takes_the_place_of_a_run_under_way(pages: Pages):
    page = pages.new()
    pages.run(page, {**FIRST, "trace": "file:0"})
    job = page.job
    assert job is not None and not job.wait(0.05)
    ran(pages, page)
    assert job.state == "cancelled"
    assert page.now is not None and page.now.scenario.trace.path == "sample:chat"
    assert page.notice == ""


def test_only_the_last_of_many_changes_has_its_turn(pages: Pages):
    page = pages.new()
    pages.run(page, {**FIRST, "trace": "file:0"})
    from threading import Thread

    turns: list[bool] = []
    waiting = [Thread(target=lambda: turns.append(page.wait_its_turn())) for _ in range(5)]
    for one in waiting:
        one.start()
    for one in waiting:
        one.join()
    assert sum(turns) == 1


def test_cancelling_keeps_the_figures_of_before(pages: Pages):
    page = pages.new()
    ran(pages, page)
    before = page.now
    pages.run(page, {**FIRST, "trace": "file:0"})
    page.cancel()
    assert page.job is None
    assert page.now is before
    assert page.notice.startswith("Cancelled")
    ran(pages, page, replicas=1)
    assert page.now is not before and page.notice == ""


def test_pins_are_few_and_their_letters_stay(pages: Pages):
    page = pages.new()
    page.pin()
    assert page.pins == []
    ran(pages, page)
    for _ in range(MOST_PINS + 2):
        page.pin()
    assert [pin.letter for pin in page.pins] == ["C", "D", "E", "F"]
    page.unpin("D")
    page.pin()
    assert [pin.letter for pin in page.pins] == ["C", "E", "F", "G"]
    assert len({pin.place for pin in page.pins}) == len(COLOURS) == MOST_PINS
    page.unpin("")
    assert page.pins == []


def test_pages_share_nothing(pages: Pages):
    mine, other = pages.new(), pages.new()
    assert mine.token != other.token and mine.folder != other.folder
    assert len(mine.token) >= 32
    key = uploaded(mine)
    ran(pages, mine, trace=key)
    assert mine.now is not None and mine.now.findings["summary"]["requests"]["total"] == 3
    ran(pages, other, trace=key)
    assert other.error.startswith("trace: 'upload:1' is none that this page has")
    assert other.now is None and not other.pins
    assert mine.worker is not other.worker
    assert mine.folder.stat().st_mode & 0o077 == 0


def test_an_upload_goes_by_its_user_s_name(pages: Pages):
    page = pages.new()
    ran(pages, page, trace=uploaded(page))
    assert page.now is not None
    shown = page.shown_scenario(page.now)
    assert shown.trace.path == "mine.csv"
    assert str(page.folder) not in shown.model_dump_json()
    assert str(page.folder) in page.now.scenario.trace.path


@pytest.mark.parametrize("token", ["", "x", None, 7, ["x"], {}])
def test_an_unknown_page_is_told_to_reload(pages: Pages, token):
    with pytest.raises(ConfigError, match="reload"):
        pages.page(token)


def test_the_page_silent_longest_is_forgotten(pages: Pages):
    first = pages.new()
    rest = [pages.new() for _ in range(MOST_PAGES - 1)]
    pages.page(first.token)
    pages.new()
    assert pages.page(first.token) is first
    with pytest.raises(ConfigError):
        pages.page(rest[0].token)
    assert not rest[0].folder.exists()


def test_idle_workers_and_silent_pages_are_tidied_away(pages: Pages):
    page = pages.new()
    ran(pages, page)
    worker = page.worker
    assert worker is not None
    pages.tidy()
    assert worker.alive
    page.seen_s = time.monotonic() - IDLE_S - 1
    pages.tidy()
    assert not worker.alive
    assert pages.page(page.token) is page
    ran(pages, page, replicas=2)
    assert page.error == ""
    page.seen_s = time.monotonic() - SILENT_S - 1
    pages.tidy()
    assert not page.folder.exists()
    with pytest.raises(ConfigError):
        pages.page(page.token)
