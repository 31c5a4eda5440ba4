"""Compare settings: every combination simulated on the same luck, its figures paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from calibration.profiles import load_profile
from sim.comparing import metrics as named
from sim.comparing.grid import (
    Variant,
    label_of,
    several,
    shown,
    stated_values,
    values_of,
    variants,
)
from sim.comparing.judging import Entry, Flip, Row, flips, judged, scale_of
from sim.comparing.pairing import Scale
from sim.replay import replication
from sim.scenario import Scenario, scenario_of
from sim.sweep.cells import Cell, draw_of
from sim.sweep.outcomes import Failure, Outcome, Progress
from sim.sweep.store import Store
from sim.sweep.sweep import Sweep
from sim.sweep.traffic import Traffic, traffic_for
from sim.uncertainty import Draw, Figures
from traces.errors import ConfigError, KvcastError
from traces.request import Request

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import polars as pl

REPLICATIONS: Final = 10
LEVEL: Final = 0.95


@dataclass(frozen=True)
class Comparison:
    """Settings side by side; docs/comparing.md has the columns of its frames."""

    name: str
    values: Mapping[str, Any] = field(repr=False)
    """What the scenario states, before it is varied."""
    vary: Mapping[str, Sequence[Any]] = field(repr=False)
    curve: tuple[str, Sequence[Any]] | None = field(repr=False)
    """The setting along which the comparison is repeated, and its values in order."""
    baseline: str
    """Label of the settings that the others are compared with."""
    metrics: Sequence[str] = field(repr=False)
    scales: Mapping[str, Scale] = field(repr=False)
    """Whether a figure's differences are taken, or its ratios."""
    replications: int
    level: float
    drawn: Sequence[str] = field(repr=False)
    """What replications draw anew, in words."""
    entries: Sequence[Entry] = field(repr=False)
    """In order: value of the curve by value, the first varied setting varying slowest."""
    rows: Sequence[Row] = field(repr=False)
    flips: Sequence[Flip] = field(repr=False)
    warnings: Sequence[str] = field(repr=False)

    @property
    def labels(self) -> list[str]:
        """The combinations of settings, each once."""
        return list(dict.fromkeys(entry.variant.label for entry in self.entries))

    @property
    def failed(self) -> list[Entry]:
        """Entries without figures."""
        return [entry for entry in self.entries if entry.error]

    @property
    def ats(self) -> Sequence[Any]:
        """The curve's values; a None where there is no curve."""
        return self.curve[1] if self.curve else (None,)

    @property
    def varied(self) -> list[str]:
        """The settings by which combinations differ: varied over more than one value."""
        return several(self.vary)

    @property
    def alone(self) -> bool:
        """There is one combination only, so nothing that it is compared with."""
        return not self.varied

    @property
    def spread(self) -> bool:
        """There are replications, so intervals and verdicts."""
        return self.replications > 1

    def entry(self, label: str, at: Any = None) -> Entry:
        """The entry of some settings, at a value of the curve; raises KeyError."""
        for entry in self.entries:
            if entry.variant.label == label and entry.variant.at == at:
                return entry
        raise KeyError(f"no settings {label!r}; there are {', '.join(self.labels)}")

    def row(self, label: str, metric: str, at: Any = None) -> Row | None:
        """One comparison; None for the baseline itself and where a side has no such figure."""
        for row in self.rows:
            variant = row.entry.variant
            if row.metric == metric and variant.label == label and variant.at == at:
                return row
        return None

    @cached_property
    def cells(self) -> pl.DataFrame:
        """One row a combination, value of the curve and replication, one column a figure."""
        from sim.comparing.frames import cells_frame

        return cells_frame(self)

    @cached_property
    def differences(self) -> pl.DataFrame:
        """One row a combination, value of the curve and figure of interest."""
        from sim.comparing.frames import differences_frame

        return differences_frame(self)

    def plot(self, name: str | None = None) -> go.Figure | dict[str, go.Figure]:
        """The picture `name` of the page, or all of them; raises KeyError for an unknown one."""
        from sim.comparing.pictures import pictures
        from sim.report.chosen import chosen

        return chosen(pictures(self), name)

    def _repr_html_(self) -> str:
        from sim.comparing.page import verdict_tables

        return verdict_tables(self)


def compare(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    vary: Mapping[str, Sequence[Any]],
    *,
    curve: Mapping[str, Sequence[Any]] | None = None,
    replications: int = REPLICATIONS,
    traffic: str | None = None,
    blocks: int = 20,
    metrics: Sequence[str] = (),
    baseline: Mapping[str, Any] | None = None,
    level: float = LEVEL,
    jobs: int = 1,
    ray: str | None = None,
    timeout_s: float | None = None,
    memory_bytes: int | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Simulate every combination of settings on the same luck, and say which is better.

    Args:
        scenario: what all have in common: a Scenario, its settings, or its file.
        vary: values by dotted setting, such as {"cache.eviction": ["lru", "fifo"]}; `load` is the
            factor of the trace's rate.
        curve: one more setting, along which the comparison is repeated.
        replications: pairs of runs that each comparison rests on; 1: only the runs themselves, and
            plain differences.
        traffic: what they serve, a name in sim.sweep.traffic.METHODS; None: the trace made anew
            if it can be, else blocks of it.
        blocks: of the traffic of this name.
        metrics: figures of interest; none: the usual ones.
        baseline: varied settings of the combination that others are compared with; what it leaves
            out is at its first value.
        level: of intervals, and of all verdicts together.
        jobs: processes; their number changes nothing but the time.
        ray: "auto" or the address of a Ray cluster, which simulates instead of this machine.
        timeout_s: a simulation that takes longer is ended, and its cell reported as failed.
        memory_bytes: one that takes more memory too.
        store: keeps figures from one call to the next.
        progress: told how many simulations are done, of how many.

    Raises:
        ConfigError, TraceError: settings that cannot be varied so, or a trace that cannot be read.
            What goes wrong in a single cell is reported in its place instead.
    """
    values = _values(scenario, vary, curve)
    along = _along(curve)
    made = variants(values, vary, along)
    base = _label_of_baseline(vary, baseline)
    scenarios = [one.scenario for one in made if one.scenario is not None]
    _check_numbers(replications, level)
    _check_common(scenarios)
    _check_metrics(metrics, scenarios)
    traffics = _traffic(scenarios, traffic, blocks, replications)
    words = _drawn(scenarios, traffics, replications)
    with Sweep(
        jobs=jobs, ray=ray, store=store, timeout_s=timeout_s, memory_bytes=memory_bytes
    ) as sweep:
        entries = _run(made, traffics, replications, sweep, progress)
    varied = [*vary, *(curve or ())]
    interest = named.chosen(scenarios[0], metrics, varied)
    scales: dict[str, Scale] = {metric: scale_of(entries, metric) for metric in interest}
    return Comparison(
        name=_title(scenarios[0], vary, along),
        values=values,
        vary={name: tuple(choices) for name, choices in vary.items()},
        curve=along,
        baseline=base,
        metrics=interest,
        scales=scales,
        replications=replications,
        level=level,
        drawn=words,
        entries=entries,
        rows=judged(entries, scales, base, level),
        flips=flips(entries, scales, level) if along else (),
        warnings=_warnings(scenarios, entries, base),
    )


def _values(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    vary: Mapping[str, Sequence[Any]],
    curve: Mapping[str, Sequence[Any]] | None,
) -> dict[str, Any]:
    if isinstance(scenario, Scenario):
        return values_of(scenario, [*vary, *(curve or ())])
    if isinstance(scenario, (str, Path)):
        return stated_values(Path(scenario), (), {})
    scenario_of(scenario)
    return dict(scenario)


def _title(
    scenario: Scenario,
    vary: Mapping[str, Sequence[Any]],
    along: tuple[str, Sequence[Any]] | None,
) -> str:
    """The scenario's name; where nobody gave it one, what is varied."""
    if scenario.name != Scenario.model_fields["name"].default:
        return scenario.name
    varied = ", ".join(several(vary))
    if along is None:
        return varied or ", ".join(vary)
    return f"{varied} along {along[0]}" if varied else along[0]


def _along(curve: Mapping[str, Sequence[Any]] | None) -> tuple[str, Sequence[Any]] | None:
    """The curve's setting and values, numbers in ascending order."""
    if not curve:
        return None
    if len(curve) > 1:
        raise ConfigError(f"--curve: is one setting, got {', '.join(curve)}")
    ((setting, values),) = curve.items()
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        values = sorted(values)
    return setting, tuple(values)


def _label_of_baseline(
    vary: Mapping[str, Sequence[Any]], baseline: Mapping[str, Any] | None
) -> str:
    chosen = {setting: choices[0] for setting, choices in vary.items() if len(choices)}
    for setting, value in (baseline or {}).items():
        if setting not in vary:
            raise ConfigError(f"--baseline {setting}: is not varied; varied: {', '.join(vary)}")
        if value not in vary[setting]:
            raise ConfigError(
                f"--baseline {setting}={shown(value)}: is none of"
                f" {', '.join(map(shown, vary[setting]))}"
            )
        chosen[setting] = value
    return label_of(chosen, vary)


def _check_numbers(replications: int, level: float) -> None:
    if replications < 1:
        raise ConfigError(f"--replications: must be at least 1, got {replications}")
    if not 0.5 <= level < 1:
        raise ConfigError(f"--level: must be from 0.5 to below 1, got {level:g}")


def _check_common(scenarios: Sequence[Scenario]) -> None:
    """Refuse profiles, or traces, of which no cell can use any: that is bad input."""
    for use in (_load_profile, _open_trace):
        errors: list[KvcastError] = []
        for scenario in scenarios:
            try:
                use(scenario)
                break
            except KvcastError as error:
                errors.append(error)
        else:
            raise errors[0]


def _load_profile(scenario: Scenario) -> None:
    load_profile(scenario.profile)


def _open_trace(scenario: Scenario) -> None:
    scenario.trace.open()


def _check_metrics(asked: Sequence[str], scenarios: Sequence[Scenario]) -> None:
    """Refuse a figure that no cell has: a run of one request shows which there are."""
    known: set[str] = set()
    for scenario in scenarios:
        if known.issuperset(asked):
            return
        try:
            known |= replication(
                scenario.model_copy(update={"warmup_s": 0.0, "end_s": None}),
                load_profile(scenario.profile),
                [Request(0, 0.0, 8, 8)],
                None,
                Draw(scenario.seed),
            ).keys()
        except KvcastError:
            continue  # reported with its cell
    if known:
        named.check(asked, known)


def _traffic(
    scenarios: Sequence[Scenario], method: str | None, blocks: int, replications: int
) -> Traffic:
    """One way to draw traffic for all cells: pairs are to serve the same."""
    if replications == 1:
        return Traffic()
    traces = list(dict.fromkeys(scenario.trace for scenario in scenarios))
    found: list[Traffic] = []
    for trace in traces:
        try:
            found.append(traffic_for(trace, method, blocks))
        except ConfigError:
            raise
        except KvcastError:
            continue  # a trace that cannot be read is its cells' failure
    return found[0] if len(set(found)) == 1 else Traffic("blocks", blocks)


def _drawn(scenarios: Sequence[Scenario], traffic: Traffic, replications: int) -> list[str]:
    """What replications draw, in words; raises ConfigError if that is nothing."""
    if replications == 1:
        return []
    words = [traffic.in_words] if traffic.in_words else []
    for scenario in scenarios:
        try:
            draw = draw_of(scenario, load_profile(scenario.profile), 1)
        except KvcastError:
            continue  # reported with its cell
        words += [word for word in draw.in_words if word not in words]
    if not words:
        raise ConfigError(
            f"--traffic same: profile {scenarios[0].profile} has neither intervals nor noise to"
            " draw from, so that all replications would be alike; expected --traffic blocks,"
            " --replications 1 or --set uncertainty.cost_share=0.1"
        )
    return [*words, "routers' random numbers"]


def _run(
    made: Sequence[Variant],
    traffic: Traffic,
    replications: int,
    sweep: Sweep,
    progress: Progress | None,
) -> list[Entry]:
    """Every variant: the run itself, then, of those that can run, the replications."""
    drawn = range(1, replications + 1) if replications > 1 else range(0)
    whole = sum(one.scenario is not None for one in made)
    firsts = [Cell(one.scenario) for one in made if one.scenario is not None]
    total = whole * (1 + len(drawn))
    done = 0

    def tell(count: int, _: int) -> None:
        if progress is not None:
            progress(done + count, total)

    outcomes = iter(sweep.run(firsts, tell))
    itself: list[Outcome] = [
        Failure(one.error) if one.scenario is None else next(outcomes) for one in made
    ]
    runs = [
        (index, Cell(one.scenario, number, traffic))
        for number in drawn  # outside, so that neighbours serve the same requests
        for index, one in enumerate(made)
        if one.scenario is not None and not isinstance(itself[index], Failure)
    ]
    done = len(firsts)
    total = done + len(runs)
    found = sweep.run([cell for _, cell in runs], tell)
    of_variant: list[list[Outcome]] = [[] for _ in made]
    for (index, _), outcome in zip(runs, found, strict=True):
        of_variant[index].append(outcome)
    return [
        _entry(one, first, replicated)
        for one, first, replicated in zip(made, itself, of_variant, strict=True)
    ]


def _entry(variant: Variant, itself: Outcome, replicated: Sequence[Outcome]) -> Entry:
    if isinstance(itself, Failure):
        return Entry(variant, None, (), itself.error)
    figures: list[Figures] = []
    for number, one in enumerate(replicated, 1):
        if isinstance(one, Failure):
            return Entry(variant, itself, (), f"replication {number}: {one.error}")
        figures.append(one)
    return Entry(variant, itself, figures)


def _warnings(scenarios: Sequence[Scenario], entries: Sequence[Entry], base: str) -> list[str]:
    warnings: list[str] = []
    for name in dict.fromkeys(scenario.profile for scenario in scenarios):
        try:
            said = load_profile(name).warning
        except KvcastError:
            continue  # reported with its cell
        if said:
            warnings.append(said)
    for entry in entries:
        if entry.error and entry.variant.label == base:
            at = "" if entry.variant.at is None else f" at {shown(entry.variant.at)}"
            warnings.append(f"the baseline {base}{at} failed: nothing can be compared with it")
    return warnings
