"""Tokens of a text in which marked characters may spell control tokens and all others may not.

A tokenizer finds added tokens wherever they are spelled. So the control tokens of marked characters
are exchanged for stand-ins that the text does not have, which a second tokenizer, without control
tokens, takes for them.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from lclm_jax.data.text import tokenizer_json
from lclm_jax.data.text.text_encoder import Encoder

Span = tuple[int, int, str]  # from, up to, and the control token spelled there


def spells(
    names: Mapping[str, int],
    unknown: str,
    text: str,
    marked: np.ndarray,
    tokens: np.ndarray,
    offsets: np.ndarray,
) -> bool:
    """Whether characters that are not marked are part of a control token among these tokens.

    A token may have taken the spaces beside it. `unknown` also stands for other characters.
    """
    for number in np.flatnonzero(np.isin(tokens, list(names.values()))):
        start, stop = offsets[number]
        own = text[start:stop]
        first = start + len(own) - len(own.lstrip())
        name = own.strip()
        if tokens[number] == names.get(unknown) and name != unknown:
            continue
        if not marked[first : first + len(name)].all():
            return True
    return False


class ControlEncoder:
    """The second tokenizer, for the control tokens of these `names`."""

    def __init__(
        self, fast: FastTokenizer, definition: str, names: Collection[str], dropped: int | None
    ):
        self._normalizer = fast.normalizer
        self._fields = tokenizer_json.parse_tokenizer_json(definition)
        self._dropped = dropped
        added = {token["content"]: token for token in self._fields["added_tokens"]}
        self._control = {name: added[name] for name in names}
        self._words = [token for name, token in added.items() if name not in self._control]
        longest_first = sorted(added, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._encoders: dict[str, Encoder] = {}

    def encode(self, text: str, marked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [n] and the characters [n, 2] each stands for; `marked` [characters] is bool."""
        key = self._unused(text)
        stand_ins = self._stand_ins(key)
        spans = list(self._find(text, marked))
        while True:
            pieces, starts, stops = zip(*_pieces(text, spans, stand_ins), strict=True)
            tokens, offsets = self._encoder(key).encode("".join(pieces))
            first = np.concatenate([*starts, [len(text)]])[offsets[:, 0]]
            last = np.concatenate([[0], *stops])[offsets[:, 1]]
            offsets = np.stack([first, np.maximum(first, last)], axis=1)
            kept = [span for span in spans if self._is_taken(span, tokens, offsets)]
            if len(kept) == len(spans):
                return tokens, offsets
            spans = kept  # the others are not where their form allows them, such as inside a word

    def _find(self, text: str, marked: np.ndarray) -> Iterator[Span]:
        """The control tokens that marked characters spell."""
        edges = np.flatnonzero(np.diff(marked, prepend=False, append=False))
        for first, last in edges.reshape(-1, 2).tolist():
            for match in self._pattern.finditer(text[first:last]):
                if match[0] in self._control:
                    yield first + match.start(), first + match.end(), match[0]

    def _is_taken(self, span: Span, tokens: np.ndarray, offsets: np.ndarray) -> bool:
        start, stop, name = span
        own = tokens == self._control[name]["id"]
        return bool((own & (offsets[:, 0] <= start) & (offsets[:, 1] >= stop)).any())

    def _unused(self, text: str) -> str:
        """Letters that neither the text nor what it is normalized to has."""
        normalized = self._normalizer.normalize_str(text) if self._normalizer else text
        keys = (_letters(hashlib.sha256(b"%d" % seed).hexdigest()[:12]) for seed in count())
        return next(key for key in keys if key not in text and key not in normalized)

    def _stand_ins(self, key: str) -> dict[str, str]:
        """Names of the same first and last characters: these decide what may stand beside them."""
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
    """Hexadecimal digits as letters, which no pattern splits apart."""
    return "".join(chr(ord("a") + int(digit, 16)) for digit in digits)


def _pieces(
    text: str, spans: Sequence[Span], stand_ins: Mapping[str, str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The text with stand-ins for the spans, in pieces: characters, and where each began and ended
    in the text."""
    last = 0
    for start, stop, name in (*spans, (len(text), len(text), None)):
        places = np.arange(last, start)
        yield text[last:start], places, places + 1
        if name is not None:
            size = len(stand_ins[name])
            yield stand_ins[name], np.full(size, start), np.full(size, stop)
        last = stop
