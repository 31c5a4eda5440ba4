"""The errors a user can cause."""


class KvcastError(Exception):
    """Bad input: one line naming the file, line or setting, the value, and what would be right.

    The command line prints it and exits with code 2.
    """


class TraceError(KvcastError):
    """A trace that cannot be read or written; begins `path:line:` where a line is at fault."""


class ConfigError(KvcastError):
    """A setting that is unknown, out of range or contradicts another."""
