"""The root of every error that a user can mend; command lines print it as one line instead of a stack trace."""


class UserError(Exception):
    """Says what was expected, what came, and which knob to turn."""
