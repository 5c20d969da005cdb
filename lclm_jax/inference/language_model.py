"""The public face of a trained model: load a checkpoint, compress text, generate from latents and
text.

Nothing waits for the device until an answer is read: windows are dispatched as their tokens come,
latents stay on the device, and the prompt's chunks follow.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lclm_jax.batch import Places, Windows, empty_windows
from lclm_jax.checkpoint.model_files import read_model_files
from lclm_jax.checkpoint.steps import load_params
from lclm_jax.compilation import enable_cache, serving_program
from lclm_jax.config import ModelConfig
from lclm_jax.config.settings import Count, expand_home, parse
from lclm_jax.data.chat import Message, build_chat_record, find_stop_ids
from lclm_jax.data.loading import pack_pieces, write_piece
from lclm_jax.data.loading.packing import PieceOffset
from lclm_jax.data.records import Context, ContextPiece, Given, Plain, Span, cut_windows, lay_out
from lclm_jax.data.text.tokenizer import TextError, Tokenizer
from lclm_jax.distributed.sharding import (
    constrain,
    make_mesh,
    one_device,
    platform,
    serving_mesh,
    splits,
)
from lclm_jax.inference.conversation import Conversation, split_content, split_parts
from lclm_jax.inference.generation import ROOM, continue_tokens, prefill
from lclm_jax.inference.latents import BlockSlice, Latents, LatentsError
from lclm_jax.inference.prompts import Prompt
from lclm_jax.inference.sampling import GREEDY, Sampling
from lclm_jax.model.attention import Cache
from lclm_jax.model.cpu import split_layers
from lclm_jax.model.lclm import LCLM, apply
from lclm_jax.model.params import abstract_params
from lclm_jax.typing import Array, Float, Params

WINDOWS_AT_ONCE = 16  # encoder windows in one pass: memory stays the same however long the text is
BATCHES = (WINDOWS_AT_ONCE, 4, 1)  # sizes of a pass; the last windows of a text take small ones
MAX_UNSTACKED_BYTES = 2**30  # bytes of layers up to which a CPU keeps them one by one
Seated = tuple[
    ContextPiece, int, int
]  # a piece, and its first position and first latent in a window


class LanguageModel:
    """An LCLM with its tokenizer, on the devices of `mesh`.

    Parameters may be replaced: `model.params = params`. `weights` is the same tree in serving
    layout: on a CPU the layers of a small decoder lie one by one (`model.cpu.split_layers`).
    """

    def __init__(
        self, config: ModelConfig, params: Params, tokenizer: Tokenizer, mesh: Mesh | None = None
    ):
        self.config, self.tokenizer, self.mesh = config, tokenizer, mesh or one_device()
        self.params = params

    @property
    def params(self) -> Params:
        """The parameters as a nested dict, layers stacked; a copy where they lie one by one."""
        decoder = self.weights["decoder"]
        if not isinstance(decoder["layers"], tuple):
            return self.weights
        stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *decoder["layers"])
        return {**self.weights, "decoder": {**decoder, "layers": stacked}}

    @params.setter
    def params(self, params: Params):
        with jax.set_mesh(self.mesh):
            self.weights = serving_params(params, self.config)

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Ids of the tokens at which generation ends (`data.stops`)."""
        return find_stop_ids(self.tokenizer)

    # --- compressing ---

    def compress(self, text: str, ratio: int | None = None) -> Latents:
        """Latents of a text, at the model's own ratio or another it was trained for.

        Use them in any prompt, side by side. Raises TextError for an empty text and ConfigError
        for a ratio the model was not trained for.
        """
        if not text:
            raise TextError("expected text to compress, got an empty string")
        return self._compress(self.tokenizer.encode_stream(text), ratio)

    def compress_tokens(self, tokens: np.ndarray, ratio: int | None = None) -> Latents:
        """`compress` for text that is tokens already; no tokens give one latent (checkpoint format,
        "Empty memory")."""
        return self._compress([np.asarray(tokens)], ratio)

    def compress_all(self, contexts: Sequence[Context]) -> list[Latents]:
        """Latents of several contexts, the short ones of which share windows."""
        if self.config.adapter.attention or len(contexts) == 1:
            return [self.compress_tokens(one.tokens, one.ratio) for one in contexts]
        cut = [list(self._cut([np.asarray(one.tokens)], one.ratio)) for one in contexts]
        pieces = [piece for some in cut for piece in some]
        seats = pack_pieces([(len(piece.tokens), piece.latents) for piece in pieces], self.config)
        windows: list[list[Seated]] = [[] for _ in range(1 + max(seats, default=(-1,))[0])]
        for piece, (window, position, latent) in zip(pieces, seats, strict=True):
            windows[window].append((piece, position, latent))
        blocks = self._encode(windows)
        slices = (
            BlockSlice(blocks[window], latent, piece.latents)
            for piece, (window, _, latent) in zip(pieces, seats, strict=True)
        )
        return [
            Latents([next(slices) for _ in some], len(one.tokens))
            for one, some in zip(contexts, cut, strict=True)
        ]

    def _compress(self, parts: Iterable[np.ndarray], ratio: int | None) -> Latents:
        """Latents of tokens that come in parts; each window has a block of its own."""
        tokens, latents = [], []

        def counted() -> Iterator[np.ndarray]:
            for part in parts:
                tokens.append(len(part))
                yield part

        def windows() -> Iterator[list[Seated]]:
            for piece in self._cut(counted(), ratio):
                latents.append(piece.latents)
                yield [(piece, 0, 0)]

        blocks = self._encode(windows())
        if self.config.adapter.attention:
            blocks = self._project(blocks, latents)
        slices = [BlockSlice(block, 0, count) for block, count in zip(blocks, latents, strict=True)]
        return Latents(slices, sum(tokens))

    def _cut(self, parts: Iterable[np.ndarray], ratio: int | None) -> Iterator[ContextPiece]:
        """The windows of a context whose tokens come in parts."""
        return cut_windows(parts, self.config, ratio, self.tokenizer.memory.marker)

    def _encode(self, windows: Iterable[list[Seated]]) -> list[Array]:
        """A block [P D] of every window; passes are dispatched as windows come."""
        blocks: list[Array] = []
        with jax.set_mesh(self.mesh):
            parts = splits("windows")
            sizes = sorted({-(-size // parts) * parts for size in BATCHES}, reverse=True)
            waiting: list[list[Seated]] = []
            for window in windows:
                waiting.append(window)
                if len(waiting) == sizes[0]:
                    blocks += self._encode_pass(waiting, sizes[0])
                    waiting = []
            while waiting:
                size = next((size for size in sizes if size <= len(waiting)), sizes[-1])
                blocks += self._encode_pass(waiting[:size], size)
                waiting = waiting[size:]
        return blocks

    def _encode_pass(self, windows: Sequence[list[Seated]], size: int) -> Sequence[Array]:
        """One pass of the encoder of batch size `size`; windows that are not given are padding."""
        room = self.config.compression.latents_per_window
        arrays = empty_windows(1, size, self.config.window_length, room)
        for number, pieces in enumerate(windows):
            for segment, (piece, position, latent) in enumerate(pieces, start=1):
                write_piece(
                    arrays, 0, PieceOffset(number, position, latent), piece, segment, segment
                )
        return encode_windows(self.weights, arrays, self.config)[: len(windows)]

    def _project(self, blocks: list[Array], counts: list[int]) -> list[Array]:
        """Blocks of latents from blocks of pooled states of one context, by an adapter whose
        attention joins them; each block has so many."""
        size, used = len(blocks[0]), len(blocks)
        padded = 1 << (used - 1).bit_length()
        inside = np.arange(size) < np.array([*counts, *[0] * (padded - used)])[:, None]
        positions = np.where(inside, np.cumsum(inside).reshape(inside.shape) - 1, 0)
        places = Places(*(x.reshape(1, -1).astype(np.int32) for x in (inside, positions)))
        blocks = [*blocks, *[blocks[0]] * (padded - used)]
        with jax.set_mesh(self.mesh):
            return list(project_blocks(self.weights, tuple(blocks), places, self.config)[:used])

    # --- generating ---

    def generate(
        self,
        parts: str | Latents | Sequence[str | Latents],
        max_tokens: int = 64,
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> str:
        """The assistant's answer to one user turn made of text and latents.

        >>> model.generate([model.compress(report), "What does it conclude?"], max_tokens=64)
        """
        messages = [{"role": "user", "content": split_parts(parts)}]
        return self.chat(messages, max_tokens, sampling, seed)

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int = 64,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        tools: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> str:
        """The assistant's next turn. A content is text, in which memory tags mark what to compress,
        or a list of parts.

        Put text that comes from elsewhere into a list: there, tags are only characters. `tools` are
        JSON signatures, `settings` what else the chat template reads, as `enable_thinking`.
        """
        prompt = self.read([self.render(messages, tools, settings)])
        return self._answer(prompt, max_tokens, sampling, seed)[0]

    def conversation(
        self, tools: Sequence[Any] = (), settings: Mapping[str, Any] | None = None
    ) -> Conversation:
        """A chat whose turns are read once: every question reads only what is new."""
        return Conversation(self, tools, settings)

    def complete(
        self,
        parts: str | Latents | Sequence[str | Latents],
        max_tokens: int = 64,
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> str:
        """Continues text and latents as they are, without a chat around them."""
        record = []
        for part in split_parts(parts):
            if not isinstance(part, (str, Latents, Context, Plain)):
                raise TextError(f"expected text or latents to continue, got {type(part).__name__}")
            record.append(Plain(self.tokenizer.encode(part)) if isinstance(part, str) else part)
        return self._answer(self.read([record]), max_tokens, sampling, seed)[0]

    def complete_records(self, records: Sequence[Sequence[Span]], max_tokens: int) -> list[str]:
        """Greedy continuations of a batch of records."""
        if not records:
            return []
        return self._answer(self.read(records), max_tokens, GREEDY, 0)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> list:
        """The record of a chat up to the assistant's next turn, with latents in it as they are."""
        latents: dict[int, Latents] = {}  # by the identity of what stands for them

        def give(part: Any) -> Any:
            if not isinstance(part, Latents):
                return part
            given = Given(len(part))
            latents[id(given)] = part
            kept.append(given)
            return given

        kept: list[Given] = []  # so that no identity is used twice
        prepared = []
        for message in messages:
            parts = split_content(message.get("content"), self.tokenizer)
            if isinstance(parts, list):
                message = {**message, "content": [give(part) for part in parts]}
            prepared.append(message)
        extra = {"tools": tools} if tools else {}
        record = build_chat_record(
            prepared, self.tokenizer, generate=True, **extra, **(settings or {})
        )
        return [latents.get(id(span), span) for span in record]

    def read(self, records: Sequence[Sequence[Span | Latents]]) -> Prompt:
        """A batch of records as `generate.prefill` takes them: contexts are compressed, and latents
        fill their slots."""
        if not records:
            raise TextError("expected at least one prompt, got none")
        contexts = [part for record in records for part in record if isinstance(part, Context)]
        compressed = iter(self.compress_all(contexts))
        filled = [
            [next(compressed) if isinstance(part, Context) else part for part in record]
            for record in records
        ]
        rows = [self._lay_out(record) for record in filled]
        blocks = {id(one.block): one.block for _, slices in rows for one in slices}
        numbers = {key: number for number, key in enumerate(blocks)}
        size = self.config.compression.latents_per_window
        lengths = np.array([len(tokens) for (tokens, _), _ in rows], np.int32)
        tokens = np.zeros((len(rows), lengths.max()), np.int32)
        slots = np.full_like(tokens, -1)
        for i, ((own, own_slots), slices) in enumerate(rows):
            where = [
                numbers[id(one.block)] * size + one.first + np.arange(one.count) for one in slices
            ]
            table = np.concatenate([*where, [-1]]).astype(np.int32)  # -1 picks the -1 at its end
            tokens[i, : len(own)], slots[i, : len(own)] = own, table[own_slots]
        return Prompt(tokens, slots, lengths, list(blocks.values()))

    def _lay_out(
        self, record: Sequence[Any]
    ) -> tuple[tuple[np.ndarray, np.ndarray], list[BlockSlice]]:
        """Tokens and slots of a record of text and latents, and the slices the slots number."""
        width, size = self.config.decoder.width, self.config.compression.latents_per_window
        slices: list[BlockSlice] = []
        spans = []
        for part in record:
            if isinstance(part, Latents):
                if part.width != width:
                    shape = (len(part), part.width)
                    raise LatentsError(f"latents of width {width} fit this model, got {shape}")
                slices += part.slices(size, self.config.dtype)
                part = Given(len(part))
            spans.append(part)
        example = lay_out(spans, self.config, self.tokenizer.memory)
        if not len(example):
            raise TextError("expected a prompt, got an empty one")
        return (example.tokens, example.slots), slices

    def check_length(self, length: int, max_tokens: int):
        """Raises UserError where a prompt and its answer take more positions than there are."""
        steps = parse(Count, max_tokens, "max_tokens")
        most = self.config.decoder.max_positions
        if length + steps > most:
            raise TextError(
                f"prompt and answer take up to {most} positions, got {length} + {steps}; "
                "compress more of the prompt"
            )

    def _answer(self, prompt: Prompt, steps: int, sampling: Sampling, seed: int) -> list[str]:
        self.check_length(int(prompt.lengths.max()), steps)
        with jax.set_mesh(self.mesh):
            logits, cache = prefill(self.weights, prompt, self.config, max(steps, ROOM))
            return self.write(logits, prompt.lengths, cache, steps, sampling, seed)[0]

    def write(self, logits, lengths, cache: Cache, steps: int, sampling: Sampling, seed: int):
        """The answers after a prefill, their tokens [B, steps], and the cache."""
        steps, seed = parse(Count, steps, "max_tokens"), parse(int, seed, "seed")
        tokens, counts, cache = continue_tokens(
            self.weights, logits, lengths, cache, self.config, steps, self.stops, seed, sampling
        )
        texts = [
            self.tokenizer.decode(row[:count], control=False)
            for row, count in zip(tokens, counts, strict=True)
        ]
        return texts, tokens, cache


def load(
    directory: str | Path, step: int | None = None, devices: Sequence[Any] | None = None
) -> LanguageModel:
    """Reads a checkpoint: a training run, or what `convert.from_hf` wrote. The newest step unless
    one is named.

    Onto one device, or split over several: `lclm_jax.load("runs/tiny", devices=jax.devices())`.
    Compiled programs are kept on disk (`compilation.enable_cache`). A process that has loaded a
    model must not fork, as `multiprocessing` does by default on Linux before Python 3.14: JAX's
    threads do not survive in the child, which hangs. Use `multiprocessing.get_context("spawn")`.
    """
    directory = expand_home(str(directory))
    enable_cache()
    config, tokenizer = read_model_files(directory)
    mesh = make_mesh(serving_mesh(config, len(devices)), devices) if devices else one_device()
    abstract = abstract_params(config, mesh, config.dtype)  # no float32 copy on the way
    return LanguageModel(config, load_params(directory, abstract, step), tokenizer, mesh)


def serving_params(params: Params, config: ModelConfig) -> Params:
    """Parameters in the dtype the model computes in, the decoder's layers as the devices in scope
    read them best."""
    params = jax.tree.map(
        lambda x: x if x.dtype == config.dtype else x.astype(config.dtype), params
    )
    layers = params["decoder"]["layers"]
    size = sum(x.nbytes for x in jax.tree.leaves(layers))
    apart = platform() == "cpu" and size <= MAX_UNSTACKED_BYTES
    if apart and not isinstance(layers, tuple):
        decoder = {**params["decoder"], "layers": split_layers(layers, config.decoder.layers)}
        params = {**params, "decoder": decoder}
    return params


@serving_program(static_argnames=("config",))
def encode_windows(
    params: Params, windows: Windows, config: ModelConfig
) -> tuple[Float[Array, "P D"], ...]:
    """A block of latents of every window of one row [1 C W]; with attention in the adapter, of pooled
    states that `project_blocks` goes on with."""

    def read(model: LCLM, windows: Windows):
        return model.pool(model.encode(windows), windows)

    method = read if config.adapter.attention else LCLM.compress
    vectors = apply(config, params, windows, method=method)[0]
    return _as_blocks(vectors, windows.tokens.shape[1])


@serving_program(static_argnames=("config",))
def project_blocks(
    params: Params, blocks: tuple[Float[Array, "P I"], ...], places: Places, config: ModelConfig
) -> tuple[Float[Array, "P D"], ...]:
    """Blocks of latents from blocks of pooled states; `places` [1 M] says which are of a context."""
    vectors = apply(config, params, jnp.concatenate(blocks)[None], places, method=LCLM.project)[0]
    return _as_blocks(vectors, len(blocks))


def _as_blocks(vectors: Float[Array, "M D"], count: int) -> tuple[Float[Array, "P D"], ...]:
    """Splits vectors into so many blocks, each replicated on every device."""
    return tuple(constrain(block, None, None) for block in jnp.split(vectors, count))
