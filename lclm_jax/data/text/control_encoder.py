"""Encoding of text in which only marked characters may spell control tokens.

A tokenizer matches added tokens wherever they are spelled. So control tokens in marked characters
are replaced by stand-ins, strings that do not occur in the text. A second tokenizer, which knows
the stand-ins instead of the control tokens, maps each stand-in to the id of its control token.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from lclm_jax.data.text.text_encoder import Encoder
from lclm_jax.data.text.tokenizer_json import parse_tokenizer_json

Span = tuple[int, int, str]  # start and stop of the characters, and the control token they spell


def spells(
    names: Mapping[str, int],
    unknown: str,
    text: str,
    marked: np.ndarray,
    tokens: np.ndarray,
    offsets: np.ndarray,
) -> bool:
    """Return whether any control token among `tokens` contains unmarked characters.

    `names` are the ids of the control tokens, `marked` [characters] is bool, and `offsets` [n, 2]
    are the characters of each token. Spaces that a token absorbed beside its name do not count.
    The token `unknown` counts only where the text spells its name, since it also stands for
    characters outside the vocabulary.
    """
    for number in np.flatnonzero(np.isin(tokens, list(names.values()))):
        start, stop = offsets[number]
        characters = text[start:stop]
        first = start + len(characters) - len(characters.lstrip())
        name = characters.strip()

        if tokens[number] == names.get(unknown) and name != unknown:
            continue
        if not marked[first : first + len(name)].all():
            return True
    return False


class ControlEncoder:
    """Encoder that matches the control tokens `names` in marked characters only.

    `fast` is the library's tokenizer for `definition`, a `tokenizer.json`. `dropped` is the id of
    an unknown token that is a control token: it is removed from the result.
    """

    def __init__(
        self, fast: FastTokenizer, definition: str, names: Collection[str], dropped: int | None
    ):
        self._normalizer = fast.normalizer
        self._fields = parse_tokenizer_json(definition)
        self._dropped = dropped
        added = {token["content"]: token for token in self._fields["added_tokens"]}
        self._control = {name: added[name] for name in names}
        self._words = [token for name, token in added.items() if name not in self._control]
        longest_first = sorted(added, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._encoders: dict[str, Encoder] = {}

    def encode(self, text: str, marked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens [n] and the characters [n, 2] (start, stop) of each.

        `marked` [characters] is bool: the characters that may spell control tokens.
        """
        key = self._unused(text)
        stand_ins = self._stand_ins(key)
        spans = list(self._find_spans(text, marked))

        while True:
            pieces, starts, stops = zip(*_pieces(text, spans, stand_ins), strict=True)
            tokens, offsets = self._encoder(key).encode("".join(pieces))

            # Offsets in the text with stand-ins become offsets in the text itself.
            first = np.concatenate([*starts, [len(text)]])[offsets[:, 0]]
            last = np.concatenate([[0], *stops])[offsets[:, 1]]
            offsets = np.stack([first, np.maximum(first, last)], axis=1)

            # The flags of an added token may forbid a match, for example inside a word. Such
            # a stand-in was read as text, so the next pass leaves the spelled token in place.
            matched = [span for span in spans if self._is_matched(span, tokens, offsets)]
            if len(matched) == len(spans):
                return tokens, offsets
            spans = matched

    def _find_spans(self, text: str, marked: np.ndarray) -> Iterator[Span]:
        """Yield the control tokens that marked characters spell."""
        edges = np.flatnonzero(np.diff(marked, prepend=False, append=False))
        for first, last in edges.reshape(-1, 2).tolist():
            for match in self._pattern.finditer(text[first:last]):
                if match[0] in self._control:
                    yield first + match.start(), first + match.end(), match[0]

    def _is_matched(self, span: Span, tokens: np.ndarray, offsets: np.ndarray) -> bool:
        """Return whether the control token of a span is among the tokens, at its place."""
        start, stop, name = span
        is_name = tokens == self._control[name]["id"]
        covers_span = (offsets[:, 0] <= start) & (offsets[:, 1] >= stop)
        return bool((is_name & covers_span).any())

    def _unused(self, text: str) -> str:
        """Return letters that occur neither in the text nor in its normalized form."""
        normalized = self._normalizer.normalize_str(text) if self._normalizer else text
        keys = (_letters(hashlib.sha256(b"%d" % seed).hexdigest()[:12]) for seed in count())
        return next(key for key in keys if key not in text and key not in normalized)

    def _stand_ins(self, key: str) -> dict[str, str]:
        """Return a stand-in for each control token.

        It keeps the first and last characters of the name, which decide what may stand beside it.
        """
        numbers = (_letters(f"{number:04x}") for number in range(len(self._control)))
        pairs = zip(self._control, numbers, strict=True)
        return {name: f"{name[0]}{key}{number}{name[-1]}" for name, number in pairs}

    def _encoder(self, key: str) -> Encoder:
        if key not in self._encoders:
            stand_ins = self._stand_ins(key)
            tokens = [
                {**token, "content": stand_ins[name]} for name, token in self._control.items()
            ]
            self._encoders = {
                key: Encoder.of(self._fields, self._control, [*self._words, *tokens], self._dropped)
            }
        return self._encoders[key]


def _letters(digits: str) -> str:
    """Return hexadecimal digits as letters, which no pre-tokenizer pattern splits apart."""
    return "".join(chr(ord("a") + int(digit, 16)) for digit in digits)


def _pieces(
    text: str, spans: Sequence[Span], stand_ins: Mapping[str, str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield pieces of the text in which stand-ins replace the spans.

    Each piece comes with the start and stop, in the text, of each of its characters.
    """
    last = 0
    for start, stop, name in (*spans, (len(text), len(text), None)):
        positions = np.arange(last, start)
        yield text[last:start], positions, positions + 1
        if name is not None:
            size = len(stand_ins[name])
            yield stand_ins[name], np.full(size, start), np.full(size, stop)
        last = stop
