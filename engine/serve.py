"""Play a trace on an engine: each request at its time by the wall clock, or as fast as possible."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from pydantic import Field

from engine.config import EngineSettings
from engine.llm import LLMEngine
from engine.metrics import PICOSECONDS
from engine.prompts import Text, text_of
from engine.records import ServiceRecords
from engine.scheduler import UNLIMITED
from engine.slo import SloSettings
from engine.work import Generation
from traces.errors import PolicyError
from traces.pipeline import TraceSettings
from traces.request import Request

Progress = Callable[[ServiceRecords], None]
"""Told after each step how far it is."""

AHEAD: Final = 1024
"""Requests that wait in the engine when a trace is played as fast as possible: the texts of all of
a long trace would not fit into memory."""


class ReplaySettings(EngineSettings):
    """An engine, and the traffic it serves."""

    trace: TraceSettings = TraceSettings()
    """Which requests arrive."""
    speed: float | None = Field(default=1.0, gt=0)
    """Seconds of the trace that pass in a second; None: all requests arrive at once."""
    slo: SloSettings = SloSettings()
    """Limits that a good request keeps."""


class Arrivals:
    """The requests still to come, in order; the next one's text is made before its time."""

    def __init__(
        self, requests: Iterable[Request], speed: float | None, vocab: int, seed: int
    ) -> None:
        """Requests of a trace; times are picoseconds since it began."""
        self._source: Final[Iterator[Request]] = iter(requests)
        self._speed = speed
        self._vocab = vocab
        self._seed = seed
        self.next: tuple[int, Request, Text] | None = self._taken()
        """When it arrives, the request, its text; None: no more come."""

    def due(self, now: int) -> bool:
        """Whether the next one has arrived by `now`."""
        return self.next is not None and self.next[0] <= now

    def take(self) -> tuple[int, Request, Text]:
        """The next one."""
        assert self.next is not None
        one, self.next = self.next, self._taken()
        return one

    def _taken(self) -> tuple[int, Request, Text] | None:
        request = next(self._source, None)
        if request is None:
            return None
        after_s = request.arrival_s / self._speed if self._speed else 0.0
        return round(after_s * PICOSECONDS), request, text_of(request, self._vocab, self._seed)


def serve(
    engine: LLMEngine,
    requests: Iterable[Request],
    records: ServiceRecords,
    *,
    speed: float | None = 1.0,
    forced: bool = True,
    progress: Progress | None = None,
    on_end: Callable[[Generation], None] | None = None,
) -> None:
    """Serve all of `requests`, which come in arrival order; nothing ends one before its length.

    A request that can never be served is rejected, the others go on. One that comes while a step
    runs is seen after it.

    Args:
        engine: at rest; the trace begins now, on its clock.
        requests: of a trace.
        records: takes what comes of it, and is flushed.
        speed: seconds of the trace in a second; None: all arrive at once.
        forced: have it answer what the trace knows of an answer, so that later turns can find it
            in the prefix cache; False: what the model says.
        progress: told after each step.
        on_end: told of each generation that ended.

    Raises:
        PolicyError: a policy of the user's own broke its contract.
    """
    clock, scheduler = engine.clock, engine.scheduler
    room = UNLIMITED if speed is not None else AHEAD
    arrivals = Arrivals(requests, speed, engine.executor.vocab, engine.settings.seed)
    begin = records.start()
    try:
        while arrivals.next is not None or engine.work_left:
            now = clock.now()
            while arrivals.due(now - begin) and scheduler.waiting < room:
                after, request, text = arrivals.take()
                _accept(engine, begin + after, request, text, records, forced)
            if engine.work_left:
                ended = engine.step()
                records.stepped(ended)
                if on_end is not None:
                    for generation in ended:
                        on_end(generation)
                if progress is not None:
                    progress(records)
            elif arrivals.next is not None:
                clock.wait_until(begin + arrivals.next[0])
    except PolicyError as error:
        passed_s = (clock.now() - begin) / PICOSECONDS
        when = f"in step {engine.steps}, at {passed_s:.3f} s"
        raise error.during(when) from error.__cause__
    records.flush()


def _accept(
    engine: LLMEngine,
    arrival: int,
    request: Request,
    text: Text,
    records: ServiceRecords,
    forced: bool,
) -> None:
    refusal = engine.scheduler.refusal(request)
    if refusal:
        records.reject(request, arrival, refusal)
        return
    engine.add(
        text.prompt,
        request.output_tokens,
        forced=text.answer if forced else (),
        request=request,
        arrival=arrival,
    )
