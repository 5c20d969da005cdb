"""The public face of a trained model: load a checkpoint, compress text, generate from latents and text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lclm_jax.checkpoint import load_params, read_model_files
from lclm_jax.config import ModelConfig
from lclm_jax.data.batch import Windows, empty_windows
from lclm_jax.data.chat import Message, parse_memory, render_chat
from lclm_jax.data.packing import seat_piece
from lclm_jax.data.spans import Context, Given, Plain, Span, lay_out, resolve_ratio, split_windows
from lclm_jax.data.tokens import TURN_END, TextError, Tokenizer
from lclm_jax.generate import Prompt, Sampling, generate_tokens
from lclm_jax.model.lclm import LCLM, apply, cast
from lclm_jax.model.masks import Places
from lclm_jax.sharding import make_mesh, one_device, serving_mesh, splits
from lclm_jax.state import abstract_params
from lclm_jax.typing import Array, Float, Params

WINDOWS_AT_ONCE = 16  # encoder windows in one pass: memory stays the same however long the text is
GREEDY = Sampling()


@dataclass(frozen=True)
class Latents:
    """A compressed text: vectors [M, D] for the decoder, and how many tokens they stand for."""

    vectors: np.ndarray
    tokens: int

    def __len__(self) -> int:
        return len(self.vectors)


class LanguageModel:
    """An LCLM with its tokenizer. Parameters are an ordinary nested dict and may be replaced; they lie on `mesh`."""

    def __init__(self, config: ModelConfig, params: Params, tokenizer: Tokenizer, mesh: Mesh | None = None):
        self.config, self.tokenizer, self.mesh = config, tokenizer, mesh or one_device()
        self.params = cast(params, config.dtype)

    def compress(self, text: str, ratio: int | None = None) -> Latents:
        """Latents of a text, at the model's own ratio or another it was trained for; use them in any prompt, side by side.

        Raises TextError for an empty text and ConfigError for a ratio the model was not trained for.
        """
        if not text:
            raise TextError("expected text to compress, got an empty string")
        return self.compress_tokens(self.tokenizer.encode(text), ratio)

    def compress_tokens(self, tokens: np.ndarray, ratio: int | None = None) -> Latents:
        """`compress` for text that is tokens already; no tokens give one latent (checkpoint format, "Empty memory")."""
        pooled = self._pool_context(Context(np.asarray(tokens), ratio))
        # Attention in the adapter joins the latents of all windows; without it, they are projected as they come.
        parts = [np.concatenate(pooled)] if self.config.adapter.attention else pooled
        return Latents(np.concatenate([self._project_context(part) for part in parts]), len(tokens))

    def _pool_context(self, context: Context) -> list[np.ndarray]:
        """Pooled encoder states [n, X] of a context, as the adapter gets them, a few windows at a time."""
        pieces = split_windows(context, self.config, self.tokenizer.memory.marker)
        at_once = self._divided(WINDOWS_AT_ONCE)
        count = at_once if len(pieces) > at_once else self._divided(_bucket(len(pieces), 1))
        room = self.config.compression.window // resolve_ratio(context.ratio, self.config)
        pooled = []
        for start in range(0, len(pieces), at_once):
            some = pieces[start : start + at_once]
            windows = empty_windows(1, count, self.config.window_length, room)
            for i, piece in enumerate(some):
                seat_piece(windows, (0, i, 0, 0), piece, segment=1, context=1)
            with jax.set_mesh(self.mesh):
                vectors = np.asarray(pool_windows(self.params, windows, self.config)[0]).reshape(count, room, -1)
            pooled.append(np.concatenate([vectors[i, : piece.latents] for i, piece in enumerate(some)]))
        return pooled

    def _project_context(self, pooled: np.ndarray) -> np.ndarray:
        """Latents [n, D] of pooled vectors [n, X] that belong to one context."""
        n, padded = len(pooled), _bucket(len(pooled), 8)
        columns = np.arange(padded, dtype=np.int32)[None]
        places = Places((columns < n).astype(np.int32), columns)
        vectors = np.pad(pooled, ((0, padded - n), (0, 0)))[None]
        with jax.set_mesh(self.mesh):
            return np.asarray(project_pooled(self.params, vectors, places, self.config)[0, :n])

    def _divided(self, windows: int) -> int:
        """So many windows or a few more: as many for each part of the mesh."""
        with jax.set_mesh(self.mesh):
            return -(-windows // splits("windows")) * splits("windows")

    def generate(self, parts: Sequence[str | Latents], max_tokens: int = 64, sampling: Sampling = GREEDY, seed: int = 0) -> str:
        """The assistant's answer to one user turn made of text and latents.

        >>> model.generate([model.compress(report), "What does it conclude?"], max_tokens=64)
        """
        return self.chat([{"role": "user", "content": list(parts)}], max_tokens, sampling, seed)

    def chat(self, messages: Sequence[Message], max_tokens: int = 64, sampling: Sampling = GREEDY, seed: int = 0) -> str:
        """The assistant's next turn. A content is text, in which memory tags mark what to compress, or a list of parts.

        Put text that comes from elsewhere into a list: there, tags and control tokens are only characters.
        """
        latents: list[Latents] = []
        prepared = []
        for message in messages:
            content = message["content"]
            parts = parse_memory(content, self.tokenizer) if isinstance(content, str) else content
            prepared.append({"role": message["role"], "content": self._hold(parts, latents)})
        record = render_chat(prepared, self.tokenizer, generate=True)
        return self._answer(self._prompt([record], [latents]), max_tokens, sampling, seed)[0]

    def complete(
        self, parts: str | Latents | Sequence[str | Latents], max_tokens: int = 64, sampling: Sampling = GREEDY, seed: int = 0
    ) -> str:
        """What follows text and latents as such, without a chat around them."""
        latents: list[Latents] = []
        listed = [parts] if isinstance(parts, (str, Latents)) else parts
        record = [Plain(self.tokenizer.encode(part)) if isinstance(part, str) else part for part in self._hold(listed, latents)]
        return self._answer(self._prompt([record], [latents]), max_tokens, sampling, seed)[0]

    def complete_records(self, records: Sequence[Sequence[Span]], max_tokens: int) -> list[str]:
        """Greedy continuations of a batch of records."""
        return self._answer(self.read(records), max_tokens, GREEDY, 0)

    def read(self, records: Sequence[Sequence[Span]]) -> Prompt:
        """A batch of records as `generate_tokens` reads them, their contexts compressed."""
        all_latents: list[list[Latents]] = [[] for _ in records]
        held = [self._hold(record, latents) for record, latents in zip(records, all_latents, strict=True)]
        return self._prompt(held, all_latents)

    def _hold(self, parts: Iterable, latents: list[Latents]) -> list:
        """Compresses contexts, moves all latents into `latents`, and leaves slots in their place."""
        held: list = []
        for part in parts:
            if isinstance(part, Context):
                part = self.compress_tokens(part.tokens, part.ratio)
            if isinstance(part, Latents):
                if part.vectors.shape[1] != self.config.decoder.width:
                    raise ValueError(f"latents of width {self.config.decoder.width} fit this model, got {part.vectors.shape}")
                latents.append(part)
                part = Given(len(part))
            held.append(part)
        return held

    def _answer(self, prompt: Prompt, steps: int, sampling: Sampling, seed: int) -> list[str]:
        longest, most = int(prompt.lengths.max()), self.config.decoder.max_positions
        if longest + steps > most:
            raise ValueError(
                f"prompt and answer take up to {most} positions, got {longest} + {steps}; compress more of the prompt"
            )
        stop = (self.tokenizer.id(TURN_END),)
        rng = jax.random.key(seed)
        with jax.set_mesh(self.mesh):
            tokens, counts = generate_tokens(self.params, prompt, self.config, steps, stop, rng, sampling)
        return [
            self.tokenizer.decode(row[:count], control=False)
            for row, count in zip(np.asarray(tokens), np.asarray(counts), strict=True)
        ]

    def _prompt(self, records: Sequence[Sequence[Span]], latents: Sequence[Sequence[Latents]]) -> Prompt:
        examples = [lay_out(record, self.config, self.tokenizer.memory) for record in records]
        if not all(len(example) for example in examples):
            raise TextError("expected a prompt, got an empty one")
        length = _bucket(max(map(len, examples)), max(32, self.mesh.shape["context"]))
        room = _bucket(max(sum(map(len, some)) for some in latents), 8)
        tokens = np.zeros((len(examples), length), np.int32)
        slots = np.full((len(examples), length), -1, np.int32)
        vectors = np.zeros((len(examples), room, self.config.decoder.width), self.params["decoder"]["table"].dtype)
        for i, (example, some) in enumerate(zip(examples, latents, strict=True)):
            tokens[i, : len(example)], slots[i, : len(example)] = example.tokens, example.slots
            if some:
                joined = np.concatenate([one.vectors for one in some])
                vectors[i, : len(joined)] = joined
        return Prompt(tokens, slots, vectors, np.array([len(example) for example in examples], np.int32))


def load(directory: str | Path, step: int | None = None, devices: Sequence[Any] | None = None) -> LanguageModel:
    """Reads a checkpoint: a training run, or what `convert.from_hf` wrote. The newest step unless one is named.

    Onto one device, or split over several: `lclm_jax.load("runs/tiny", devices=jax.devices())`.
    """
    config, tokenizer = read_model_files(directory)
    mesh = make_mesh(serving_mesh(config, len(devices)), devices) if devices else one_device()
    abstract = abstract_params(config, mesh, config.dtype)  # no float32 copy on the way
    return LanguageModel(config, load_params(directory, abstract, step), tokenizer, mesh)


@partial(jax.jit, static_argnames=("config",))
def pool_windows(params: Params, windows: Windows, config: ModelConfig) -> Float[Array, "B M X"]:
    return apply(config, params, windows, method=lambda model, windows: model.pool(model.encode(windows), windows))


@partial(jax.jit, static_argnames=("config",))
def project_pooled(params: Params, pooled: Float[Array, "B M X"], places: Places, config: ModelConfig) -> Float[Array, "B M D"]:
    return apply(config, params, pooled, places, method=LCLM.project)


def _bucket(length: int, least: int) -> int:
    """A length at most a quarter longer, or the next multiple of `least`, one of four between powers of two: few shapes to
    compile for, little padding to compute.

    >>> least 32: 33 -> 64, 300 -> 320, 576 -> 640
    """
    unit = max(least, 1 << max(0, (length - 1).bit_length() - 3))
    return max(1, -(-length // unit)) * unit
