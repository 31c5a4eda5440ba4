"""The time, as far as a policy may know it."""


class Moment:
    """Set by whoever drives a scheduler, before each call; in picoseconds."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now: int = 0
