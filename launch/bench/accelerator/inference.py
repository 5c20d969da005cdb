"""Every call of the library's inference that the benchmark makes; each waits for its result."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.data.spans import Plain
from lclm_jax.generate import continue_tokens
from lclm_jax.generate import prefill as prefill_prompt
from lclm_jax.language_model import LanguageModel, Latents
from lclm_jax.model.attention import Cache
from lclm_jax.typing import Array


@dataclass(frozen=True)
class State:
    """What the decoder has read, and the scores of each row's next token."""

    scores: Array  # [B V]
    lengths: Array  # [B]
    cache: Cache


def compress(model: LanguageModel, tokens: np.ndarray, ratio: int | None = None) -> Latents:
    """Latents of a text of tokens."""
    latents = model.compress_tokens(tokens, ratio)
    jax.block_until_ready(latents.vectors)
    return latents


def prefill(
    model: LanguageModel, latents: Latents | None, text_tokens: np.ndarray, room: int
) -> State:
    """Reads latents, if there are any, and text; leaves room for so many more tokens."""
    record = [*([latents] if latents is not None else []), Plain(text_tokens)]
    prompt = model.read([record])
    with jax.set_mesh(model.mesh):
        scores, cache = prefill_prompt(model.params, prompt, model.config, room)
    return jax.block_until_ready(State(scores, jnp.asarray(prompt.lengths), cache))


def decode(model: LanguageModel, state: State, steps: int) -> np.ndarray:
    """The most likely next tokens [B, steps], one after the other. The state may be used again."""
    rng = jax.random.key(0)
    with jax.set_mesh(model.mesh):
        tokens, _ = continue_tokens(
            model.params,
            state.scores,
            state.lengths,
            state.cache,
            model.config,
            steps,
            (),
            rng,
        )
    return np.asarray(tokens)


def state_for_batch(state: State, rows: int) -> State:
    """A state of one row as that of many equal rows."""

    def repeated(x: Array, axis: int) -> Array:
        return jnp.repeat(x, rows, axis=axis)

    cache = state.cache
    several = replace(
        cache,
        keys=repeated(cache.keys, 1),
        values=repeated(cache.values, 1),
        places=jax.tree.map(lambda x: repeated(x, 0), cache.places),
    )
    return jax.block_until_ready(
        State(repeated(state.scores, 0), repeated(state.lengths, 0), several)
    )


def answer(
    model: LanguageModel, context: np.ndarray, question: np.ndarray, steps: int
) -> np.ndarray:
    """The most likely tokens [1, steps] after a compressed context and a question."""
    return decode(model, prefill(model, compress(model, context), question, steps), steps)


jax.tree_util.register_dataclass(State, ["scores", "lengths", "cache"], [])
