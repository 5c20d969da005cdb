"""Generation with a KV cache: read the prompt in chunks, then sample tokens on the device.

A few compiled programs serve prompts of any length: chunks have one of two lengths, caches one of
a few sizes. Lengths and sampling settings are traced arguments: new values do not recompile.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.batch import Places
from lclm_jax.compilation import ServingProgram, serving_program
from lclm_jax.config import ModelConfig
from lclm_jax.distributed.sharding import replicate
from lclm_jax.errors import UserError
from lclm_jax.inference.prompts import (
    Chunk,
    PlannedChunk,
    Prompt,
    make_chunk,
    plan_chunks,
    with_blocks,
)
from lclm_jax.inference.sampling import GREEDY, Rules, Sampling, choose
from lclm_jax.model.attention import Cache
from lclm_jax.model.lclm import LCLM, apply
from lclm_jax.model.transformer import empty_cache
from lclm_jax.model.unstacked import is_unstacked
from lclm_jax.typing import Array, Bool, Float, Int, Params

ROOM = 1024  # cache positions reserved after a prompt, for the answer and further turns
EXTRA = 2 * ROOM + 256  # cache positions beside the latents: tags, question and answer
DECODE_STEPS = 64  # maximum tokens per call of the decoding program


class NotFiniteError(UserError):
    """Logits of a next token that are NaN or infinite."""


def positions_needed(chunks: Sequence[PlannedChunk], room: int) -> int:
    """Return the cache positions needed to read the chunks and to have `room` more after them.

    A padded chunk may need more: its padding is written to the cache as well.
    """
    return max(*(planned.first + planned.length for planned in chunks), chunks[-1].stop + room)


@serving_program(static_argnames=("config",), donate_argnames=("logits", "cache"))
def read_chunk(
    params: Params, chunk: Chunk, logits: Float[Array, "B V"], cache: Cache, config: ModelConfig
) -> tuple[Float[Array, "B V"], Cache]:
    """Read one chunk of the prompts into the cache.

    Returns `logits`, updated with the next token's logits of the prompts that end in this chunk,
    and the extended cache. Both inputs are donated.
    """
    latents = jnp.concatenate(chunk.blocks).astype(params["decoder"]["table"].dtype)
    inputs = (chunk.tokens, chunk.slots, latents, chunk.places, cache, chunk.count)
    hidden, read = apply(config, params, *inputs, method=LCLM.decode)
    columns = jnp.maximum(chunk.last, 0)[:, None, None]
    last = jnp.take_along_axis(hidden, columns, axis=1)
    last_logits = apply(config, params, last, method=LCLM.logits)[:, 0]
    return jnp.where((chunk.last >= 0)[:, None], last_logits, logits), read


def allocate_cache(params: Params, config: ModelConfig, rows: int, length: int) -> Cache:
    """Allocate an empty cache of at least `length` positions per row."""
    stacked = not is_unstacked(params["decoder"]["layers"])
    dtype = str(params["decoder"]["table"].dtype)
    return empty_cache(config.decoder, dtype, rows, length, stacked)


def cache_size(rows: int, length: int) -> int:
    """Round a cache length up to one of a few sizes, in positions per row.

    For one row: 4096, 16384, 32768, 65536, ... positions for latents, plus EXTRA for tags,
    question and answer. For several rows: a multiple of 128, and of a power of two between a 16th
    and an 8th of the length.
    """
    if rows > 1:
        unit = max(128, 1 << max(0, (length - 1).bit_length() - 4))
        return -(-length // unit) * unit
    size = 4096
    while size + EXTRA < length:
        size *= 4 if size == 4096 else 2
    return size + EXTRA


def prefill(
    params: Params,
    prompt: Prompt,
    config: ModelConfig,
    room: int = ROOM,
    cache: Cache | None = None,
    start: int = 0,
) -> tuple[Float[Array, "B V"], Cache]:
    """Read prompts in chunks and return each row's next-token logits [B V] and the cache.

    Without a `cache`, a new one with `room` positions after the prompt is allocated. A `cache`
    passed in is donated; each of its rows must have `start` contiguous tokens, and its `end` must
    be `start`. The calls are dispatched asynchronously.

    Raises ValueError if the cache passed in is too small.
    """
    prompt = with_blocks(prompt, config)
    rows = len(prompt.tokens)
    chunks = plan_chunks(prompt, config, cache.length - start if cache else None)
    needed = positions_needed(chunks, room)
    filled = cache or allocate_cache(params, config, rows, cache_size(rows, needed))
    if start + needed > filled.length:
        raise ValueError(
            f"expected room for {start + needed} positions, got a cache of {filled.length}; "
            "start a new one"
        )
    logits = replicate(np.zeros((rows, config.decoder.vocab), np.float32))
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
    """Read one more token of every row; return the logits of the next token and the cache."""
    no_latents = jnp.zeros((1, config.decoder.width), params["decoder"]["table"].dtype)
    no_slots = jnp.full_like(tokens, -1)[:, None]
    places = Places(jnp.ones_like(tokens)[:, None], positions[:, None])
    inputs = (tokens[:, None], no_slots, no_latents, places, cache)
    hidden, cache = apply(config, params, *inputs, method=LCLM.decode)
    return apply(config, params, hidden, method=LCLM.logits)[:, 0], cache


decode_step = ServingProgram(decode_one, static_argnames=("config",), donate_argnames=("cache",))


@flax.struct.dataclass
class Decoding:
    """State of a generation whose newest token in every row is chosen but not yet read."""

    tokens: Int[Array, "B"]
    logprobs: Float[Array, "B"]  # of the newest tokens
    positions: Int[Array, "B"]  # of the newest tokens
    generated: Bool[jax.Array, "B V"]  # tokens a row has generated
    ended: Bool[Array, "B"]
    finite: Bool[Array, "B"]  # all logits of a row so far are finite
    step: Int[Array, ""]  # tokens chosen so far
    rngs: Array  # [B], so that the draws of a row do not depend on the others
    cache: Cache


def _next(logits: Array, state: Decoding, rules: Rules) -> Decoding:
    """Choose one more token of every row, given its logits [B V]."""
    rngs, draws = jax.vmap(jax.random.split, out_axes=1)(state.rngs)
    stops = rules.stops
    finite = state.finite & jnp.all(jnp.isfinite(logits), axis=-1)

    # Padding, and every stop token once min_tokens are chosen, goes out of range and is dropped.
    vocabulary = logits.shape[-1]
    early = jnp.where((stops >= 0) & (state.step < rules.min_tokens), stops, vocabulary)
    banned = jnp.zeros(vocabulary, bool).at[early].set(True, mode="drop")

    tokens = choose(jnp.where(banned, -jnp.inf, logits), state.generated, draws, rules)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return replace(
        state,
        tokens=tokens,
        logprobs=chosen - jax.nn.logsumexp(logits, axis=-1),
        generated=state.generated.at[jnp.arange(len(tokens)), tokens].set(True),
        ended=state.ended | ~finite | jnp.any(tokens[:, None] == stops, axis=-1),
        finite=finite,
        step=state.step + 1,
        rngs=rngs,
    )


@partial(jax.jit, donate_argnames=("logits", "cache"))
def start_decoding(
    logits: Float[Array, "B V"],
    lengths: Int[Array, "B"],
    cache: Cache,
    seeds: Int[Array, "B"],
    rules: Rules,
) -> Decoding:
    """Choose the first token of every row; `lengths` are the lengths of the prompts."""
    rows = len(lengths)
    state = Decoding(
        tokens=jnp.zeros(rows, jnp.int32),
        logprobs=jnp.zeros(rows, jnp.float32),
        positions=jnp.asarray(lengths),
        generated=jnp.zeros(logits.shape, bool),
        ended=jnp.zeros(rows, bool),
        finite=jnp.ones(rows, bool),
        step=jnp.int32(0),
        rngs=jax.vmap(jax.random.key)(seeds),
        cache=cache,
    )
    return _next(logits, state, rules)


@serving_program(static_argnames=("config",), donate_argnames=("state",))
def decode_block(
    params: Params, state: Decoding, limit: Int[Array, ""], rules: Rules, config: ModelConfig
) -> tuple[Decoding, Int[Array, "B steps"], Float[Array, "B steps"]]:
    """Read and choose up to DECODE_STEPS tokens per row.

    It stops early when `limit` tokens are chosen in total, or when every row has ended. Returns
    the state, the tokens and their log-probabilities; unused columns are -1 and 0.
    """

    def unfinished(carry):
        state, column, *_ = carry
        return (column < DECODE_STEPS) & (state.step < limit) & ~jnp.all(state.ended)

    def step(carry):
        state, column, tokens, logprobs = carry
        logits, cache = decode_one(params, state.tokens, state.positions, state.cache, config)
        state = replace(state, positions=state.positions + 1, cache=cache)
        state = _next(logits, state, rules)
        update = partial(jax.lax.dynamic_update_slice_in_dim, start_index=column, axis=1)
        tokens = update(tokens, state.tokens[:, None])
        return state, column + 1, tokens, update(logprobs, state.logprobs[:, None])

    shape = (len(state.tokens), DECODE_STEPS)
    none = jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32)
    state, _, tokens, logprobs = jax.lax.while_loop(unfinished, step, (state, jnp.int32(0), *none))
    return state, tokens, logprobs


class Generation:
    """Answers of up to `max_tokens` tokens per row, after a `prefill`, decoded as they are needed.

    `seed` is an integer, or one for each row; the draws of a row depend on its own seed only.
    `logits` and `cache` are donated.

    Raises ValueError if the cache has no room for the tokens.
    """

    def __init__(
        self,
        params: Params,
        logits: Float[Array, "B V"],
        lengths: Int[Array, "B"],
        cache: Cache,
        config: ModelConfig,
        max_tokens: int,
        stops: Sequence[int] = (),
        seed: int | Sequence[int] = 0,
        sampling: Sampling = GREEDY,
    ):
        room = cache.length - int(cache.end)
        if max_tokens - 1 > room:
            raise ValueError(
                f"expected room for {max_tokens - 1} tokens in the cache, it has {room}; "
                "raise `room` of prefill"
            )
        self._params, self._config, self._max_tokens = params, config, max_tokens
        self._rules = Rules.of(sampling, stops)
        lengths = np.asarray(lengths, np.int32)
        seeds = np.broadcast_to(
            [number % 2**32 for number in np.atleast_1d(seed).tolist()], lengths.shape
        )
        self._state = start_decoding(logits, lengths, cache, seeds.astype(np.uint32), self._rules)
        none = np.zeros((len(lengths), 0))
        self.tokens, self.logprobs = none.astype(np.int32), none.astype(np.float32)
        self._take(self._state.tokens[:, None], self._state.logprobs[:, None])

    @property
    def finished(self) -> bool:
        """Return whether every row has its stop token or `max_tokens` tokens."""
        return self.tokens.shape[1] >= self._max_tokens or bool(self.ended.all())

    @property
    def cache(self) -> Cache:
        """The cache, in which the newest token of each row is not yet read."""
        return self._state.cache

    def advance(self, count: int = DECODE_STEPS):
        """Decode up to `count` more tokens of every row, at most DECODE_STEPS.

        `tokens` and `logprobs` [B n] then end with them. Entries of a row after its first stop
        token have no meaning. Raises NotFiniteError if logits are NaN or infinite.
        """
        limit = np.int32(min(self.tokens.shape[1] + count, self._max_tokens))
        inputs = (self._state, limit, self._rules, self._config)
        self._state, tokens, logprobs = decode_block(self._params, *inputs)
        self._take(tokens, logprobs)

    def _take(self, tokens: Array, logprobs: Array):
        """Append the columns that were decoded, and check them."""
        state = self._state
        results = (tokens, logprobs, state.step, state.ended, state.finite)
        tokens, logprobs, step, self.ended, finite = jax.device_get(results)
        columns = min(int(step), self._max_tokens) - self.tokens.shape[1]
        self.tokens = np.concatenate([self.tokens, tokens[:, :columns]], axis=1)
        self.logprobs = np.concatenate([self.logprobs, logprobs[:, :columns]], axis=1)
        if bad := np.flatnonzero(~finite).tolist():
            raise NotFiniteError(
                f"the logits of the next token are NaN or infinite for prompts {bad}; check the "
                "latents (Latents.vectors) and the parameters for such values, or load the model "
                "in float32"
            )

    def end_rows(self, rows: Bool[np.ndarray, "B"]):
        """End the answers of the rows that are marked."""
        self.ended = self.ended | rows
        self._state = replace(self._state, ended=replicate(self.ended))


def continue_tokens(
    params: Params,
    logits: Float[Array, "B V"],
    lengths: Int[Array, "B"],
    cache: Cache,
    config: ModelConfig,
    steps: int,
    stops: Sequence[int] = (),
    seed: int = 0,
    sampling: Sampling = GREEDY,
) -> tuple[Int[np.ndarray, "B steps"], Int[np.ndarray, "B"], Cache]:
    """Generate up to `steps` tokens per row from the logits and cache of a `prefill`.

    Returns the tokens, each row's count of them before its stop token, and the cache, in which
    the newest token of each row is not yet read.

    Raises the errors of `Generation`.
    """
    inputs = (logits, lengths, cache, config, steps, stops, seed, sampling)
    generation = Generation(params, *inputs)
    while not generation.finished:
        generation.advance()
    tokens = generation.tokens
    counts = count_before_stop(tokens, stops)
    missing = steps - tokens.shape[1]
    return np.pad(tokens, ((0, 0), (0, missing))), counts, generation.cache


def count_before_stop(tokens: Int[np.ndarray, "B n"], stops: Sequence[int]) -> Int[np.ndarray, "B"]:
    """Count the tokens of each row before its first stop token."""
    ends = np.isin(tokens, stops)
    ends = np.pad(ends, ((0, 0), (0, 1)), constant_values=True)
    return ends.argmax(axis=1)


def generate_tokens(
    params: Params,
    prompt: Prompt,
    config: ModelConfig,
    steps: int,
    stops: Sequence[int] = (),
    seed: int = 0,
    sampling: Sampling = GREEDY,
) -> tuple[Int[np.ndarray, "B steps"], Int[np.ndarray, "B"]]:
    """Generate up to `steps` tokens per row after a prompt.

    Returns the tokens, and each row's count of them before its stop token. Raises NotFiniteError
    if the logits of a row are NaN or infinite.
    """
    logits, cache = prefill(params, prompt, config, max(steps, ROOM))
    inputs = (logits, prompt.lengths, cache, config, steps, stops, seed, sampling)
    return continue_tokens(params, *inputs)[:2]
