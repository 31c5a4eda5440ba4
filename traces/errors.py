"""The errors a user can cause."""


class KvcastError(Exception):
    """Bad input: one line naming the file, line or setting, the value, and what would be right.

    The command line prints it and exits with code 2.
    """


class TraceError(KvcastError):
    """A trace that cannot be read or written; begins `path:line:` where a line is at fault."""


class ConfigError(KvcastError):
    """A setting that is unknown, out of range or contradicts another."""


class PolicyError(KvcastError):
    """A policy of the user's own that broke its contract; names it, the request and the time."""

    def during(self, moment: str) -> "PolicyError":
        """The same error, which ends with when it happened."""
        said = PolicyError(f"{self}, {moment}")
        said.__cause__ = self.__cause__
        return said
