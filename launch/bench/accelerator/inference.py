"""Calls of the library's inference that the benchmark times; each waits for its result."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.data.records import Plain
from lclm_jax.inference.generation import (
    DECODE_STEPS,
    Decoding,
    continue_tokens,
    decode_block,
    start_decoding,
)
from lclm_jax.inference.generation import prefill as prefill_prompt
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.sampling import Rules, Sampling
from lclm_jax.model.attention import Cache
from lclm_jax.typing import Array

UNLIMITED_TOKENS = np.int32(2**30)


@dataclass(frozen=True)
class State:
    """The decoder's cache and the logits of each row's next token. Decoding consumes it."""

    scores: Array  # [B V]
    lengths: np.ndarray  # [B]
    cache: Cache


def compress(model: LanguageModel, tokens: np.ndarray, ratio: int | None = None) -> Latents:
    """Return the latents of a text."""
    return model.compress_tokens(tokens, ratio).block_until_ready()


def prefill(
    model: LanguageModel, latents: Latents | None, text_tokens: np.ndarray, room: int
) -> State:
    """Read latents (or None) and text; the cache has room for `room` more tokens."""
    record = [*([latents] if latents is not None else []), Plain(text_tokens)]
    prompt = model.read([record])
    with jax.set_mesh(model.mesh):
        scores, cache = prefill_prompt(model.weights, prompt, model.config, room)
    return jax.block_until_ready(State(scores, prompt.lengths, cache))


def decode(model: LanguageModel, state: State, steps: int) -> np.ndarray:
    """Decode the next tokens [B, steps] greedily."""
    inputs = (state.scores, state.lengths, state.cache, model.config, steps)
    with jax.set_mesh(model.mesh):
        return continue_tokens(model.weights, *inputs)[0]


def state_for_batch(state: State, rows: int) -> State:
    """Repeat a state of one row as that of `rows` equal rows."""

    def repeated(x: Array, axis: int) -> Array:
        return jnp.repeat(x, rows, axis=axis)

    cache = state.cache
    several = replace(
        cache,
        keys=jax.tree.map(lambda x: repeated(x, x.ndim - 4), cache.keys),
        values=jax.tree.map(lambda x: repeated(x, x.ndim - 4), cache.values),
        places=jax.tree.map(lambda x: repeated(x, 0), cache.places),
        end=jnp.copy(cache.end),
    )
    lengths = np.repeat(state.lengths, rows)
    return jax.block_until_ready(State(repeated(state.scores, 0), lengths, several))


def begin_decoding(model: LanguageModel, state: State) -> Decoding:
    """Choose the first token of every row."""
    with jax.set_mesh(model.mesh):
        rules = Rules.of(Sampling())
        lengths = state.lengths.astype(np.int32)
        seeds = np.zeros(len(lengths), np.uint32)
        return start_decoding(state.scores, lengths, state.cache, seeds, rules)


def decode_more(model: LanguageModel, decoding: Decoding) -> tuple[Decoding, int]:
    """Decode a block of tokens of every row; also return the number of tokens per row."""
    with jax.set_mesh(model.mesh):
        inputs = (decoding, UNLIMITED_TOKENS, Rules.of(Sampling()), model.config)
        decoding, *_ = decode_block(model.weights, *inputs)
    return jax.block_until_ready(decoding), DECODE_STEPS


def answer(
    model: LanguageModel, context: np.ndarray, question: np.ndarray, steps: int
) -> np.ndarray:
    """Decode the tokens [1, steps] after a compressed context and a question greedily."""
    return decode(model, prefill(model, compress(model, context), question, steps), steps)


jax.tree_util.register_dataclass(State, ["scores", "lengths", "cache"], [])
