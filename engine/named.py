"""Policies by name: `name`, `name:parameter=value:...`, or a user's own `file.py:name`.

A policy is a function or class in a dict; its parameters are its keyword-only arguments, with the
types of their defaults. The same string chooses it in YAML, on the command line and in Python.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Final

from pydantic_core import PydanticCustomError

from traces.errors import ConfigError, KvcastError
from traces.settings import UNKNOWN_NAME

SUFFIX: Final = ".py"
"""A first part that ends so is a file of the user's own."""

_KINDS: Final[dict[str, Callable[[str], Any]]] = {"int": int, "float": float, "str": str}
_TRUTH: Final = {"true": True, "false": False}


def chosen(kind: str, spec: str, table: Mapping[str, Any], **limits: int) -> Callable[..., Any]:
    """The policy that `spec` names, its stated parameters bound; a user's own is guarded.

    Args:
        kind: what it is called in errors, such as "eviction policy".
        spec: see above.
        table: kvcast's own policies of that kind.
        limits: of the guard of a user's own, see engine.guard.

    Raises:
        ConfigError: an unknown name or parameter, a value of another type, a parameter that must
            be stated and is not, or a file or name in it that is not there.
        PolicyError: the file raises an exception, or is not done in time.
    """
    name, *parts = spec.split(":")
    if is_own(spec):
        attribute = parts.pop(0) if parts else ""
        policy = loaded(kind, f"{name}:{attribute}")
        name = f"{name}:{attribute}"
    elif name in table:
        policy = table[name]
    else:
        near = get_close_matches(name, table, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"unknown {kind} '{name}'; {hint}known: {', '.join(table)}")
    stated = _stated(kind, name, parts, policy)
    bound = partial(policy, **stated) if stated else policy
    if not is_own(spec):
        return bound
    from engine.guard import guarded

    return guarded(kind, spec, bound, **limits)


def known_policy(kind: str, spec: str, table: Mapping[str, Any]) -> str:
    """`spec`, for a validator of a setting; what `chosen` refuses is refused in its words."""
    try:
        chosen(kind, spec, table)
    except KvcastError as error:
        raise PydanticCustomError(UNKNOWN_NAME, "{said}", {"said": str(error)}) from None
    return spec


def is_own(spec: str) -> bool:
    """Whether `spec` names a policy of the user's own."""
    return spec.partition(":")[0].endswith(SUFFIX)


def parameters(policy: Any) -> dict[str, Any]:
    """A policy's parameters and their defaults, in order."""
    return {name: parameter.default for name, parameter in _parameters(policy).items()}


def accepted(policy: Any) -> tuple[str, str] | None:
    """What stands for a parameter of any name, and its type, if a policy takes such."""
    try:
        all_of_them = inspect.signature(policy).parameters.values()
    except ValueError:
        return None
    for parameter in all_of_them:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            return parameter.name, _wanted(parameter)
    return None


def loaded(kind: str, spec: str) -> Callable[..., Any]:
    """The function or class of the user's own that `spec` names; its file is run once a process.

    Raises:
        ConfigError: there is no such file, or nothing in it of that name.
        PolicyError: the file raises an exception, or is not done in time.
    """
    from engine.guard.calls import Calls

    file, _, rest = spec.partition(":")
    attribute = rest.partition(":")[0]
    if not attribute:
        raise ConfigError(f"{kind} '{file}': which? expected FILE{SUFFIX}:NAME")
    path = Path(file).resolve()
    module_name = f"policies_of_the_user.{path}"
    module = sys.modules.get(module_name)
    if module is None:
        found = importlib.util.spec_from_file_location(module_name, path)
        if found is None or found.loader is None or not path.is_file():
            raise ConfigError(f"{kind} '{file}:{attribute}': there is no file {file}")
        module = importlib.util.module_from_spec(found)
        sys.modules[module_name] = module
        calls = Calls(kind, f"{file}:{attribute}")
        try:
            calls.call(f"running {file}", None, found.loader.exec_module, module)
        except BaseException:
            del sys.modules[module_name]
            raise
    policy = getattr(module, attribute, None)
    if not callable(policy):
        public = [name for name, one in vars(module).items() if _is_own_work(one, module_name)]
        near = get_close_matches(attribute, public, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{kind} '{file}:{attribute}': {file} has no function or class '{attribute}'{hint}"
        )
    return policy


def _is_own_work(value: Any, module_name: str) -> bool:
    """Whether a module has made a function or class itself, rather than imported it."""
    return callable(value) and getattr(value, "__module__", "") == module_name


def _stated(kind: str, name: str, parts: list[str], policy: Any) -> dict[str, Any]:
    known = _parameters(policy) if parts or is_own(name) else {}
    free = accepted(policy) if parts else None
    stated: dict[str, Any] = {}
    for part in parts:
        parameter, equals, text = part.partition("=")
        if not equals or not parameter:
            raise ConfigError(f"{kind} '{name}': '{part}' is no parameter; expected NAME=VALUE")
        if parameter in stated:
            raise ConfigError(f"{kind} '{name}': {parameter} is stated twice; expected once")
        if parameter in known:
            wanted = _wanted(known[parameter])
        elif free is not None:
            wanted = free[1]
        else:
            near = get_close_matches(parameter, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            said = ", ".join(known) or "it has none"
            raise ConfigError(
                f"{kind} '{name}': unknown parameter '{parameter}'; {hint}known: {said}"
            )
        stated[parameter] = _value(kind, name, parameter, text, wanted)
    for parameter, one in known.items():
        if one.default is inspect.Parameter.empty and parameter not in stated:
            raise ConfigError(
                f"{kind} '{name}': {parameter} must be stated; expected"
                f" {name}:{parameter}={_wanted(one).upper()}"
            )
    return stated


def _parameters(policy: Any) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function or class, in order; none of one without any."""
    try:
        all_of_them = inspect.signature(policy).parameters
    except ValueError:  # a class without an __init__ of its own
        return {}
    return {
        name: parameter
        for name, parameter in all_of_them.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _wanted(parameter: inspect.Parameter) -> str:
    """The type a parameter takes: its default's, or as it is annotated where that says nothing."""
    if parameter.default is not None and parameter.default is not inspect.Parameter.empty:
        return type(parameter.default).__name__
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        return "str"
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text.partition("|")[0].strip()


def _value(kind: str, name: str, parameter: str, text: str, wanted: str) -> Any:
    try:
        value = _TRUTH[text] if wanted == "bool" else _KINDS[wanted](text)
    except (KeyError, ValueError):
        raise ConfigError(
            f"{kind} '{name}': {parameter} is '{text}'; expected a value of type {wanted}"
        ) from None
    if isinstance(value, float) and not isfinite(value):
        raise ConfigError(f"{kind} '{name}': {parameter} is '{text}'; expected a finite number")
    return value
