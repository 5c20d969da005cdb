"""Text of an answer while its tokens arrive: whole characters only, and up to a stop string."""

from collections.abc import Iterable, Sequence

from lclm_jax.data.text.tokenizer import Tokenizer

INCOMPLETE = "\ufffd"  # decoders write it for bytes that are no character, or not yet
MAX_PENDING_TOKENS = 32  # whose text may change; bounds the work per token


class TextStream:
    """The text of tokens that are added one by one.

    `add` returns new text once it is certain: a character whose bytes are still arriving, and the
    beginning of what may become a stop string, are withheld. The text ends before the stop string
    that is complete first; `stopped` is then True, and further tokens add nothing. All pieces
    together are the text that `Tokenizer.decode` returns for all tokens, without control tokens,
    up to that stop string. (With byte fallback, bytes that are no characters may differ.)

    Attributes:
        count: tokens of the text, with that which completes a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.tokenizer, self.stop = tokenizer, stop
        self.stopped = False
        self.count = 0
        self._tokens: list[int] = []
        self._first = 0  # decoding begins here, so that the next tokens have some before them
        self._decoded = 0  # tokens whose text is known
        self._withheld = ""

    def add(self, token: int) -> str:
        """Add a token and return the text that is certain now."""
        if self.stopped:
            return ""
        self.count += 1
        self._tokens.append(token)
        before, text = self._decode_new()
        if not text.endswith(INCOMPLETE):
            self._first, self._decoded = self._decoded, len(self._tokens)
            self._withhold(text.removeprefix(before))
        elif self._is_left_out(token):
            self._tokens.pop()
        elif len(self._tokens) - self._decoded > MAX_PENDING_TOKENS:
            self._split(before, text)
        return self._release(longest_beginning(self._withheld, self.stop))

    def finish(self) -> str:
        """Return the text that was withheld; no tokens follow."""
        if not self.stopped:
            before, text = self._decode_new()
            self._withhold(text.removeprefix(before))
            self._decoded = len(self._tokens)
        return self._release(0)

    def _decode_new(self) -> tuple[str, str]:
        """Return the text of the last tokens whose text is known, and the text with all others."""
        before = self._tokens[self._first : self._decoded]
        decode = self.tokenizer.decode
        return decode(before, control=False), decode(self._tokens[self._first :], control=False)

    def _is_left_out(self, token: int) -> bool:
        """Return whether a token has no text anywhere, as control tokens.

        Twice, because a blank at the beginning of a text may be dropped. (A name that is not ASCII
        may keep the bytes around it apart.)
        """
        decode = self.tokenizer.decode
        return not decode([token, token], control=False) and decode([token]).isascii()

    def _split(self, before: str, text: str):
        """Append the text of the first pending tokens, if that of the others is the same after it.

        Only the last character of a text that ends in bytes without a character can change.
        """
        decode = self.tokenizer.decode
        known, pending = self._tokens[self._first : self._decoded], self._tokens[self._decoded :]
        without_known = decode(pending, control=False)
        for count in range(len(pending) // 2, len(pending)):
            start = decode(known + pending[:count], control=False)
            rest = text.removeprefix(start)
            is_certain = rest not in ("", text)
            if is_certain and decode(pending[:count], control=False) + rest == without_known:
                self._first, self._decoded = self._decoded, self._decoded + count
                self._withhold(start.removeprefix(before))
                return

    def _withhold(self, text: str):
        """Append text, up to a stop string."""
        self._withheld += text
        end = end_of_stop(self._withheld, self.stop)
        if end is not None:
            self._withheld, self.stopped = self._withheld[:end], True

    def _release(self, count: int) -> str:
        """Return all withheld text but its last `count` characters."""
        length = len(self._withheld) - (0 if self.stopped else count)
        released, self._withheld = self._withheld[:length], self._withheld[length:]
        return released


def end_of_stop(text: str, stop: Iterable[str]) -> int | None:
    """Return where a text ends that generation leaves when its first stop string is complete.

    >>> end_of_stop("one, two. Three", [". ", "two. T"])
    8
    """
    matches = [(start + len(s), start) for s in stop if (start := text.find(s)) >= 0]
    return min(matches)[1] if matches else None


def longest_beginning(text: str, stop: Iterable[str]) -> int:
    r"""Return the length of the longest end of a text that a stop string could begin with.

    >>> longest_beginning("yes\nUs", ["\nUser:"])
    3
    """
    lengths = (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n]))
    return max(lengths, default=0)
