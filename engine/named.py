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
from pathlib import Path
from typing import Any, Final

from pydantic_core import PydanticCustomError

from traces.errors import ConfigError
from traces.settings import UNKNOWN_NAME

SUFFIX: Final = ".py"
"""A first part that ends so is a file of the user's own."""

_KINDS: Final[dict[str, Callable[[str], Any]]] = {"int": int, "float": float, "str": str}
_TRUTH: Final = {"true": True, "false": False}


def chosen(kind: str, spec: str, table: Mapping[str, Any]) -> Callable[..., Any]:
    """The policy that `spec` names, its stated parameters bound.

    Args:
        kind: what it is called in errors, such as "eviction policy".
        spec: see above.
        table: kvcast's own policies of that kind.

    Raises:
        ConfigError: an unknown name or parameter, a value of another type, or a file or name in
            it that cannot be loaded.
    """
    name, *parts = spec.split(":")
    if name.endswith(SUFFIX):
        attribute = parts.pop(0) if parts else ""
        policy = _loaded(kind, name, attribute)
        name = f"{name}:{attribute}"
    elif name in table:
        policy = table[name]
    else:
        near = get_close_matches(name, table, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"unknown {kind} '{name}'; {hint}known: {', '.join(table)}")
    stated = _stated(kind, name, parts, policy)
    return partial(policy, **stated) if stated else policy


def known_policy(kind: str, spec: str, table: Mapping[str, Any]) -> str:
    """`spec`, for a validator of a setting; what `chosen` refuses is refused in its words."""
    try:
        chosen(kind, spec, table)
    except ConfigError as error:
        raise PydanticCustomError(UNKNOWN_NAME, "{said}", {"said": str(error)}) from None
    return spec


def is_own(spec: str) -> bool:
    """Whether `spec` names a policy of the user's own."""
    return spec.partition(":")[0].endswith(SUFFIX)


def parameters(policy: Any) -> dict[str, Any]:
    """A policy's parameters and their defaults, in order."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(policy).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _stated(kind: str, name: str, parts: list[str], policy: Any) -> dict[str, Any]:
    if not parts:
        return {}
    known = parameters(policy)
    free = _free(policy)
    stated: dict[str, Any] = {}
    for part in parts:
        parameter, equals, text = part.partition("=")
        if not equals or not parameter:
            raise ConfigError(f"{kind} '{name}': '{part}' is no parameter; expected NAME=VALUE")
        if parameter in stated:
            raise ConfigError(f"{kind} '{name}': {parameter} is stated twice; expected once")
        if parameter in known:
            wanted = type(known[parameter]).__name__
        elif free:
            wanted = free
        else:
            near = get_close_matches(parameter, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            said = ", ".join(known) or "it has none"
            raise ConfigError(
                f"{kind} '{name}': unknown parameter '{parameter}'; {hint}known: {said}"
            )
        stated[parameter] = _value(kind, name, parameter, text, wanted)
    return stated


def _free(policy: Any) -> str:
    """The type of parameters of any name, if the policy takes such; else an empty string."""
    for parameter in inspect.signature(policy).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            wanted = parameter.annotation
            return wanted if isinstance(wanted, str) else wanted.__name__
    return ""


def _value(kind: str, name: str, parameter: str, text: str, wanted: str) -> Any:
    try:
        return _TRUTH[text] if wanted == "bool" else _KINDS[wanted](text)
    except (KeyError, ValueError):
        raise ConfigError(
            f"{kind} '{name}': {parameter} is '{text}'; expected a value of type {wanted}"
        ) from None


def _loaded(kind: str, file: str, attribute: str) -> Any:
    """What `file` calls `attribute`; the file is run once a process."""
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
        try:
            found.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            said = " ".join(str(error).split())
            raise ConfigError(
                f"{kind} '{file}:{attribute}': {file} cannot be run: {type(error).__name__}: {said}"
            ) from None
    policy = getattr(module, attribute, None)
    if not callable(policy):
        raise ConfigError(
            f"{kind} '{file}:{attribute}': {file} has no function or class '{attribute}'"
        )
    return policy
