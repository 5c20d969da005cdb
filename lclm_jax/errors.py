"""Errors that a user can mend; command lines print them as one line instead of a stack trace."""


class UserError(Exception):
    """Says what was expected, what came, and which knob to turn."""


class ConfigError(UserError, ValueError):
    """A setting that does not exist or cannot hold the value it was given."""
