"""Decoding calls that the benchmark times; each waits for its result."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.evaluation.first_token import PromptState, compress, prefill
from lclm_jax.inference.generation import (
    DECODE_STEPS,
    Decoding,
    continue_tokens,
    decode_block,
    start_decoding,
)
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.sampling import Rules, Sampling
from lclm_jax.typing import Array

UNLIMITED_TOKENS = np.int32(2**30)


def decode(model: LanguageModel, state: PromptState, steps: int) -> np.ndarray:
    """Decode the next tokens [B, steps] greedily."""
    inputs = (state.logits, state.lengths, state.cache, model.config, steps)
    with jax.set_mesh(model.mesh):
        return continue_tokens(model.weights, *inputs)[0]


def state_for_batch(state: PromptState, rows: int) -> PromptState:
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
    return jax.block_until_ready(PromptState(repeated(state.logits, 0), lengths, several))


def begin_decoding(model: LanguageModel, state: PromptState) -> Decoding:
    """Choose the first token of every row."""
    with jax.set_mesh(model.mesh):
        rules = Rules.of(Sampling())
        lengths = state.lengths.astype(np.int32)
        seeds = np.zeros(len(lengths), np.uint32)
        return start_decoding(state.logits, lengths, state.cache, seeds, rules)


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
