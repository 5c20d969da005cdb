"""The root of every error that a user can mend; command lines print it as one line instead of a stack trace."""


class UserError(Exception):
    """Says what was expected, what came, and which knob to turn."""


class TextError(UserError, ValueError):
    """A text, a chat or a tokenizer that cannot be used."""
