"""A cell of work: one scenario, one replication, and the figures that come of it.

Replication 0 is the run itself, as `kvcast replay` makes it. Replication i > 0 draws what the
scenario's uncertainty says (sim.uncertainty), traffic (sim.sweep.traffic) and the routers'
random numbers, all from the scenario's seed and i: replications i of two scenarios with one seed
are a pair, whatever their policies (common random numbers).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np

from calibration.profiles import Profile, load_profile
from sim.replay import replication
from sim.scenario import Scenario
from sim.sweep.traffic import Traffic
from sim.uncertainty import Draw, Figures, the_run_itself
from traces.errors import ConfigError
from traces.pipeline import TraceSettings
from traces.request import Request
from traces.version import installed_version

ROUTING: Final = 3
"""What a generator is for, beside those of sim.uncertainty and of traffic."""

AS_IT_IS: Final = Traffic()

PACKAGES: Final = ("traces", "engine", "calibration", "sim")


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation to be."""

    scenario: Scenario
    replication: int = 0
    traffic: Traffic = AS_IT_IS
    """Of replications other than 0."""


@dataclass
class Simulator:
    """Simulates cells; the last one's traffic is kept, for cells that differ by policies alone."""

    _traffic_of: tuple[TraceSettings, Traffic, int, int] | None = None
    _requests: list[Request] = field(default_factory=list[Request])

    def __call__(self, cell: Cell) -> Figures:
        """The figures of a cell.

        Raises:
            KvcastError: settings or a trace that cannot be used.
        """
        scenario = cell.scenario
        profile = load_profile(scenario.profile)
        requests = None if cell.replication == 0 else self._traffic(cell)
        drawn_scenario, draw = drawn(cell, profile)
        return replication(drawn_scenario, profile, requests, None, draw)

    def _traffic(self, cell: Cell) -> Iterable[Request]:
        scenario, traffic = cell.scenario, cell.traffic
        asked = (scenario.trace, traffic, scenario.seed, cell.replication)
        if asked != self._traffic_of:
            self._requests = list(traffic.requests(scenario.trace, scenario.seed, cell.replication))
            self._traffic_of = asked
        return self._requests


def drawn(cell: Cell, profile: Profile) -> tuple[Scenario, Draw]:
    """The scenario that a cell runs, by the seed its routers get, and what the run draws.

    Raises:
        ConfigError: noise is asked for and the profile has none.
    """
    scenario, number = cell.scenario, cell.replication
    if number == 0:
        return scenario, the_run_itself(scenario, profile)
    seed = _routing_seed(scenario.seed, number)
    return scenario.model_copy(update={"seed": seed}), draw_of(scenario, profile, number)


def draw_of(scenario: Scenario, profile: Profile, number: int) -> Draw:
    """What replication `number` draws of the cost model: all that is known to be uncertain."""
    settings = scenario.uncertainty
    noise = profile.noise is not None and (settings.noise or scenario.noise)
    if settings.cost_share is not None:
        return Draw(scenario.seed, number, cost_share=settings.cost_share, noise=noise)
    draw = Draw(scenario.seed, number, coefficients=True, noise=noise)
    try:
        draw.profile(profile)
    except ConfigError:  # an estimate: nobody knows how far off it is
        return Draw(scenario.seed, number, noise=noise)
    return draw


class Keys:
    """Names cells by their content: equal keys, equal figures.

    A key is the SHA-256 of canonical JSON of all settings that can change a figure, of the files
    that they name (trace, profile, policies: by content, each read once), of the replication, of
    what is done beyond a simulation, and of kvcast's own version and source.
    """

    def __init__(self, work: Any = None) -> None:
        """Keys of the figures that `work` finds; its attribute `content` says what it does."""
        self._work = getattr(work, "content", None)
        self._digests: dict[str, str | None] = {}

    def of(self, cell: Cell) -> str:
        """The key of a cell."""
        return key_of(self.content(cell))

    def content(self, cell: Cell) -> str:
        """Canonical JSON of what a cell's figures follow from."""
        settings = cell.scenario.model_dump(mode="json")
        del settings["name"]
        content: dict[str, Any] = {
            "kvcast": code_version(),
            "scenario": settings,
            "files": self._files(settings),
            "replication": cell.replication,
        }
        if cell.replication:
            content["traffic"] = [cell.traffic.method, cell.traffic.blocks]
        if self._work is not None:
            content["work"] = self._work
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def _files(self, settings: Any) -> dict[str, str]:
        """Digests of the files that settings name; `file.py:attribute` names a file too."""
        found: dict[str, str] = {}
        for text in _texts(settings):
            for name in (text, text.partition(":")[0]):
                digest = self._digest(name)
                if digest is not None:
                    found[name] = digest
                    break
        return found

    def _digest(self, name: str) -> str | None:
        if name not in self._digests:
            self._digests[name] = _digest_if_file(Path(name)) if name else None
        return self._digests[name]


def key_of(content: str) -> str:
    """The key of what `Keys.content` gave."""
    return hashlib.sha256(content.encode()).hexdigest()


@cache
def code_version() -> str:
    """The version, with a digest of the source: figures of other code are not the same figures."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        root = Path(str(files(package)))
        for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".yaml")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return f"{installed_version()}-{digest.hexdigest()[:8]}"


def _digest_if_file(path: Path) -> str | None:
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _texts(settings: Any) -> Iterator[str]:
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, Mapping):
        for value in settings.values():
            yield from _texts(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _texts(value)


def _routing_seed(seed: int, number: int) -> int:
    drawn = np.random.SeedSequence(seed, spawn_key=(number, ROUTING)).generate_state(1, np.uint64)
    return int(drawn[0])
