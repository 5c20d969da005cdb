"""The calls that lead to the first token of an answer; each waits for its result."""

from dataclasses import dataclass

import jax
import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.data.records import Plain
from lclm_jax.inference.compressor import WINDOWS_AT_ONCE, pass_sizes
from lclm_jax.inference.generation import ROOM
from lclm_jax.inference.generation import prefill as prefill_prompt
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from lclm_jax.model.attention import Cache
from lclm_jax.typing import Array


@dataclass(frozen=True)
class PromptState:
    """The decoder's cache and the logits of each row's next token. Decoding consumes it."""

    logits: Array  # [B V]
    lengths: np.ndarray  # [B]
    cache: Cache


def random_tokens(config: ModelConfig, count: int, seed: int = 0) -> np.ndarray:
    """Return tokens [count] that the encoder and the decoder both have."""
    vocab = min(config.decoder.vocab, config.encoder.vocab)
    return np.random.default_rng(seed).integers(0, vocab, count).astype(np.int32)


def compress(
    model: LanguageModel,
    tokens: np.ndarray,
    ratio: int | None = None,
    windows_at_once: int = WINDOWS_AT_ONCE,
) -> Latents:
    """Return the latents of a text, encoded in passes of at most `windows_at_once` windows."""
    latents = model.compressor.compress([tokens], ratio, pass_sizes(windows_at_once))
    return latents.block_until_ready()


def prefill(
    model: LanguageModel, latents: Latents | None, text_tokens: np.ndarray, room: int = ROOM
) -> PromptState:
    """Read latents (or None) and text; the cache has room for `room` more tokens.

    Nothing is kept for later prompts, nor taken from earlier ones.
    """
    record = [*([latents] if latents is not None else []), Plain(text_tokens)]
    prompt = model.read([record])
    with jax.set_mesh(model.mesh):
        logits, cache = prefill_prompt(model.weights, prompt, model.config, room)
    return jax.block_until_ready(PromptState(logits, prompt.lengths, cache))


jax.tree_util.register_dataclass(PromptState, ["logits", "lengths", "cache"], [])
