"""Runs cells: each once, here, in processes beside this one or on Ray, and keeps what is done."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from sim.sweep.cells import Cell, Keys, Simulator, key_of
from sim.sweep.local import Here, Processes
from sim.sweep.outcomes import Failure, Outcome, Pool, Progress, Work
from sim.sweep.stated import in_words
from sim.sweep.store import Store


class Sweep:
    """Many cells, each run once; a context manager, whose workers live until its end.

    Either all at once (`run`), or as they come to mind (`submit`, `next`). An outcome is the
    figures of a cell, or a Failure: it is nobody else's, and the sweep goes on. Figures that
    the store has are not computed, what is computed goes there at once, failures do not.

        with Sweep(jobs=2) as sweep:
            sweep.submit(cell)
            while sweep.pending:
                cell, outcome = sweep.next()
    """

    def __init__(
        self,
        *,
        jobs: int = 1,
        ray: str | None = None,
        store: Store | None = None,
        timeout_s: float | None = None,
        memory_bytes: int | None = None,
        work: Work | None = None,
    ) -> None:
        """Nothing is started before there is something to compute.

        Args:
            jobs: processes of this machine; their number changes nothing but the time. With 1 and
                no limits everything happens in this process, and a crash of it is a crash.
            ray: "auto" or the address of a Ray cluster, all of whose CPUs are used instead.
            store: of figures; None: they are kept as long as the sweep.
            timeout_s: a cell that takes longer is ended, with its process.
            memory_bytes: a cell that takes more, beyond what its process began with, fails.
            work: figures of a cell; it is sent to other processes. None: a simulation.

        Raises:
            ConfigError: Ray is not installed or not to be reached, or memory cannot be bounded.
        """
        self._work = work or Simulator()
        self._keys = Keys(self._work)
        self._store = store
        self._pool = _pool(jobs, ray, timeout_s, memory_bytes, self._work)
        self._cells: dict[str, tuple[Cell, str]] = {}
        """Cells, and what their keys stand for, while they are computed."""
        self._done: dict[str, Outcome] = {}
        """Of this sweep's cells, those that the store does not have."""
        self._waiting: OrderedDict[str, Cell] = OrderedDict()
        """Submitted, and not given by `next` yet."""
        self._ready: OrderedDict[str, Outcome] = OrderedDict()
        """Those of them that are done."""
        self.computed = 0
        """Cells that were run, whatever came of it; the others were there already."""

    def __enter__(self) -> Sweep:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers, and leave the store in order."""
        self._pool.close()
        if self._store is not None:
            self._store.flush()

    def run(self, cells: Sequence[Cell], progress: Progress | None = None) -> list[Outcome]:
        """The outcomes of cells, in their order; equal cells are run once.

        Args:
            cells: what to run.
            progress: told after each cell.
        """
        asked: list[str] = []
        found: dict[str, Outcome] = {}
        missing: set[str] = set()
        for cell in cells:
            key, outcome = self._ask(cell)
            asked.append(key)
            if outcome is None:
                missing.add(key)
            else:
                found[key] = outcome
        total = len(found) + len(missing)
        if progress is not None:
            progress(len(found), total)
        while missing:
            for key, outcome in self._take():
                if key in missing:
                    missing.remove(key)
                    found[key] = outcome
                    if progress is not None:
                        progress(len(found), total)
        return [found[key] for key in asked]

    def submit(self, cell: Cell) -> str:
        """Have a cell run some time; its key. One that is pending or known costs nothing."""
        key, outcome = self._ask(cell)
        if key not in self._waiting:
            self._waiting[key] = cell
            if outcome is not None:
                self._ready[key] = outcome
        return key

    def next(self) -> tuple[Cell, Outcome]:
        """Any submitted cell that is done, with its outcome; waits for one.

        Raises:
            LookupError: nothing is pending.
        """
        if not self._waiting:
            raise LookupError("no cell is pending")
        while not self._ready:
            self._take()
        key, outcome = self._ready.popitem(last=False)
        return self._waiting.pop(key), outcome

    @property
    def pending(self) -> int:
        """How many submitted cells `next` has yet to give."""
        return len(self._waiting)

    def drop(self) -> None:
        """Forget submitted cells that no worker has begun; those under way are still pending."""
        for key in self._pool.drop():
            del self._cells[key]
            self._waiting.pop(key, None)

    def _ask(self, cell: Cell) -> tuple[str, Outcome | None]:
        """A cell's key and outcome; None if there is none yet, in which case it is computed."""
        content = self._keys.content(cell)
        key = key_of(content)
        if key in self._cells:
            return key, None
        outcome = self._known(key)
        if outcome is None:
            self._cells[key] = (cell, content)
            self._pool.add(key, cell)
        return key, outcome

    def _known(self, key: str) -> Outcome | None:
        if key in self._done:
            return self._done[key]
        return self._store.get(key) if self._store is not None else None

    def _take(self) -> list[tuple[str, Outcome]]:
        """What has been done since; it is kept first."""
        taken: list[tuple[str, Outcome]] = []
        for key, outcome in self._pool.take():
            cell, content = self._cells.pop(key)
            self.computed += 1
            if isinstance(outcome, Failure):
                outcome = Failure(outcome.error, key, in_words(cell))
                self._done[key] = outcome
            elif self._store is not None:
                self._store.put(key, outcome, content)
            else:
                self._done[key] = outcome
            if key in self._waiting:
                self._ready[key] = outcome
            taken.append((key, outcome))
        return taken


def run_cells(
    cells: Sequence[Cell],
    jobs: int = 1,
    store: Store | None = None,
    progress: Progress | None = None,
    *,
    ray: str | None = None,
    timeout_s: float | None = None,
    memory_bytes: int | None = None,
    work: Work | None = None,
) -> list[Outcome]:
    """The outcomes of cells in their order; arguments and errors as those of `Sweep`."""
    with Sweep(
        jobs=jobs, ray=ray, store=store, timeout_s=timeout_s, memory_bytes=memory_bytes, work=work
    ) as sweep:
        return sweep.run(cells, progress)


def _pool(
    jobs: int,
    ray: str | None,
    timeout_s: float | None,
    memory_bytes: int | None,
    work: Work,
) -> Pool:
    if ray is not None:
        from sim.sweep.on_ray import OnRay

        return OnRay(ray, work, timeout_s, memory_bytes)
    if jobs == 1 and timeout_s is None and memory_bytes is None:
        return Here(work)
    return Processes(jobs, work, timeout_s, memory_bytes)
