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
from lclm_jax.inference.sampling import Rules, Sampling, choose
from lclm_jax.model.attention import Cache
from lclm_jax.model.lclm import LCLM, apply
from lclm_jax.model.transformer import empty_cache
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
    """Allocate an empty cache of at least `length` positions per row (see `cache_size`)."""
    stacked = not isinstance(params["decoder"]["layers"], tuple)
    dtype = str(params["decoder"]["table"].dtype)
    return empty_cache(config.decoder, dtype, rows, cache_size(rows, length), stacked)


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
    positions: Int[Array, "B"]  # of the newest tokens
    generated: Bool[jax.Array, "B V"]  # tokens a row has generated
    ended: Bool[Array, "B"]
    finite: Bool[Array, "B"]  # all logits of a row so far are finite
    step: Int[Array, ""]  # tokens chosen so far
    rng: Array
    cache: Cache


def _next(logits: Array, state: Decoding, rules: Rules) -> Decoding:
    """Choose one more token of every row, given its logits [B V]."""
    rng, draw = jax.random.split(state.rng)
    stops = rules.stops
    finite = state.finite & jnp.all(jnp.isfinite(logits), axis=-1)

    # Padding, and every stop token once min_tokens are chosen, goes out of range and is dropped.
    vocabulary = logits.shape[-1]
    early = jnp.where((stops >= 0) & (state.step < rules.min_tokens), stops, vocabulary)
    banned = jnp.zeros(vocabulary, bool).at[early].set(True, mode="drop")

    tokens = choose(jnp.where(banned, -jnp.inf, logits), state.generated, draw, rules)
    return replace(
        state,
        tokens=tokens,
        generated=state.generated.at[jnp.arange(len(tokens)), tokens].set(True),
        ended=state.ended | ~finite | jnp.any(tokens[:, None] == stops, axis=-1),
        finite=finite,
        step=state.step + 1,
        rng=rng,
    )


@partial(jax.jit, donate_argnames=("logits", "cache"))
def start_decoding(
    logits: Float[Array, "B V"], lengths: Int[Array, "B"], cache: Cache, seed: Array, rules: Rules
) -> Decoding:
    """Choose the first token of every row; `lengths` are the lengths of the prompts."""
    rows = len(lengths)
    state = Decoding(
        tokens=jnp.zeros(rows, jnp.int32),
        positions=jnp.asarray(lengths),
        generated=jnp.zeros(logits.shape, bool),
        ended=jnp.zeros(rows, bool),
        finite=jnp.ones(rows, bool),
        step=jnp.int32(0),
        rng=jax.random.key(seed),
        cache=cache,
    )
    return _next(logits, state, rules)


@serving_program(static_argnames=("config",), donate_argnames=("state",))
def decode_block(
    params: Params, state: Decoding, limit: Int[Array, ""], rules: Rules, config: ModelConfig
) -> tuple[Decoding, Int[Array, "B steps"]]:
    """Read and choose up to DECODE_STEPS tokens per row.

    It stops early when `limit` tokens are chosen in total, or when every row has ended. Unused
    columns of the tokens it returns are -1.
    """

    def unfinished(carry):
        state, column, _ = carry
        return (column < DECODE_STEPS) & (state.step < limit) & ~jnp.all(state.ended)

    def step(carry):
        state, column, out = carry
        logits, cache = decode_one(params, state.tokens, state.positions, state.cache, config)
        state = replace(state, positions=state.positions + 1, cache=cache)
        state = _next(logits, state, rules)
        out = jax.lax.dynamic_update_slice_in_dim(out, state.tokens[:, None], column, axis=1)
        return state, column + 1, out

    out = jnp.full((len(state.tokens), DECODE_STEPS), -1, jnp.int32)
    state, _, out = jax.lax.while_loop(unfinished, step, (state, jnp.int32(0), out))
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
    """Generate up to `steps` tokens per row from the logits and cache of a `prefill`.

    Returns the tokens, each row's count of them before its stop token, and the cache, in which
    the newest token of each row is not yet read.

    Raises ValueError if the cache has no room for the tokens, and NotFiniteError if the logits of
    a row are NaN or infinite.
    """
    room = cache.length - int(cache.end)
    if steps - 1 > room:
        raise ValueError(
            f"expected room for {steps - 1} tokens in the cache, it has {room}; "
            "raise `room` of prefill"
        )
    rules = Rules.of(sampling, stops)
    lengths = np.asarray(lengths, np.int32)
    state = start_decoding(logits, lengths, cache, np.uint32(seed % 2**32), rules)
    blocks = [np.asarray(state.tokens)[:, None]]
    while sum(block.shape[1] for block in blocks) < steps and not np.asarray(state.ended).all():
        state, out = decode_block(params, state, np.int32(steps), rules, config)
        blocks.append(np.asarray(out))
    if bad := np.flatnonzero(~np.asarray(state.finite)).tolist():
        raise NotFiniteError(
            f"the logits of the next token are NaN or infinite for prompts {bad}; check the "
            "latents (Latents.vectors) and the parameters for such values, or load the model in "
            "float32"
        )

    tokens = np.concatenate(blocks, axis=1)[:, :steps]
    tokens = np.pad(tokens, ((0, 0), (0, steps - tokens.shape[1])), constant_values=-1)
    ends = np.isin(tokens, [*stops, -1])
    ends = np.pad(ends, ((0, 0), (0, 1)), constant_values=True)  # at the latest after `steps`
    counts = ends.argmax(axis=1)
    return np.maximum(tokens, 0), counts, state.cache


def generate_tokens(
    params: Params,
    prompt: Prompt,
    config: ModelConfig,
    steps: int,
    stops: Sequence[int] = (),
    seed: int = 0,
    sampling: Sampling = Sampling(),
) -> tuple[Int[np.ndarray, "B steps"], Int[np.ndarray, "B"]]:
    """Generate up to `steps` tokens per row after a prompt.

    Returns the tokens, and each row's count of them before its stop token. Raises NotFiniteError
    if the logits of a row are NaN or infinite.
    """
    logits, cache = prefill(params, prompt, config, max(steps, ROOM))
    inputs = (logits, prompt.lengths, cache, config, steps, stops, seed, sampling)
    return continue_tokens(params, *inputs)[:2]
