"""A trained model: load a checkpoint, compress text, generate from latents and text.

Nothing waits for the device until an answer is read: windows are dispatched while the text is
still being tokenized, latents stay on the device, and the prompt's chunks are dispatched after.
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
from lclm_jax.data.records import (
    Context,
    ContextPiece,
    Given,
    Plain,
    Span,
    Tokens,
    cut_windows,
    lay_out,
)
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

WINDOWS_AT_ONCE = 16  # windows per encoder pass; bounds device memory for texts of any length
BATCHES = (WINDOWS_AT_ONCE, 4, 1)  # windows per pass; the last windows of a text use small passes
MAX_UNSTACKED_BYTES = 2**30  # decoder layers up to this size are stored unstacked on a CPU

# A piece with its first position and latent in a window.
PlacedPiece = tuple[ContextPiece, int, int]


class LanguageModel:
    """An LCLM with its tokenizer, on the devices of `mesh` (by default, one device).

    Assign `model.params = params` to replace the parameters. `weights` is the same tree in serving
    layout: on a CPU, the layers of a small decoder are unstacked (`model.cpu.split_layers`).
    """

    def __init__(
        self, config: ModelConfig, params: Params, tokenizer: Tokenizer, mesh: Mesh | None = None
    ):
        self.config, self.tokenizer, self.mesh = config, tokenizer, mesh or one_device()
        self.params = params

    @property
    def params(self) -> Params:
        """Parameters as a nested dict with stacked layers; a copy if `weights` is unstacked."""
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
        """Ids of the tokens at which generation ends (`data.chat.find_stop_ids`)."""
        return find_stop_ids(self.tokenizer)

    # --- compressing ---

    def compress(self, text: str, ratio: int | None = None) -> Latents:
        """Compress a text into latents, at the model's default ratio or another one.

        The latents can be used in any prompt, beside others. `ratio` is in tokens per latent.

        Raises TextError for an empty text, and ConfigError for a ratio that the model was not
        trained for.
        """
        if not text:
            raise TextError("expected text to compress, got an empty string")
        return self._compress(self.tokenizer.encode_stream(text), ratio)

    def compress_tokens(self, tokens: Tokens, ratio: int | None = None) -> Latents:
        """Compress tokens [T] into latents; see `compress`.

        An empty context becomes one latent (see `data.records.split_windows`).
        """
        return self._compress([np.asarray(tokens)], ratio)

    def compress_all(self, contexts: Sequence[Context]) -> list[Latents]:
        """Compress several contexts; short ones share windows.

        With attention in the adapter, which joins the windows of one context, they are compressed
        one by one.
        """
        if self.config.adapter.attention or len(contexts) == 1:
            return [self.compress_tokens(context.tokens, context.ratio) for context in contexts]

        cuts = [
            list(self._cut([np.asarray(context.tokens)], context.ratio)) for context in contexts
        ]
        pieces = [piece for cut in cuts for piece in cut]
        sizes = [(len(piece.tokens), piece.latents) for piece in pieces]
        offsets = pack_pieces(sizes, self.config)
        last_window = max(offsets, default=(-1,))[0]
        windows: list[list[PlacedPiece]] = [[] for _ in range(1 + last_window)]
        for piece, (window, position, latent) in zip(pieces, offsets, strict=True):
            windows[window].append((piece, position, latent))

        blocks = self._encode(windows)
        slices = (
            BlockSlice(blocks[window], latent, piece.latents)
            for piece, (window, _, latent) in zip(pieces, offsets, strict=True)
        )
        return [
            Latents([next(slices) for _ in cut], len(context.tokens))
            for context, cut in zip(contexts, cuts, strict=True)
        ]

    def _compress(self, parts: Iterable[np.ndarray], ratio: int | None) -> Latents:
        """Compress the tokens of an iterator of parts; each window becomes a block."""
        token_counts, latent_counts = [], []

        def counted() -> Iterator[np.ndarray]:
            for part in parts:
                token_counts.append(len(part))
                yield part

        def windows() -> Iterator[list[PlacedPiece]]:
            for piece in self._cut(counted(), ratio):
                latent_counts.append(piece.latents)
                yield [(piece, 0, 0)]

        blocks = self._encode(windows())
        if self.config.adapter.attention:
            blocks = self._project(blocks, latent_counts)
        slices = [
            BlockSlice(block, 0, count) for block, count in zip(blocks, latent_counts, strict=True)
        ]
        return Latents(slices, sum(token_counts))

    def _cut(self, parts: Iterable[np.ndarray], ratio: int | None) -> Iterator[ContextPiece]:
        """Cut a context, given as parts of its tokens, into windows."""
        return cut_windows(parts, self.config, ratio, self.tokenizer.memory.marker)

    def _encode(self, windows: Iterable[list[PlacedPiece]]) -> list[Array]:
        """Encode each window to a block [P D]; passes are dispatched as windows arrive."""
        blocks: list[Array] = []
        with jax.set_mesh(self.mesh):
            parts = splits("windows")
            # A pass has a multiple of the parts into which the mesh splits windows.
            sizes = sorted({-(-size // parts) * parts for size in BATCHES}, reverse=True)
            waiting: list[list[PlacedPiece]] = []
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

    def _encode_pass(self, windows: Sequence[list[PlacedPiece]], size: int) -> Sequence[Array]:
        """Run one encoder pass over at most `size` windows, padded to `size`."""
        latents = self.config.compression.latents_per_window
        arrays = empty_windows(1, size, self.config.window_length, latents)
        for window, pieces in enumerate(windows):
            for segment, (piece, position, latent) in enumerate(pieces, start=1):
                offset = PieceOffset(window, position, latent)
                write_piece(arrays, 0, offset, piece, segment, segment)
        return encode_windows(self.weights, arrays, self.config)[: len(windows)]

    def _project(self, blocks: list[Array], counts: list[int]) -> list[Array]:
        """Project the pooled states of one context with an adapter that attends across windows.

        `counts` are the latents in use per block. The number of blocks is padded to a power of
        two, to bound the number of compiled programs.
        """
        size, used = len(blocks[0]), len(blocks)
        padding = (1 << (used - 1).bit_length()) - used
        inside = np.arange(size) < np.array([*counts, *[0] * padding])[:, None]
        positions = np.where(inside, np.cumsum(inside).reshape(inside.shape) - 1, 0)
        places = Places(*(x.reshape(1, -1).astype(np.int32) for x in (inside, positions)))
        blocks = [*blocks, *[blocks[0]] * padding]
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
        """Return the assistant's answer to one user turn made of text and latents.

            model.generate([model.compress(report), "What does it conclude?"], max_tokens=64)

        Raises the errors of `chat`.
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
        """Return the assistant's next turn, of up to `max_tokens` tokens.

        The content of a message is a string, in which memory tags mark the text to compress, or a
        list of parts. Put untrusted text into a list: in its strings, tags are plain characters.
        `tools` are JSON signatures; `settings` are further variables of the chat template, such as
        `enable_thinking`.

        Raises TextError for a malformed message or a prompt that is empty or too long, ConfigError
        for wrong `max_tokens` or `seed`, LatentsError for latents of another width, and
        NotFiniteError if logits are NaN or infinite.
        """
        prompt = self.read([self.render(messages, tools, settings)])
        return self._answer(prompt, max_tokens, sampling, seed)[0]

    def conversation(
        self, tools: Sequence[Any] = (), settings: Mapping[str, Any] | None = None
    ) -> Conversation:
        """Start a chat that keeps its KV cache, so each turn reads only its new tokens."""
        return Conversation(self, tools, settings)

    def complete(
        self,
        parts: str | Latents | Sequence[str | Latents],
        max_tokens: int = 64,
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> str:
        """Continue text and latents without a chat template.

        Raises TextError for parts of another type; otherwise the errors of `chat`.
        """
        record = []
        for part in split_parts(parts):
            if not isinstance(part, (str, Latents, Context, Plain)):
                raise TextError(f"expected text or latents to continue, got {type(part).__name__}")
            record.append(Plain(self.tokenizer.encode(part)) if isinstance(part, str) else part)
        return self._answer(self.read([record]), max_tokens, sampling, seed)[0]

    def complete_records(self, records: Sequence[Sequence[Span]], max_tokens: int) -> list[str]:
        """Continue each record of a batch greedily, by up to `max_tokens` tokens."""
        if not records:
            return []
        return self._answer(self.read(records), max_tokens, GREEDY, 0)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> list:
        """Render a chat, up to the assistant's next turn, as a record of spans and latents.

        The arguments are those of `chat`.
        """
        latents: dict[int, Latents] = {}  # by the id of their placeholder
        placeholders: list[Given] = []  # kept alive, so that no id is used twice

        def replace_latents(part: Any) -> Any:
            if not isinstance(part, Latents):
                return part
            placeholder = Given(len(part))
            latents[id(placeholder)] = part
            placeholders.append(placeholder)
            return placeholder

        prepared = []
        for message in messages:
            parts = split_content(message.get("content"), self.tokenizer)
            if isinstance(parts, list):
                message = {**message, "content": [replace_latents(part) for part in parts]}
            prepared.append(message)
        extra = {"tools": tools} if tools else {}
        record = build_chat_record(
            prepared, self.tokenizer, generate=True, **extra, **(settings or {})
        )
        return [latents.get(id(span), span) for span in record]

    def read(self, records: Sequence[Sequence[Span | Latents]]) -> Prompt:
        """Build the prompt of a batch of records for `generation.prefill`.

        Contexts are compressed, and slots are numbered through the blocks of all records.

        Raises TextError for an empty batch or record, and LatentsError for latents of another
        width than the decoder's.
        """
        if not records:
            raise TextError("expected at least one prompt, got none")
        contexts = [part for record in records for part in record if isinstance(part, Context)]
        compressed = iter(self.compress_all(contexts))
        filled = [
            [next(compressed) if isinstance(part, Context) else part for part in record]
            for record in records
        ]
        rows = [self._lay_out(record) for record in filled]

        blocks = {id(part.block): part.block for _, slices in rows for part in slices}
        indices = {key: index for index, key in enumerate(blocks)}
        size = self.config.compression.latents_per_window
        lengths = np.array([len(tokens) for (tokens, _), _ in rows], np.int32)
        tokens = np.zeros((len(rows), lengths.max()), np.int32)
        slots = np.full_like(tokens, -1)
        for row, ((row_tokens, row_slots), slices) in enumerate(rows):
            latent_rows = [
                indices[id(part.block)] * size + part.first + np.arange(part.count)
                for part in slices
            ]
            # Slot -1 of an ordinary token picks the -1 at the end of the table.
            table = np.concatenate([*latent_rows, [-1]]).astype(np.int32)
            tokens[row, : len(row_tokens)] = row_tokens
            slots[row, : len(row_tokens)] = table[row_slots]
        return Prompt(tokens, slots, lengths, list(blocks.values()))

    def _lay_out(
        self, record: Sequence[Any]
    ) -> tuple[tuple[np.ndarray, np.ndarray], list[BlockSlice]]:
        """Return a record's tokens and slots [T], and the slices of latents its slots index."""
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
        """Check that a prompt of `length` positions and its answer fit the decoder.

        Raises TextError if they do not, and ConfigError for wrong `max_tokens`.
        """
        steps = parse(Count, max_tokens, "max_tokens")
        limit = self.config.decoder.max_positions
        if length + steps > limit:
            raise TextError(
                f"prompt and answer take up to {limit} positions, got {length} + {steps}; "
                "compress more of the prompt"
            )

    def _answer(self, prompt: Prompt, steps: int, sampling: Sampling, seed: int) -> list[str]:
        """Return the answer to each row of a prompt, of up to `steps` tokens."""
        self.check_length(int(prompt.lengths.max()), steps)
        with jax.set_mesh(self.mesh):
            logits, cache = prefill(self.weights, prompt, self.config, max(steps, ROOM))
            return self.write(logits, prompt.lengths, cache, steps, sampling, seed)[0]

    def write(self, logits, lengths, cache: Cache, steps: int, sampling: Sampling, seed: int):
        """Generate answers from the result of a prefill.

        Returns the answers as text, their tokens [B steps], and the cache. Raises ConfigError for
        wrong `steps` or `seed`, and the errors of `generation.continue_tokens`.
        """
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
    """Load a model from a training run or from the output of `convert.from_hf`.

    `step` is the step of a run to load, by default the newest. The model is loaded onto one
    device, or split over several: `lclm_jax.load("runs/tiny", devices=jax.devices())`. Compiled
    programs are cached on disk (`compilation.enable_cache`).

    A process that has loaded a model must not fork, as `multiprocessing` does by default on Linux
    before Python 3.14: JAX's threads do not survive in the child, which hangs. Use
    `multiprocessing.get_context("spawn")`.

    Raises FileNotFoundError if the directory has no checkpoint, and CheckpointError if it cannot be
    read or does not have the step.
    """
    directory = expand_home(str(directory))
    enable_cache()
    config, tokenizer = read_model_files(directory)
    mesh = make_mesh(serving_mesh(config, len(devices)), devices) if devices else one_device()
    abstract = abstract_params(config, mesh, config.dtype)  # no float32 copy on the way
    return LanguageModel(config, load_params(directory, abstract, step), tokenizer, mesh)


def serving_params(params: Params, config: ModelConfig) -> Params:
    """Convert parameters to the model's dtype and to the serving layout of the devices in scope.

    On a CPU, the layers of a decoder of up to MAX_UNSTACKED_BYTES are unstacked.
    """
    params = jax.tree.map(
        lambda x: x if x.dtype == config.dtype else x.astype(config.dtype), params
    )
    layers = params["decoder"]["layers"]
    size = sum(x.nbytes for x in jax.tree.leaves(layers))
    unstacked = platform() == "cpu" and size <= MAX_UNSTACKED_BYTES
    if unstacked and not isinstance(layers, tuple):
        decoder = {**params["decoder"], "layers": split_layers(layers, config.decoder.layers)}
        params = {**params, "decoder": decoder}
    return params


@serving_program(static_argnames=("config",))
def encode_windows(
    params: Params, windows: Windows, config: ModelConfig
) -> tuple[Float[Array, "P D"], ...]:
    """Encode each window of one row [1 C W] to a block of latents.

    If the adapter has attention, the blocks contain pooled states [P I] for `project_blocks`.
    """

    def encode_and_pool(model: LCLM, windows: Windows):
        return model.pool(model.encode(windows), windows)

    method = encode_and_pool if config.adapter.attention else LCLM.compress
    vectors = apply(config, params, windows, method=method)[0]
    return _as_blocks(vectors, windows.tokens.shape[1])


@serving_program(static_argnames=("config",))
def project_blocks(
    params: Params, blocks: tuple[Float[Array, "P I"], ...], places: Places, config: ModelConfig
) -> tuple[Float[Array, "P D"], ...]:
    """Project blocks of pooled states to blocks of latents; `places` [1 M] marks those in use."""
    vectors = apply(config, params, jnp.concatenate(blocks)[None], places, method=LCLM.project)[0]
    return _as_blocks(vectors, len(blocks))


def _as_blocks(vectors: Float[Array, "M D"], count: int) -> tuple[Float[Array, "P D"], ...]:
    """Split vectors into `count` blocks, each replicated on every device."""
    return tuple(constrain(block, None, None) for block in jnp.split(vectors, count))
