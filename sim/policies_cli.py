"""`kvcast policies`: which policies there are, what each does, and what it takes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from engine.kinds import Kind, kind_of
from engine.named import accepted, is_own, loaded, parameters
from sim.kinds import KINDS
from traces.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SENTENCE: Final = re.compile(r"(?<!\bal)(?<!e\.g)(?<!i\.e)\.(?=\s|$)")
"""The end of one."""

AFTER_SOURCE: Final = re.compile(r"[:;] (?=[a-z])|\.$")
"""Where a sentence goes on after its source; a title's subtitle begins with a capital, or it
stands in quotes."""


def policies(
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND|NAME|FILE.py:NAME]",
            help="A kind, to list it; a policy, to read all about it; nothing, to list all.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the policies, what each does and what it takes; or read about one."""
    from rich.console import Console

    console = Console()
    if which is None or which in KINDS:
        for name, kind in KINDS.items():
            if which in (None, name):
                console.print(kind_table(name, kind))
        return
    for name, policy_name, policy in _found(which):
        _describe(console, name, policy_name, policy)


def kind_table(name: str, kind: Kind) -> Table:
    """The policies of one kind, a row each."""
    from rich.table import Table

    table = Table(
        title=f"{name}: {kind.asks} ({kind.setting})",
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        box=None,
        show_edge=False,
    )
    table.add_column("name", no_wrap=True, style="bold")
    table.add_column("parameters", no_wrap=True)
    table.add_column("what it does", ratio=2)
    table.add_column("source", ratio=1, style="dim")
    for policy_name, policy in kind.table.items():
        told = documentation(policy)
        stated = "\n".join(stated_parameters(policy))
        table.add_row(policy_name, stated, first_sentence(told), source_of(told))
    table.add_row("", "", "", "")
    return table


def documentation(policy: Any) -> str:
    """A policy's docstring; an empty string if it has none of its own."""
    own: Any = policy.func if isinstance(policy, partial) else policy
    return inspect.cleandoc(own.__doc__) if isinstance(own.__doc__, str) else ""


def stated_parameters(policy: Any) -> list[str]:
    """A policy's parameters with their defaults, as a spec states them."""
    stated = [
        f"{name}={'...' if default is inspect.Parameter.empty else default}"
        for name, default in parameters(policy).items()
    ]
    free = accepted(policy)
    return [*stated, f"{free[0].upper()}={free[1].upper()}"] if free else stated


def sentences(text: str) -> list[str]:
    """The sentences of a docstring, each on one line."""
    return [" ".join(one.split()) + "." for one in SENTENCE.split(text) if one.strip()]


def first_sentence(text: str) -> str:
    """What a docstring says first."""
    return next(iter(sentences(text)), "")


def source_of(text: str) -> str:
    """The publication that a docstring gives as its source; an empty string if there is none."""
    for sentence in sentences(text):
        _, source, rest = sentence.partition("Source: ")
        if source:
            ends = [one.start() for one in AFTER_SOURCE.finditer(rest)]
            return next((rest[:end] for end in ends if rest[:end].count('"') % 2 == 0), rest)
    return ""


def paragraphs(text: str) -> str:
    """A docstring, a line for each of its paragraphs."""
    return "\n\n".join(" ".join(one.split()) for one in text.split("\n\n"))


def _found(which: str) -> list[tuple[str, str, Any]]:
    """The policies of that name: kind, name, policy."""
    if is_own(which):
        return [(kind_of(which, KINDS), which, loaded("policy", which))]
    bare = which.partition(":")[0]
    found = [(name, bare, kind.table[bare]) for name, kind in KINDS.items() if bare in kind.table]
    if found:
        return found
    known = [*KINDS, *(one for kind in KINDS.values() for one in kind.table)]
    near = get_close_matches(bare, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known kinds: {', '.join(KINDS)}"
    raise ConfigError(f"there is no policy, nor a kind of them, called '{which}'; {hint}")


def _describe(console: Console, kind_name: str, name: str, policy: Any) -> None:
    kind: Kind = KINDS[kind_name]
    console.print(f"[bold]{name}[/bold], {kind_name}: {kind.asks}", highlight=False)
    console.print()
    console.print(paragraphs(documentation(policy)), markup=False, highlight=False)
    console.print()
    for label, text in _facts(kind, name, policy).items():
        console.print(f"{label:<12}{text}", markup=False, highlight=False, soft_wrap=True)
    console.print()


def _facts(kind: Kind, name: str, policy: Any) -> Mapping[str, str]:
    stated = stated_parameters(policy)
    spec = ":".join([name, *stated[:1]])
    facts = {
        "parameters": ", ".join(stated) or "none",
        "chosen by": f"--set {kind.setting}={spec}",
    }
    if not is_own(name):
        facts["code"] = _place(policy)
    return facts


def _place(policy: Any) -> str:
    """The file of the repository that defines a policy."""
    own: Any = policy.func if isinstance(policy, partial) else policy
    return str(Path(*own.__module__.split("."))) + ".py"
