"""Generation with a KV cache: prefill once, then one compiled loop that samples until every row has ended.

Shapes are static: prompts are padded to a length their whole batch shares, and the cache has room for all new tokens.
"""

from dataclasses import dataclass
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from lclm_jax.config import ConfigError, ModelConfig
from lclm_jax.model.attention import Cache
from lclm_jax.model.lclm import LCLM, apply
from lclm_jax.model.masks import Places
from lclm_jax.model.transformer import empty_cache, unstack
from lclm_jax.sharding import platform
from lclm_jax.typing import Array, Bool, Float, Int, Params, typed

UNSTACKED = 2**30  # bytes of layers that a CPU copies once to generate faster


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The default is greedy."""

    temperature: float = 0.0
    top_k: int = 0  # most likely tokens to choose among; 0 is all
    top_p: float = 1.0  # smallest set of most likely tokens with this probability
    repetition_penalty: float = 1.0  # divides the positive and multiplies the negative logits of tokens generated before
    min_tokens: int = 0  # before so many tokens a stop token cannot be chosen

    def __post_init__(self):
        if min(self.temperature, self.top_k, self.min_tokens) < 0 or not 0 < self.top_p <= 1 or self.repetition_penalty <= 0:
            raise ConfigError(
                f"expected temperature, top_k, min_tokens >= 0, 0 < top_p <= 1 and repetition_penalty > 0, got {self}"
            )


@flax.struct.dataclass
class Prompt:
    """B prompts of up to T positions, padded on the right, and the latents that fill their slots."""

    tokens: Int[Array, "B T"]
    slots: Int[Array, "B T"]
    latents: Float[Array, "B M D"]
    lengths: Int[Array, "B"]


@typed
def choose(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], rng: Array, sampling: Sampling) -> Int[Array, "B"]:
    """The next token of every row, given which tokens it has generated before."""
    if sampling.repetition_penalty != 1.0:
        penalised = jnp.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = jnp.where(seen, penalised, logits)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / sampling.temperature
    if sampling.top_k:
        floor = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
        floor = jnp.min(jnp.where(before < sampling.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    return jax.random.categorical(rng, logits, axis=-1)


@partial(jax.jit, static_argnames=("config", "room"))
def prefill(params: Params, prompt: Prompt, config: ModelConfig, room: int) -> tuple[Float[Array, "B V"], Cache]:
    """Reads the prompts. Returns the scores of each row's next token and a cache with `room` more positions."""
    rows, length = prompt.tokens.shape
    columns = jnp.broadcast_to(jnp.arange(length), (rows, length))
    places = Places((columns < prompt.lengths[:, None]).astype(jnp.int32), columns)
    cache = empty_cache(rows, length + room)
    hidden, cache = apply(config, params, prompt.tokens, prompt.slots, prompt.latents, places, cache, method=LCLM.decode)
    last = jnp.take_along_axis(hidden, (prompt.lengths - 1)[:, None, None], axis=1)
    return apply(config, params, last, method=LCLM.logits)[:, 0], cache


@partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def decode_step(
    params: Params, tokens: Int[Array, "B"], positions: Int[Array, "B"], cache: Cache, config: ModelConfig
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads one more token of every row and returns the scores of the next."""
    nothing = jnp.zeros((len(tokens), 1, config.decoder.width), params["decoder"]["table"].dtype)
    places = Places(jnp.ones_like(tokens)[:, None], positions[:, None])
    unslotted = jnp.full_like(tokens, -1)[:, None]
    hidden, cache = apply(config, params, tokens[:, None], unslotted, nothing, places, cache, method=LCLM.decode)
    return apply(config, params, hidden, method=LCLM.logits)[:, 0], cache


@partial(jax.jit, static_argnames=("config", "steps", "sampling", "stop"))
def generate_tokens(
    params: Params,
    prompt: Prompt,
    config: ModelConfig,
    steps: int,
    stop: tuple[int, ...],
    rng: Array,
    sampling: Sampling = Sampling(),
) -> tuple[Int[Array, "B steps"], Int[Array, "B"]]:
    """Up to `steps` new tokens a row and how many of them count, a stop token excluded."""
    logits, cache = prefill(params, prompt, config, steps)
    return continue_tokens(params, logits, prompt.lengths, cache, config, steps, stop, rng, sampling)


@partial(jax.jit, static_argnames=("config", "steps", "sampling", "stop"))
def continue_tokens(
    params: Params,
    logits: Float[Array, "B V"],
    lengths: Int[Array, "B"],
    cache: Cache,
    config: ModelConfig,
    steps: int,
    stop: tuple[int, ...],
    rng: Array,
    sampling: Sampling = Sampling(),
) -> tuple[Int[Array, "B steps"], Int[Array, "B"]]:
    """`generate_tokens` after a prefill: from the scores it gave, the prompts' lengths, and the cache with room for `steps`."""
    rows, decoder = len(logits), params["decoder"]
    if platform() == "cpu" and sum(x.nbytes for x in jax.tree.leaves(decoder["layers"])) <= UNSTACKED:
        decoder, cache = unstack(decoder, cache)
        params = {**params, "decoder": decoder}

    def unfinished(carry):
        step, _, _, _, _, _, ended, _ = carry
        return (step < steps) & ~jnp.all(ended)

    def one(carry):
        step, logits, cache, out, counts, seen, ended, rng = carry
        rng, draw = jax.random.split(rng)
        if stop and sampling.min_tokens:
            banned = logits.at[:, jnp.array(stop)].set(-jnp.inf)
            logits = jnp.where(step < sampling.min_tokens, banned, logits)
        token = choose(logits, seen, draw, sampling)
        ended = ended | jnp.isin(token, jnp.array(stop))
        out = jax.lax.dynamic_update_slice_in_dim(out, token[:, None], step, axis=1)
        seen = seen.at[jnp.arange(rows), token].set(True)
        logits, cache = decode_step(params, token, lengths + step, cache, config)
        return step + 1, logits, cache, out, counts + ~ended, seen, ended, rng

    out = jnp.zeros((rows, steps), jnp.int32)
    seen = jnp.zeros((rows, config.decoder.vocab), bool)
    start = (jnp.int32(0), logits, cache, out, jnp.zeros(rows, jnp.int32), seen, jnp.zeros(rows, bool), rng)
    final = jax.lax.while_loop(unfinished, one, start)
    return final[3], final[4]
