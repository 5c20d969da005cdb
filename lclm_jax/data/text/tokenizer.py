"""Encoding of text, and of pieces of text and template, to tokens.

Control tokens come only from templates and tags, never from text.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.decoders import ByteLevel

from lclm_jax.data.text import tokenizer_files, tokenizer_json
from lclm_jax.data.text.control_encoder import ControlEncoder, spells
from lclm_jax.data.text.split_points import can_split, split_text
from lclm_jax.data.text.text_encoder import Encoder
from lclm_jax.data.text.tokenizer_files import DEFAULT_TEMPLATE
from lclm_jax.data.text.tokenizer_json import CONTROL_TOKEN_FLAGS
from lclm_jax.errors import TextError as TextError
from lclm_jax.files.atomic import write_whole

MEMORY_START, MEMORY_END, MEMORY_SLOT = "<|memory_start|>", "<|memory_end|>", "<|memory|>"
MEMORY_TOKENS = (MEMORY_START, MEMORY_END, MEMORY_SLOT)  # in the published order of their ids
TURN_START, TURN_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
PIECE_CHARACTERS = 32_768  # one core encodes this many in about 20 ms
# Texts in which a control token may be spelled, to check that none of them yields it.
SPELLING_FORMS = ("{0}", " {0}", "{0} ", "a{0}b", "a {0} b", "{0}{0}", "\n{0}\n", "{0}.")
MAX_PENDING_BATCHES = 2  # with two, cores that finish their part of a batch begin the next


@dataclass(frozen=True)
class MemoryTokens:
    """Ids that the layout of a record needs.

    `start` and `end` are the tags around a context in the decoder, `slot` is the placeholder of a
    latent, and `marker` is the token that eos pooling appends in the encoder.
    """

    start: int
    end: int
    slot: int
    marker: int = 0


class Tokenizer:
    """A Hugging Face `tokenizer.json` that keeps text and control tokens apart.

    `encode` never yields a control token, whatever the text says; control tokens are reached by
    name. `tokenizer_json` says which added tokens are control tokens.

    `template` is the default chat template, `templates` holds all of them by name. `special` holds
    special tokens by their roles (`bos_token`, `eos_token`, ...), as transformers passes them to a
    template. `generation` holds the ids of a `generation_config.json`: `bos_token_id`,
    `eos_token_id`, `pad_token_id`. `stops` adds ids at which generation ends. `control` holds the
    ids of control tokens by name, `embedding_rows` is the number of embedding rows needed to cover
    every token id.

    Raises TextError for a definition that cannot be used.
    """

    def __init__(
        self,
        definition: str,
        template: str | Mapping[str, str] | None = None,
        special: Mapping[str, str] | None = None,
        stops: Sequence[int] = (),
        generation: Mapping[str, Any] | None = None,
    ):
        fields = tokenizer_json.parse_tokenizer_json(definition)
        self._whole = tokenizer_json.build_library_tokenizer(definition)
        self.embedding_rows = tokenizer_json.count_embedding_rows(fields)
        if tokenizer_json.find_misnumbered(fields, self._whole):
            fields = tokenizer_json.keep_file_ids(fields)
            definition = json.dumps(fields, ensure_ascii=False)
            self._whole = tokenizer_json.build_library_tokenizer(definition)
        self.definition = definition

        if template is None or isinstance(template, str):
            template = {} if template is None else {DEFAULT_TEMPLATE: template}
        self.templates = dict(template)
        self.template = self.templates.get(DEFAULT_TEMPLATE)
        self.generation = tokenizer_files.keep_entries(generation or {}, self.embedding_rows)
        self._more_stops = tuple(stops)

        added = fields["added_tokens"]
        names = {token["content"]: token["id"] for token in added}
        implied = {"eos_token": TURN_END, "pad_token": PAD}
        implied = {role: name for role, name in implied.items() if name in names}
        self.special = implied if special is None else dict(special)

        reserved = {t["content"]: t["id"] for t in added if tokenizer_json.is_control_token(t)}
        unknown = tokenizer_json.find_unknown_token(fields) or ""
        harmless = "unk" in unknown.lower() and names.get(unknown) not in self._ends(names)
        self.control = {name: i for name, i in reserved.items() if name != unknown or not harmless}
        self._reserved, self._unknown = reserved, unknown if harmless else ""

        words = [token for token in added if token["content"] not in reserved]
        dropped = self.control.get(unknown)
        self._text = Encoder.of(fields, reserved, words, dropped)
        self._can_cut = can_split(fields, words)
        self._check()

    def _ends(self, names: Mapping[str, int]) -> set[int]:
        """Return the ids that begin or end texts or turns."""
        roles = [role for role in ("bos_token", "eos_token") if role in self.special]
        special = [self.special[role] for role in roles]
        ends = {names[name] for name in (*special, TURN_END, PAD) if name in names}
        return {*ends, *self._more_stops, *_listed(self.generation.get("eos_token_id"))}

    def _check(self):
        """Raise TextError if plain text that spells a control token is encoded to that token."""
        texts = [form.format(name) for name in self.control for form in SPELLING_FORMS]
        texts += [name.upper() for name in self.control] + [name.lower() for name in self.control]
        tokens = np.concatenate([*self._encodable(texts), np.empty(0, np.int32)])
        ids = set(tokens.tolist())
        if names := [name for name, number in self.control.items() if number in ids]:
            raise TextError(
                f"the tokenizer gives plain text its control token {names[0]!r}; "
                "expected one whose model cannot spell it"
            )

    def _encodable(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield the tokens of the texts that can be encoded.

        Without its unknown token, a model may be unable to encode some characters.
        """
        try:
            yield from self._text.encode_batch(texts)
        except TextError:
            for text in texts:
                with suppress(TextError):
                    yield from self._text.encode_batch([text])

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Read a `tokenizer.json` and the files beside it.

        These hold chat templates, special tokens and generation ids (see `tokenizer_files`). Raises
        FileNotFoundError where there is no `tokenizer.json`, and TextError for a file that cannot
        be used.
        """
        directory = Path(directory)
        file = directory / "tokenizer.json"
        if not file.exists():
            raise FileNotFoundError(
                f"{file}: no tokenizer here; expected a directory with a tokenizer.json"
            )
        definition = tokenizer_files.read_text(file)
        settings = tokenizer_files.read_fields(directory / tokenizer_files.SETTINGS_FILE)
        templates = tokenizer_files.read_templates(directory, settings)
        generation = tokenizer_files.read_generation(directory)
        try:
            fields = tokenizer_json.parse_tokenizer_json(definition)
            special = tokenizer_files.read_special(directory, settings, fields.get("padding"))
            names = [*special.values(), *tokenizer_files.more_special(settings)]
            definition = tokenizer_json.add_special_tokens(definition, fields, names)
            return cls(definition, templates, special, generation=generation)
        except TextError as error:
            raise TextError(f"{file}: {error}") from error

    def save(self, directory: str | Path):
        """Write the files that `load` and AutoTokenizer of transformers read.

        Files of another tokenizer in the directory are replaced or removed.
        """
        directory = Path(directory)
        tokenizer_files.remove_others(directory, self.templates, self.generation)
        write_whole(directory / "tokenizer.json", self.definition)
        tokenizer_files.write_special(directory, self.special)
        tokenizer_files.write_templates(directory, self.templates)
        if self.generation:
            tokenizer_files.write_fields(
                directory / tokenizer_files.GENERATION_FILE, self.generation
            )

    def with_definition(self, definition: str) -> "Tokenizer":
        """Return this tokenizer with another `tokenizer.json`."""
        return Tokenizer(
            definition, self.templates, self.special, self._more_stops, self.generation
        )

    @cached_property
    def fingerprint(self) -> str:
        """The hash of everything that decides how text and chats become tokens."""
        parts = [self.definition, str(self.template)]
        written = "".join(self.templates.values())
        used = {role: name for role, name in self.special.items() if role in written}
        others = {name: text for name, text in self.templates.items() if name != DEFAULT_TEMPLATE}
        parts += [f"{name}={text}" for name, text in sorted([*used.items(), *others.items()])]
        if self._text.ids is not None:
            parts.append("words")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @cached_property
    def vocab_size(self) -> int:
        """The number of entries, added tokens included."""
        return self._whole.get_vocab_size(with_added_tokens=True)

    @cached_property
    def memory(self) -> MemoryTokens:
        """The ids that the layout of a record needs; raises KeyError where a token is absent."""
        start, end, slot = (self.id(name) for name in (MEMORY_START, MEMORY_END, MEMORY_SLOT))
        return MemoryTokens(start, end, slot, self.control.get(PAD, 0))

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Ids at which generation ends.

        These are every eos id of the generation config, the special eos token, `<|im_end|>` and
        `<|endoftext|>`.
        """
        listed = (*_listed(self.generation.get("eos_token_id")), *self._more_stops)
        names = (self.special.get("eos_token"), TURN_END, PAD)
        named = (self._whole.token_to_id(name) for name in names if name)
        ids = dict.fromkeys([*listed, *(number for number in named if number is not None)])
        return tuple(number for number in ids if number < self.embedding_rows)

    @cached_property
    def text_start(self) -> np.ndarray:
        """Ids [n] that transformers puts before every text: `<s>` for Llama, none for Qwen.

        They are read from the post-processor of `tokenizer.json`; `encode` does not add them.
        """
        encoded = self._whole.encode("a", add_special_tokens=True)
        is_text = np.array(encoded.special_tokens_mask) == 0
        return np.array(encoded.ids, np.int32)[: int(is_text.argmax())]

    def id(self, name: str) -> int:
        """Return the id of a control token; raises KeyError with the names of all of them."""
        if name not in self.control:
            raise KeyError(
                f"the tokenizer has no control token {name!r}; it has {', '.join(self.control)}"
            )
        return self.control[name]

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens [n] of plain text.

        A control token that is spelled in the text is encoded as ordinary characters.

        Raises TextError for a text that the tokenizer cannot encode.
        """
        return np.concatenate(list(self.encode_stream(text)))

    def encode_stream(self, text: str, piece: int = PIECE_CHARACTERS) -> Iterator[np.ndarray]:
        """Yield the tokens of `encode` in consecutive parts, at least one.

        Parts are encoded on all cores, ahead of the reader. A part covers at least `piece`
        characters, up to the next safe cut (see `split_points`); for a tokenizer without known
        safe cuts, the whole text is one part.
        """
        if len(text) <= piece or not self._can_cut:
            yield from self.encode_batch([text])
            return
        pieces = split_text(text, piece)
        batches = iter(lambda: list(islice(pieces, os.cpu_count() or 1)), [])
        pending: deque[Future[list[np.ndarray]]] = deque()
        with ThreadPoolExecutor(MAX_PENDING_BATCHES, "tokens") as threads:
            for batch in batches:
                pending.append(threads.submit(self.encode_batch, batch))
                if len(pending) > MAX_PENDING_BATCHES:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()

    def encode_stream_with_offsets(
        self, text: str, piece: int = PIECE_CHARACTERS
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield tokens and characters of `encode_with_offsets` in consecutive parts, at least one.

        Parts are those of `encode_stream`, encoded one by one as they are read.
        """
        start = 0
        for part in split_text(text, piece) if self._can_cut else [text]:
            tokens, offsets = self._text.encode(part)
            yield tokens, offsets + start
            start += len(part)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens [n] of `encode` and the characters [n, 2] (start, stop) of each."""
        return self._text.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the tokens of `encode` for each text, encoded on all cores."""
        return self._text.encode_batch(texts)

    def encode_with_control(
        self, pieces: Sequence[tuple[str, bool]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode pieces as one text in which only marked pieces (True) may spell control tokens.

        Returns tokens [n] and the characters [n, 2] (start, stop) of the joined text that each
        stands for. A control token that unmarked pieces spell or complete is text. Without such
        spellings, the result is that of transformers for the joined text.
        """
        text = "".join(piece for piece, _ in pieces)
        marks = np.array([mark for _, mark in pieces], bool)
        marked = np.repeat(marks, [len(piece) for piece, _ in pieces])  # [characters]
        tokens, offsets = Encoder(self._whole).encode(text)
        if spells(self._reserved, self._unknown, text, marked, tokens, offsets):
            return self._marked.encode(text, marked)
        return tokens, offsets

    @cached_property
    def _marked(self) -> ControlEncoder:
        dropped = self._text.dropped
        return ControlEncoder(self._whole, self.definition, self._reserved, dropped)

    def decode(self, tokens: Sequence[int] | np.ndarray, control: bool = True) -> str:
        """Return the text of tokens.

        Special control tokens are written by name or, without `control`, left out.
        """
        texts = []
        for name, run in groupby(map(int, tokens), self._misread.get):
            ids = list(run)
            text = self._whole.decode(ids, skip_special_tokens=not control)
            texts.append(text if name is None or not text else name * len(ids))
        return "".join(texts)

    @cached_property
    def _misread(self) -> dict[int, str]:
        """Added tokens, by id, that a byte-level decoder misreads as bytes, such as "Zoë"."""
        if not isinstance(self._whole.decoder, ByteLevel):
            return {}
        names = {i: token.content for i, token in self._whole.get_added_tokens_decoder().items()}
        decode = partial(self._whole.decode, skip_special_tokens=False)
        return {i: name for i, name in names.items() if not name.isascii() and decode([i]) != name}


def _listed(ids: int | Sequence[int] | None) -> Sequence[int]:
    return () if ids is None else [ids] if isinstance(ids, int) else ids


def add_memory_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with absent memory tokens added after its last entry."""
    absent = [name for name in MEMORY_TOKENS if name not in tokenizer.control]
    if not absent:
        return tokenizer
    fields = json.loads(tokenizer.definition)
    fields["added_tokens"] += [
        {"id": tokenizer.embedding_rows + i, "content": name, **CONTROL_TOKEN_FLAGS}
        for i, name in enumerate(absent)
    ]
    return tokenizer.with_definition(json.dumps(fields, ensure_ascii=False))


def count_parts(text: str) -> int:
    """Return about how many parts `Tokenizer.encode_stream` yields for a text."""
    return -(-len(text) // PIECE_CHARACTERS)
