"""Signs of life on a terminal; nothing where the output is a file."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

Tell = Callable[[int, str], None]
"""How much is done, and a few words on it."""


@contextmanager
def waiting(what: str) -> Generator[None]:
    """Says what takes its time."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


@contextmanager
def counting(what: str, total: int | None, note: str = "") -> Generator[Tell | None]:
    """A bar of things done, of `total` if that is known."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(what),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, note=note)
        yield lambda done, note: bar.update(task, completed=done, note=note)
