"""What a bill cannot be made without."""

from traces.errors import ConfigError


class NotStatedError(ConfigError):
    """Nobody states a price or a power: the figures that need it are not known."""
