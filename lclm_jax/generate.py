"""Generation with a KV cache: the prompt is read in chunks, then tokens are sampled on the device.

A few programs serve prompts of any length: chunks have one of two lengths, caches one of a few
sizes. Lengths and sampling settings are traced arguments, so changing them does not recompile.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.compilation import ServingProgram, serving_program
from lclm_jax.config import ConfigError, ModelConfig
from lclm_jax.model.attention import Cache
from lclm_jax.model.lclm import LCLM, apply
from lclm_jax.model.masks import Places
from lclm_jax.model.transformer import empty_cache
from lclm_jax.sharding import replicate
from lclm_jax.typing import Array, Bool, Float, Int, Params, typed

CHUNKS = (256, 4096)  # positions of a prompt that are read at once
ROOM = 1024  # positions of a cache for what is asked and answered after a prompt
EXTRA = 2 * ROOM + 256  # positions beside a power of two of latents: tags, question, answer
DECODE_STEPS = 64  # tokens that one call of the decoding program writes, at most
CANDIDATES = 1024  # tokens that top-k and top-p look at before they sort the whole vocabulary
MAX_STOPS = 16  # stop tokens of a call


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The default is greedy."""

    temperature: float = 0.0
    top_k: int = 0  # most likely tokens to choose among; 0 is all
    top_p: float = 1.0  # smallest set of most likely tokens with this probability
    # Divides positive and multiplies negative logits of generated tokens; the prompt is not counted.
    repetition_penalty: float = 1.0
    min_tokens: int = 0  # before so many tokens a stop token cannot be chosen

    def __post_init__(self):
        negative = min(self.temperature, self.top_k, self.min_tokens) < 0
        if negative or not 0 < self.top_p <= 1 or self.repetition_penalty <= 0:
            raise ConfigError(
                "expected temperature, top_k, min_tokens >= 0, 0 < top_p <= 1 and "
                f"repetition_penalty > 0, got {self}"
            )


@flax.struct.dataclass
class Rules:
    """A `Sampling` and its stop tokens as values that a compiled program is given."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    repetition_penalty: Float[Array, ""]
    min_tokens: Int[Array, ""]
    stops: Int[Array, "S"]  # -1 where there is none

    @classmethod
    def of(cls, sampling: Sampling, stops: Sequence[int] = ()) -> "Rules":
        """Raises ValueError for more than MAX_STOPS stop tokens."""
        if len(stops) > MAX_STOPS:
            raise ValueError(f"expected at most {MAX_STOPS} stop tokens, got {len(stops)}")
        padded = np.full(MAX_STOPS, -1, np.int32)
        padded[: len(stops)] = stops
        s = sampling
        return cls(
            np.float32(s.temperature),
            np.int32(s.top_k),
            np.float32(s.top_p),
            np.float32(s.repetition_penalty),
            np.int32(s.min_tokens),
            padded,
        )


@dataclass(frozen=True)
class Prompt:
    """B prompts of up to T positions, padded on the right, and the latents that fill their slots.

    Latents lie in blocks [P D] on the device; slot number n is row n % P of block n // P.
    """

    tokens: Int[np.ndarray, "B T"]
    slots: Int[np.ndarray, "B T"]  # -1 is an ordinary token
    lengths: Int[np.ndarray, "B"]
    blocks: Sequence[Array] = field(default_factory=list)

    @classmethod
    def of_arrays(cls, tokens, slots, latents: Float[Array, "B M D"], lengths) -> "Prompt":
        """A prompt whose slots number the latents of their own row."""
        rows, count = latents.shape[:2]
        offsets = np.arange(rows)[:, None] * count
        numbered = np.where(slots >= 0, slots + offsets, -1).astype(np.int32)
        blocks = list(latents) if count else []
        return cls(np.asarray(tokens, np.int32), numbered, np.asarray(lengths), blocks)


@flax.struct.dataclass
class Chunk:
    """T positions of each of B prompts, as `read_chunk` takes them."""

    tokens: Int[Array, "B T"]
    slots: Int[Array, "B T"]  # rows of the blocks, all of them joined; -1 is an ordinary token
    places: Places  # [B T]
    last: Int[Array, "B"]  # the column of a prompt's last token; -1 if it is in another chunk
    count: Int[Array, ""]  # columns in use
    blocks: tuple[Float[Array, "P D"], ...]


@dataclass(frozen=True)
class PlannedChunk:
    """Columns of prompts that one chunk reads, the chunk's length, and the blocks it needs."""

    first: int
    stop: int
    length: int
    blocks: Int[np.ndarray, "X"]


def plan_chunks(prompt: Prompt, config: ModelConfig) -> list[PlannedChunk]:
    """Cuts prompts into chunks of few lengths, each with a bounded number of latent blocks."""
    rows, total = len(prompt.tokens), int(prompt.lengths.max())
    size = block_size(prompt, config)
    chunks, first = [], 0
    while first < total:
        length = chunk_length(total - first)
        stop = min(first + length, total)
        numbers = prompt.slots[:, first:stop] // size  # -1 where there is none
        stop = first + _columns_within(numbers, block_limit(rows, length, size))
        used = np.unique(numbers[:, : stop - first])
        chunks.append(PlannedChunk(first, stop, length, used[used >= 0]))
        first = stop
    return chunks


def chunk_length(left: int) -> int:
    """The length of the next chunk where so many positions are left to read."""
    small, large = CHUNKS
    return large if left > large // 2 else small


def positions_needed(chunks: Sequence[PlannedChunk], room: int) -> int:
    """Positions of a cache that chunks write to, or `room` more than they fill."""
    return max(*(planned.first + planned.length for planned in chunks), chunks[-1].stop + room)


def block_size(prompt: Prompt, config: ModelConfig) -> int:
    """Latents of a block."""
    return len(prompt.blocks[0]) if prompt.blocks else config.compression.latents_per_window


def block_limit(rows: int, length: int, size: int) -> int:
    """Blocks a chunk is given: enough for a context that fills it, and a part of two others."""
    return rows * (length // size + 2)


def _columns_within(numbers: Int[np.ndarray, "B T"], limit: int) -> int:
    """How many of the first columns name at most `limit` different blocks."""
    columns = numbers.shape[1]
    if len(np.unique(numbers)) <= limit:
        return columns
    seen: set[int] = set()
    for column in range(columns):
        seen.update(numbers[:, column][numbers[:, column] >= 0].tolist())
        if len(seen) > limit:
            return column
    return columns


def make_chunk(prompt: Prompt, planned: PlannedChunk, config: ModelConfig, start: int = 0) -> Chunk:
    """The arrays of one chunk of a prompt that has blocks (`with_blocks`); `start` is the number of
    tokens in the cache before it."""
    size, count = block_size(prompt, config), planned.stop - planned.first
    columns = np.arange(planned.first, planned.first + planned.length, dtype=np.int32)[None]
    real = columns < np.minimum(prompt.lengths, planned.stop)[:, None]
    last = prompt.lengths - 1 - planned.first
    slots = _pad(prompt.slots[:, planned.first : planned.stop], planned.length, -1)
    if len(planned.blocks):
        renumbered = np.searchsorted(planned.blocks, slots // size) * size + slots % size
        slots = np.where(slots >= 0, renumbered, -1).astype(np.int32)
    limit = block_limit(len(prompt.tokens), planned.length, size)
    blocks = [prompt.blocks[i] for i in planned.blocks]
    filler = prompt.blocks[0]
    return Chunk(
        _pad(prompt.tokens[:, planned.first : planned.stop], planned.length, 0),
        slots,
        Places(real.astype(np.int32), np.where(real, columns + start, 0).astype(np.int32)),
        np.where((last >= 0) & (last < count), last, -1).astype(np.int32),
        np.int32(count),
        (*blocks, *[filler] * (limit - len(blocks))),
    )


def _pad(x: Int[np.ndarray, "B T"], length: int, fill: int) -> Int[np.ndarray, "B T"]:
    return np.pad(x, ((0, 0), (0, length - x.shape[1])), constant_values=fill).astype(np.int32)


@serving_program(static_argnames=("config",), donate_argnames=("logits", "cache"))
def read_chunk(
    params: Params, chunk: Chunk, logits: Float[Array, "B V"], cache: Cache, config: ModelConfig
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads some positions of prompts into the cache.

    Returns `logits` with the scores of the next token for the prompts that end in this chunk.
    """
    latents = jnp.concatenate(chunk.blocks).astype(params["decoder"]["table"].dtype)
    inputs = (chunk.tokens, chunk.slots, latents, chunk.places, cache, chunk.count)
    hidden, read = apply(config, params, *inputs, method=LCLM.decode)
    columns = jnp.maximum(chunk.last, 0)[:, None, None]
    last = jnp.take_along_axis(hidden, columns, axis=1)
    scores = apply(config, params, last, method=LCLM.logits)[:, 0]
    return jnp.where((chunk.last >= 0)[:, None], scores, logits), read


def allocate_cache(params: Params, config: ModelConfig, rows: int, length: int) -> Cache:
    """Room for at least `length` positions a row, of one of a few sizes."""
    stacked = not isinstance(params["decoder"]["layers"], tuple)
    dtype = str(params["decoder"]["table"].dtype)
    return empty_cache(config.decoder, dtype, rows, cache_size(rows, length), stacked)


def cache_size(rows: int, length: int) -> int:
    """The size of a cache for so many positions.

    Of one row: 4096, 16384, 32768, 65536 ... latents, and EXTRA for tags, a question and an answer.
    Of several rows: at most an eighth more than the length.
    """
    if rows > 1:
        unit = max(128, 1 << max(0, (length - 1).bit_length() - 4))
        return -(-length // unit) * unit
    size = 4096
    while size + EXTRA < length:
        size *= 4 if size == 4096 else 2
    return size + EXTRA


def with_blocks(prompt: Prompt, config: ModelConfig) -> Prompt:
    """A prompt whose blocks of latents are on the devices; it has one at least."""
    size = config.compression.latents_per_window
    nothing = np.zeros((size, config.decoder.width), config.dtype)
    blocks = [x if isinstance(x, jax.Array) else replicate(x) for x in prompt.blocks or [nothing]]
    return replace(prompt, blocks=blocks)


def prefill(
    params: Params,
    prompt: Prompt,
    config: ModelConfig,
    room: int = ROOM,
    cache: Cache | None = None,
    start: int = 0,
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads prompts in chunks. Returns the scores of each row's next token, and the cache.

    Without a `cache` a new one has `room` more positions. One that is given is used up: its rows
    all have `start` tokens, contiguous, and its `end` is `start`. Calls are dispatched and not
    waited for.

    Raises ValueError where a given cache is too small.
    """
    prompt = with_blocks(prompt, config)
    chunks = plan_chunks(prompt, config)
    needed = positions_needed(chunks, room)
    filled = cache or allocate_cache(params, config, len(prompt.tokens), needed)
    if start + needed > filled.length:
        raise ValueError(
            f"expected room for {start + needed} positions, got a cache of {filled.length}; "
            "start a new one"
        )
    logits = replicate(np.zeros((len(prompt.tokens), config.decoder.vocab), np.float32))
    for planned in chunks:
        chunk = make_chunk(prompt, planned, config, start)
        logits, filled = read_chunk(params, chunk, logits, filled, config)
    return logits, filled


def decode_one(
    params: Params,
    tokens: Int[Array, "B"],
    positions: Int[Array, "B"],
    cache: Cache,
    config: ModelConfig,
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads one more token of every row and returns the scores of the next."""
    nothing = jnp.zeros((1, config.decoder.width), params["decoder"]["table"].dtype)
    places = Places(jnp.ones_like(tokens)[:, None], positions[:, None])
    inputs = (tokens[:, None], jnp.full_like(tokens, -1)[:, None], nothing, places, cache)
    hidden, cache = apply(config, params, *inputs, method=LCLM.decode)
    return apply(config, params, hidden, method=LCLM.logits)[:, 0], cache


decode_step = ServingProgram(decode_one, static_argnames=("config",), donate_argnames=("cache",))


@typed
def choose(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], rng: Array, rules: Rules
) -> Int[Array, "B"]:
    """The next token of every row, given which tokens it has generated before."""
    penalty = rules.repetition_penalty
    penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(seen, penalised, logits)
    return jax.lax.cond(
        rules.temperature > 0, _draw, lambda logits, *_: jnp.argmax(logits, -1), logits, rng, rules
    )


def _draw(logits: Array, rng: Array, rules: Rules) -> Array:
    """A token of every row at random, by temperature, top-k and top-p."""
    logits = logits / rules.temperature
    limited = (rules.top_k > 0) | (rules.top_p < 1)
    lowest = jax.lax.cond(limited, _lowest, lambda x, _: jnp.full(len(x), -jnp.inf), logits, rules)
    logits = jnp.where(logits < lowest[:, None], -jnp.inf, logits)
    return jax.random.categorical(rng, logits, axis=-1)


def _lowest(logits: Float[Array, "B V"], rules: Rules) -> Float[Array, "B"]:
    """The lowest score that top-k and top-p leave; by the best CANDIDATES where these suffice."""
    vocabulary = logits.shape[-1]
    few = min(CANDIDATES, vocabulary)
    total = jax.nn.logsumexp(logits, axis=-1)
    best = jax.lax.top_k(logits, few)[0]
    covered = jnp.exp(jax.nn.logsumexp(best, axis=-1) - total) >= rules.top_p
    enough = jnp.where(rules.top_k > 0, rules.top_k <= few, jnp.all(covered))
    if few == vocabulary:
        return _lowest_of(best, total, rules)

    def sort_all(_):
        return _lowest_of(jnp.sort(logits, axis=-1, descending=True), total, rules)

    return jax.lax.cond(enough, lambda best: _lowest_of(best, total, rules), sort_all, best)


def _lowest_of(
    ordered: Float[Array, "B C"], total: Float[Array, "B"], rules: Rules
) -> Float[Array, "B"]:
    """`_lowest` from the best scores in order; `total` is the log of the sum of all."""
    rank = jnp.arange(ordered.shape[-1])
    limit = jnp.where(rules.top_k > 0, rules.top_k, ordered.shape[-1])
    kept = jnp.where(rank < limit, ordered, -jnp.inf)
    total = jnp.where(rules.top_k > 0, jax.nn.logsumexp(kept, axis=-1), total)
    shares = jnp.exp(kept - total[:, None])
    before = jnp.cumsum(shares, axis=-1) - shares
    inside = (rank < limit) & (before < rules.top_p)
    return jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1)


@flax.struct.dataclass
class Decoding:
    """Where a generation stands: the newest token of every row is chosen and not yet read."""

    tokens: Int[Array, "B"]
    positions: Int[Array, "B"]  # of the newest tokens
    seen: Bool[Array, "B V"]  # tokens a row has generated
    ended: Bool[Array, "B"]
    step: Int[Array, ""]  # tokens chosen so far
    rng: Array
    cache: Cache


def _next(logits: Array, state: Decoding, rules: Rules) -> Decoding:
    """The state after one more token is chosen."""
    rng, draw = jax.random.split(state.rng)
    stops = rules.stops
    early = jnp.where((stops >= 0) & (state.step < rules.min_tokens), stops, logits.shape[-1])
    banned = jnp.zeros(logits.shape[-1], bool).at[early].set(True, mode="drop")
    tokens = choose(jnp.where(banned, -jnp.inf, logits), state.seen, draw, rules)
    return state.replace(
        tokens=tokens,
        seen=state.seen.at[jnp.arange(len(tokens)), tokens].set(True),
        ended=state.ended | jnp.any(tokens[:, None] == stops, axis=-1),
        step=state.step + 1,
        rng=rng,
    )


@partial(jax.jit, donate_argnames=("logits", "cache"))
def start_decoding(
    logits: Float[Array, "B V"], lengths: Int[Array, "B"], cache: Cache, seed: Array, rules: Rules
) -> Decoding:
    """Chooses the first token of every row after its prompt of so many tokens."""
    rows = len(lengths)
    nothing = jnp.zeros(rows, jnp.int32)
    seen, ended = jnp.zeros(logits.shape, bool), jnp.zeros(rows, bool)
    rng = jax.random.key(seed)
    state = Decoding(nothing, jnp.asarray(lengths), seen, ended, jnp.int32(0), rng, cache)
    return _next(logits, state, rules)


@serving_program(static_argnames=("config",), donate_argnames=("state",))
def decode_block(
    params: Params, state: Decoding, limit: Int[Array, ""], rules: Rules, config: ModelConfig
) -> tuple[Decoding, Int[Array, "B X"]]:
    """Reads and chooses up to DECODE_STEPS tokens, until `limit` are chosen in all or every row
    ended."""

    def unfinished(carry):
        state, number, _ = carry
        return (number < DECODE_STEPS) & (state.step < limit) & ~jnp.all(state.ended)

    def one(carry):
        state, number, out = carry
        logits, cache = decode_one(params, state.tokens, state.positions, state.cache, config)
        state = state.replace(positions=state.positions + 1, cache=cache)
        state = _next(logits, state, rules)
        out = jax.lax.dynamic_update_slice_in_dim(out, state.tokens[:, None], number, axis=1)
        return state, number + 1, out

    out = jnp.full((len(state.tokens), DECODE_STEPS), -1, jnp.int32)
    state, _, out = jax.lax.while_loop(unfinished, one, (state, jnp.int32(0), out))
    return state, out


def continue_tokens(
    params: Params,
    logits: Float[Array, "B V"],
    lengths: Int[Array, "B"],
    cache: Cache,
    config: ModelConfig,
    steps: int,
    stops: Sequence[int] = (),
    seed: int = 0,
    sampling: Sampling = Sampling(),
) -> tuple[Int[np.ndarray, "B steps"], Int[np.ndarray, "B"], Cache]:
    """Up to `steps` new tokens a row after a `prefill`, and how many of them count, a stop token
    excluded; and the cache, without the last tokens.

    Raises ValueError where the cache has no room for them.
    """
    room = cache.length - int(cache.end)
    if steps - 1 > room:
        raise ValueError(
            f"expected room for {steps - 1} tokens in the cache, it has {room}; set room of prefill"
        )
    rules = Rules.of(sampling, stops)
    lengths = np.asarray(lengths, np.int32)
    state = start_decoding(logits, lengths, cache, np.uint32(seed % 2**32), rules)
    blocks = [np.asarray(state.tokens)[:, None]]
    while sum(block.shape[1] for block in blocks) < steps and not np.asarray(state.ended).all():
        state, out = decode_block(params, state, np.int32(steps), rules, config)
        blocks.append(np.asarray(out))
    tokens = np.concatenate(blocks, axis=1)[:, :steps]
    tokens = np.pad(tokens, ((0, 0), (0, steps - tokens.shape[1])), constant_values=-1)
    ends = np.pad(np.isin(tokens, [*stops, -1]), ((0, 0), (0, 1)), constant_values=True)
    return np.maximum(tokens, 0), ends.argmax(axis=1), state.cache


def generate_tokens(
    params: Params,
    prompt: Prompt,
    config: ModelConfig,
    steps: int,
    stops: Sequence[int] = (),
    seed: int = 0,
    sampling: Sampling = Sampling(),
) -> tuple[Int[np.ndarray, "B steps"], Int[np.ndarray, "B"]]:
    """Up to `steps` new tokens a row and how many of them count, a stop token excluded."""
    logits, cache = prefill(params, prompt, config, max(steps, ROOM))
    inputs = (logits, prompt.lengths, cache, config, steps, stops, seed, sampling)
    return continue_tokens(params, *inputs)[:2]
