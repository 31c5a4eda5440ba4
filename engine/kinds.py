"""Which kinds of policies there are, which setting chooses one, and how to tell a user's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, Final, NamedTuple

from engine.eviction import EVICTION
from engine.named import is_own, loaded
from engine.policies import CHUNKING, ORDER, VICTIM
from traces.errors import ConfigError


class Kind(NamedTuple):
    """One kind of policy."""

    asks: str
    """The question that a policy of this kind answers."""
    setting: str
    """Chooses one."""
    table: Mapping[str, Any]
    """kvcast's own, by name."""
    methods: tuple[str, ...]
    """What a class of this kind has; () if it is a function."""
    arguments: int = 0
    """Of a function of this kind; 0 if it is a class."""


KINDS: Final[dict[str, Kind]] = {
    "order": Kind("Who is served first?", "scheduler.order", ORDER, ("add", "first", "remove"), 1),
    "victim": Kind("Who gives way when blocks run out?", "scheduler.victim", VICTIM, (), 2),
    "chunking": Kind(
        "How many tokens may a step have?", "scheduler.chunking", CHUNKING, ("budget",)
    ),
    "eviction": Kind(
        "What leaves the prefix cache first?", "cache.eviction", EVICTION, ("push", "victim")
    ),
}
"""The kinds that the engine and the simulator share."""


def kind_of(spec: str, kinds: Mapping[str, Kind] = KINDS) -> str:
    """The kind of a policy by its name, or, of a user's own, by its methods or arguments.

    Raises:
        ConfigError: there is none, or more than one.
    """
    if is_own(spec):
        policy = loaded("policy", spec)
        found = [name for name, kind in kinds.items() if _fits(policy, kind)]
        if len(found) == 1:
            return found[0]
        known = "; ".join(f"{name}: {_shape(kind)}" for name, kind in kinds.items())
        said = "looks like no kind of policy" if not found else f"may be {' or '.join(found)}"
        raise ConfigError(f"--policy {spec}: {said}; expected KIND={spec}. Known are {known}")
    policy_name = spec.partition(":")[0]
    found = [name for name, kind in kinds.items() if policy_name in kind.table]
    if len(found) == 1:
        return found[0]
    if found:
        ways = " or ".join(f"{name}={spec}" for name in found)
        raise ConfigError(f"--policy {spec}: there are {len(found)} of that name; expected {ways}")
    near = get_close_matches(policy_name, [one for kind in kinds.values() for one in kind.table], 1)
    hint = f"; did you mean {near[0]}?" if near else f"; known kinds: {', '.join(kinds)}"
    raise ConfigError(f"--policy {spec}: there is no policy '{policy_name}'{hint}")


def policy_values(specs: Iterable[str], kinds: Mapping[str, Kind] = KINDS) -> dict[str, list[str]]:
    """What `--policy` options state: the policies for each setting, in their order.

    Args:
        specs: each `KIND=SPEC`, or a spec whose kind is plain (see `kind_of`).
        kinds: which there are.

    Raises:
        ConfigError: a kind that is unknown or cannot be told.
    """
    values: dict[str, list[str]] = {}
    for one in specs:
        before, equals, spec = one.partition("=")
        if not equals or ":" in before:
            kind, spec = kind_of(one, kinds), one
        elif before in kinds:
            kind = before
        else:
            near = get_close_matches(before, kinds, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(
                f"--policy {one}: unknown kind '{before}'; {hint}known: {', '.join(kinds)}"
            )
        values.setdefault(kinds[kind].setting, []).append(spec)
    return values


def policy_settings(
    specs: Iterable[str], kinds: Mapping[str, Kind] = KINDS
) -> dict[str, dict[str, str]]:
    """The settings that `--policy` options state, section by section, one of a kind.

    Raises:
        ConfigError: as `policy_values`, and for a second of one kind.
    """
    settings: dict[str, dict[str, str]] = {}
    for setting, (spec, *others) in policy_values(specs, kinds).items():
        if others:
            raise ConfigError(
                f"--policy {others[0]}: {setting} is {spec} already; expected one of a kind"
            )
        section, _, name = setting.rpartition(".")
        settings.setdefault(section, {})[name] = spec
    return settings


def _fits(policy: Any, kind: Kind) -> bool:
    made = policy.func if isinstance(policy, partial) else policy
    if inspect.isclass(made):
        return bool(kind.methods) and all(
            callable(getattr(made, one, None)) for one in kind.methods
        )
    return kind.arguments > 0 and _positional(policy) == kind.arguments


def _positional(function: Any) -> int:
    """Arguments of a function that are no parameters of the policy."""
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in plain for one in inspect.signature(function).parameters.values())


def _shape(kind: Kind) -> str:
    """What a policy of the kind looks like, for an error."""
    shapes: list[str] = []
    if kind.arguments:
        shapes.append(f"a function of {'one argument' if kind.arguments == 1 else 'two'}")
    if kind.methods:
        shapes.append(f"a class with {', '.join(kind.methods)}")
    return " or ".join(shapes)
