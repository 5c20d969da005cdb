"""Generation with a KV cache: the prompt is read in chunks, then tokens are sampled on the device.

A few programs serve prompts of any length: chunks have one of two lengths, caches one of a few
sizes. Lengths and sampling settings are traced arguments, so changing them does not recompile.
"""

from collections.abc import Sequence
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

ROOM = 1024  # positions of a cache for what is asked and answered after a prompt
EXTRA = 2 * ROOM + 256  # positions beside a power of two of latents: tags, question, answer
DECODE_STEPS = 64  # tokens that one call of the decoding program writes, at most


class NotFiniteError(UserError):
    """Scores of a next token that are NaN or infinite."""


def positions_needed(chunks: Sequence[PlannedChunk], room: int) -> int:
    """Positions of a cache that chunks write to, or `room` more than they fill."""
    return max(*(planned.first + planned.length for planned in chunks), chunks[-1].stop + room)


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


@flax.struct.dataclass
class Decoding:
    """Where a generation stands: the newest token of every row is chosen and not yet read."""

    tokens: Int[Array, "B"]
    positions: Int[Array, "B"]  # of the newest tokens
    seen: Bool[Array, "B V"]  # tokens a row has generated
    ended: Bool[Array, "B"]
    finite: Bool[Array, "B"]  # all scores of a row so far
    step: Int[Array, ""]  # tokens chosen so far
    rng: Array
    cache: Cache


def _next(logits: Array, state: Decoding, rules: Rules) -> Decoding:
    """The state after one more token is chosen."""
    rng, draw = jax.random.split(state.rng)
    stops = rules.stops
    finite = state.finite & jnp.all(jnp.isfinite(logits), axis=-1)
    early = jnp.where((stops >= 0) & (state.step < rules.min_tokens), stops, logits.shape[-1])
    banned = jnp.zeros(logits.shape[-1], bool).at[early].set(True, mode="drop")
    tokens = choose(jnp.where(banned, -jnp.inf, logits), state.seen, draw, rules)
    return state.replace(
        tokens=tokens,
        seen=state.seen.at[jnp.arange(len(tokens)), tokens].set(True),
        ended=state.ended | ~finite | jnp.any(tokens[:, None] == stops, axis=-1),
        finite=finite,
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
    rng, finite = jax.random.key(seed), jnp.ones(rows, bool)
    state = Decoding(nothing, jnp.asarray(lengths), seen, ended, finite, jnp.int32(0), rng, cache)
    return _next(logits, state, rules)


@serving_program(static_argnames=("config",), donate_argnames=("state",))
def decode_block(
    params: Params, state: Decoding, limit: Int[Array, ""], rules: Rules, config: ModelConfig
) -> tuple[Decoding, Int[Array, "B steps"]]:
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

    Raises ValueError where the cache has no room for them, and NotFiniteError where a row's scores
    are not finite.
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
    if bad := np.flatnonzero(~np.asarray(state.finite)).tolist():
        raise NotFiniteError(
            f"the scores of the next token are NaN or infinite for prompts {bad}; look for such "
            "values in the latents (Latents.vectors) and in the parameters, or load the model in "
            "float32"
        )
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
