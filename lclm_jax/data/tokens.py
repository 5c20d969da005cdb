"""Text and chats to tokens. Control tokens come only from templates and tags we write, never from text we are given."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from lclm_jax.data.cuts import can_cut, cut_text
from lclm_jax.errors import UserError
from lclm_jax.writing import write_whole

MEMORY_START, MEMORY_END, MEMORY_SLOT = "<|memory_start|>", "<|memory_end|>", "<|memory|>"
MEMORY = (MEMORY_START, MEMORY_END, MEMORY_SLOT)  # in the published order of their ids
TURN_START, TURN_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
PIECE = 32_768  # characters a core tokenises at once: about 20 ms
AHEAD = 2  # batches of pieces under way: cores that are done with one begin the next


class TextError(UserError, ValueError):
    """Text that cannot be compressed or a chat that cannot be rendered."""


@dataclass(frozen=True)
class MemoryTokens:
    """Ids the layout of a record needs: tags and placeholder of the decoder, eos-pooling marker of the encoder."""

    start: int
    end: int
    slot: int
    marker: int = 0


class Tokenizer:
    """A Hugging Face `tokenizer.json` that keeps text and control tokens apart.

    `encode` never yields a control token, whatever the text says; control tokens are reached by name.
    """

    def __init__(self, definition: str, template: str | None = None):
        self.definition = definition
        self.template = template
        fields = json.loads(definition)
        self.control = {token["content"]: token["id"] for token in fields["added_tokens"]}
        self._whole = FastTokenizer.from_str(definition)
        unset = dict.fromkeys(("post_processor", "truncation", "padding"))
        self._text = FastTokenizer.from_str(json.dumps({**fields, **unset, "added_tokens": []}))
        self._can_cut = can_cut(fields)

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Reads `tokenizer.json` and the chat template beside it."""
        directory = Path(directory)
        file, template = directory / "tokenizer.json", directory / "chat_template.jinja"
        if not file.exists():
            raise FileNotFoundError(
                f"{file}: no tokenizer here; expected a directory that holds tokenizer.json"
            )
        settings = directory / "tokenizer_config.json"
        source = (
            json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
            if settings.exists()
            else None
        )
        return cls(
            file.read_text(encoding="utf-8"),
            template.read_text(encoding="utf-8") if template.exists() else source,
        )

    def save(self, directory: str | Path):
        """Writes the files `load` and Hugging Face's AutoTokenizer read."""
        directory = Path(directory)
        write_whole(directory / "tokenizer.json", self.definition)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": TURN_END,
            "pad_token": PAD,
        }
        write_whole(directory / "tokenizer_config.json", json.dumps(settings, indent=2))
        if self.template:
            write_whole(directory / "chat_template.jinja", self.template)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides how text and chats become tokens."""
        return hashlib.sha256(f"{self.definition}\n{self.template}".encode()).hexdigest()[:16]

    @cached_property
    def size(self) -> int:
        return self._whole.get_vocab_size(with_added_tokens=True)

    @cached_property
    def memory(self) -> MemoryTokens:
        start, end, slot = (self.id(name) for name in (MEMORY_START, MEMORY_END, MEMORY_SLOT))
        return MemoryTokens(start, end, slot, self.control.get(PAD, 0))

    def id(self, name: str) -> int:
        """Id of a control token. Raises KeyError naming those there are."""
        if name not in self.control:
            raise KeyError(
                f"the tokenizer has no control token {name!r}; it has {', '.join(self.control)}"
            )
        return self.control[name]

    def encode(self, text: str) -> np.ndarray:
        """Tokens [n] of plain text; a control token spelled out in it is encoded letter by letter."""
        return np.concatenate(list(self.stream(text)))

    def stream(self, text: str, piece: int = PIECE) -> Iterator[np.ndarray]:
        """`encode` in consecutive parts, at least one, made on all cores ahead of their reader.

        A part stands for `piece` characters and those up to the next cut known to change no token
        (see `cuts`); where none is known, all the text is one part.
        """
        if len(text) <= piece or not self._can_cut:
            yield from self.encode_batch([text])
            return
        pieces = cut_text(text, piece)
        batches = iter(lambda: list(islice(pieces, os.cpu_count() or 1)), [])
        under_way: deque[Future[list[np.ndarray]]] = deque()
        with ThreadPoolExecutor(AHEAD, "tokens") as threads:
            for batch in batches:
                under_way.append(threads.submit(self.encode_batch, batch))
                if len(under_way) > AHEAD:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()

    def encode_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """`encode`, and the characters [n, 2] each token stands for: from, up to."""
        encoded = self._text.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.int32), np.array(encoded.offsets, np.int64).reshape(-1, 2)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of many texts on all cores."""
        encoded = self._text.encode_batch_fast(list(texts), add_special_tokens=False)  # no offsets
        return [np.array(one.ids, np.int32) for one in encoded]

    def decode(self, tokens: Sequence[int] | np.ndarray, control: bool = True) -> str:
        """Text of tokens; special control tokens by name or, without `control`, left out."""
        return self._whole.decode([int(token) for token in tokens], skip_special_tokens=not control)


def rows(tokenizer: Tokenizer) -> int:
    """Rows a table needs for every entry."""
    return max(tokenizer.size, *(number + 1 for number in tokenizer.control.values()), 0)


def add_memory(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the memory tokens it lacks after all its entries."""
    fields = json.loads(tokenizer.definition)
    form = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    absent = [name for name in MEMORY if name not in tokenizer.control]
    if not absent:
        return tokenizer
    fields["added_tokens"] += [
        {"id": rows(tokenizer) + i, "content": name, **form} for i, name in enumerate(absent)
    ]
    return Tokenizer(json.dumps(fields, ensure_ascii=False), tokenizer.template)
