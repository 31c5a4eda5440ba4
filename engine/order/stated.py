"""What is refused of the parameters that a policy is chosen with."""

from collections.abc import Mapping

from traces.errors import ConfigError


def check_at_least(policy: str, parameter: str, value: float, least: float) -> None:
    """Raises ConfigError if `value` is below `least`; `policy` is its kind and name."""
    if value < least:
        raise ConfigError(f"{policy}: {parameter} must be at least {least:g}, got {value:g}")


def check_above_0(policy: str, parameter: str, value: float) -> None:
    """Raises ConfigError unless `value` is above 0."""
    if not value > 0:
        raise ConfigError(f"{policy}: {parameter} must be above 0, got {value:g}")


def check_weights(policy: str, weight: Mapping[str, float]) -> None:
    """Raises ConfigError unless every tenant's weight is above 0."""
    for tenant, value in weight.items():
        check_above_0(policy, tenant, value)
