"""What the server knows of each open page: its worker, its uploads, its runs. Nobody else's."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock, RLock
from typing import Any, Final

from sim.app.bounds import Limits
from sim.app.stated import Choices, Offer, first_choices, scenario_from
from sim.app.uploads import Upload
from sim.app.worker import Job, Worker, Workers
from sim.scenario import Scenario
from traces.errors import ConfigError, KvcastError

MOST_PAGES: Final = 64
"""Of more, the one that was silent longest is forgotten."""
SILENT_S: Final = 12 * 3600.0
"""A page silent for so long is forgotten."""
IDLE_S: Final = 900.0
"""The worker of a page silent for so long is ended; the next run gets another."""
GRACE_S: Final = 0.5
"""A run under way may have this long to end before a change ends it."""
MOST_PINS: Final = 4
LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run."""

    scenario: Scenario
    """As it was run: an uploaded trace is where it lies."""
    choices: Choices
    """What stood in the controls."""
    findings: Mapping[str, Any]
    """See `sim.app.findings`."""
    took_s: float
    """Seconds from asking to knowing."""
    letter: str = ""
    """Of a pinned run."""
    place: int = 0
    """Of a pinned run, among MOST_PINS: no other pinned run has it at the same time."""


@dataclass(slots=True)
class Page:
    """One open page in one browser. Its lock is held by whoever reads or changes it."""

    token: str
    folder: Path
    """For its uploads; only this user can look into it."""
    lock: RLock = field(default_factory=RLock)
    seen_s: float = field(default_factory=time.monotonic)
    uploads: dict[str, Upload] = field(default_factory=dict[str, Upload])
    worker: Worker | None = None
    job: Job | None = None
    asked: tuple[Scenario, Choices] | None = None
    """Of the run that the job is."""
    now: Finished | None = None
    """The latest run."""
    pins: list[Finished] = field(default_factory=list[Finished])
    pinned: int = 0
    """How often something was pinned: letters are not used again."""
    error: str = ""
    """Of the latest run, if it has failed or could not begin."""
    notice: str = ""
    described: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """Traces in numbers, by path."""
    plan: Mapping[str, Any] | None = None
    turn: int = 0
    """Counts the changes that have asked for a run."""
    version: int = 0
    """Counts what has changed on the page."""

    @property
    def names(self) -> dict[str, str]:
        """Paths of uploads, and what their user calls them."""
        return {str(upload.path): upload.name for upload in self.uploads.values()}

    def wait_its_turn(self) -> bool:
        """Whether the caller is still the latest once a run under way has had time to end.

        A slider that is held sends many changes: only the last of them is worth a run, and most
        runs end sooner than another worker is warm.
        """
        with self.lock:
            self.turn += 1
            mine, job = self.turn, self.job
        if job is not None:
            job.wait(GRACE_S)
        return mine == self.turn

    def shows(self, scenario: Scenario) -> bool:
        """Whether a scenario is what runs, or what is shown."""
        if self.job is not None and self.job.state == "working":
            return self.asked is not None and self.asked[0] == scenario
        return not self.error and self.now is not None and self.now.scenario == scenario

    def shown_scenario(self, run: Finished) -> Scenario:
        """The scenario of a run as its user knows it: an uploaded trace under its own name."""
        trace = run.scenario.trace
        name = self.names.get(trace.path, trace.path)
        return run.scenario.model_copy(update={"trace": trace.model_copy(update={"path": name})})

    def settle(self) -> None:
        """Take over what the job has come to, once it has ended."""
        job = self.job
        if job is None or job.state == "working":
            return
        self.job = None
        if job.state == "done" and self.asked is not None:
            scenario, choices = self.asked
            took_s = job.ended_s - job.started_s
            self.now = Finished(scenario, choices, job.answer, took_s)
            self.error = ""
        elif job.state == "failed":
            self.error = job.error
        else:
            self.notice = "Cancelled; the figures are those of the run before."
        if job.described is not None and self.asked is not None:
            self.described[self.asked[0].trace.path] = job.described
        self.version += 1

    def cancel(self) -> None:
        """End what is running, at once."""
        if self.job is not None and self.worker is not None:
            self.worker.end()
            self.worker = None
            self.settle()

    def pin(self) -> None:
        """Keep the latest run for comparison; the oldest goes if there are too many."""
        if self.now is None:
            return
        letter = LETTERS[self.pinned % len(LETTERS)]
        self.pinned += 1
        pins = self.pins[-(MOST_PINS - 1) :]
        free = min(set(range(MOST_PINS)) - {pin.place for pin in pins})
        self.pins = [*pins, replace(self.now, letter=letter, place=free)]
        self.version += 1

    def unpin(self, letter: str) -> None:
        """Forget a pinned run; an empty letter: all."""
        self.pins = [one for one in self.pins if letter and one.letter != letter]
        self.version += 1

    def close(self) -> None:
        """End its worker and remove its files."""
        if self.worker is not None:
            self.worker.end()
            self.worker = None
        shutil.rmtree(self.folder, ignore_errors=True)


class Pages:
    """All open pages, by a token that nobody can guess."""

    def __init__(
        self,
        offered: Offer,
        limits: Limits,
        plan: Path | None = None,
        starts: Choices | None = None,
    ) -> None:
        """Nobody has a page yet.

        Args:
            offered: traces and profiles to choose from.
            limits: of workers and uploads.
            plan: a plan.json that every page shows.
            starts: where controls stand at first; None: the scenario's defaults.

        Raises:
            ConfigError: the plan is none.
        """
        self.offered = offered
        self.starts: Choices = starts or first_choices(offered)
        self.limits = limits
        self.workers = Workers(limits)
        self._folder = Path(tempfile.mkdtemp(prefix="kvcast-app-"))
        self._pages: dict[str, Page] = {}
        self._lock = Lock()
        self.plan: Mapping[str, Any] | None = None
        if plan is not None:
            try:
                self.plan = self.work(self.new(), "plan", path=str(plan))
            except BaseException:
                self.close()
                raise

    def new(self) -> Page:
        """A page that has just been loaded."""
        token = secrets.token_urlsafe(24)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        with self._lock:
            self._pages[token] = page = Page(token, folder, plan=self.plan)
            surplus = sorted(self._pages.values(), key=lambda one: one.seen_s)[:-MOST_PAGES]
        self._forget(surplus)
        return page

    def page(self, token: Any) -> Page:
        """The page of a token.

        Raises:
            ConfigError: there is none: the server is another than the one that it was loaded from.
        """
        with self._lock:
            page = self._pages.get(token) if isinstance(token, str) else None
            if page is None:
                raise ConfigError("This page is out of date: reload it.")
            page.seen_s = time.monotonic()
            return page

    def run(self, page: Page, choices: Choices, *, again: bool = False) -> None:
        """Begin the run that the controls state, in place of the one under way.

        What cannot begin is the page's error. What runs already, or has run last, is not begun
        anew unless `again`.
        """
        uploads = {key: str(upload.path) for key, upload in page.uploads.items()}
        try:
            scenario = scenario_from(choices, self.offered, uploads)
            if not again and page.shows(scenario):
                return
            page.cancel()
            page.notice = ""
            page.asked = scenario, choices
            page.job = self._worker(page).begin(
                "run",
                settings=scenario.model_dump(mode="json"),
                names=page.names,
                unknown=scenario.trace.path not in page.described,
            )
        except KvcastError as error:
            page.cancel()
            page.asked = None
            page.error = " ".join(str(error).split())
            page.version += 1

    def work(
        self, page: Page, task: str, names: Mapping[str, str] | None = None, **arguments: Any
    ) -> Any:
        """The answer to a task, waited for: of a worker of its own, which ends with it.

        Args:
            page: for whom it is done.
            task: of `sim.app.work.TASKS`.
            names: paths and what to call them, beside the page's uploads.
            arguments: of the task.

        Raises:
            ConfigError: what is wrong with it.
        """
        with page.lock:
            named = page.names | dict(names or {})
        worker = self._taken(page)
        try:
            job = worker.begin(task, names=named, **arguments)
            job.ended.wait()
        finally:
            worker.end()
        if job.state != "done":
            raise ConfigError(job.error or "ended with the server")
        return job.answer

    def tidy(self) -> None:
        """Forget pages that are silent, and end workers that have long been idle."""
        now_s = time.monotonic()
        with self._lock:
            pages = list(self._pages.values())
        self._forget([page for page in pages if now_s - page.seen_s > SILENT_S])
        for page in pages:
            with page.lock:
                if page.worker and now_s - page.seen_s > IDLE_S and not page.worker.busy:
                    page.worker.end()
                    page.worker = None

    def close(self) -> None:
        """End everything and leave no file behind."""
        with self._lock:
            pages, self._pages = list(self._pages.values()), {}
        for page in pages:
            page.close()
        self.workers.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _worker(self, page: Page) -> Worker:
        """The page's own, or a new one if that has ended or is at work."""
        if page.worker is None or not page.worker.alive or page.worker.busy:
            if page.worker is not None:
                page.worker.end()
            page.worker = self._taken(page)
        return page.worker

    def _taken(self, page: Page) -> Worker:
        worker = self.workers.take(lambda: page.seen_s)
        if worker is None:
            raise ConfigError(
                f"{self.workers.most} simulations are running here; try again when one is done"
            )
        return worker

    def _forget(self, pages: list[Page]) -> None:
        for page in pages:
            with self._lock:
                self._pages.pop(page.token, None)
            with page.lock:
                page.close()
