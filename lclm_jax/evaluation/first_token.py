"""The calls that lead to the first token of an answer; each waits for its result."""

from dataclasses import dataclass

import jax
import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.data.records import Plain
from lclm_jax.evaluation.timing import timed
from lclm_jax.evaluation.views import View
from lclm_jax.inference.compressor import WINDOWS_AT_ONCE, pass_sizes
from lclm_jax.inference.generation import ROOM
from lclm_jax.inference.generation import prefill as prefill_prompt
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.rendering import PromptRecord
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


@dataclass(frozen=True)
class FirstToken:
    """The logits of the first token of an answer, and the seconds until they were computed."""

    state: PromptState
    compress_seconds: float  # 0 for a context that is read as text
    prefill_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of compression and prefill."""
        return self.compress_seconds + self.prefill_seconds


def prefill(
    model: LanguageModel, latents: Latents | None, text_tokens: np.ndarray, room: int = ROOM
) -> PromptState:
    """Read latents (or None) and text; the cache has room for `room` more tokens.

    Nothing is kept for later prompts, nor taken from earlier ones.
    """
    return prefill_record(
        model, [*([] if latents is None else [latents]), Plain(text_tokens)], room
    )


def prefill_record(model: LanguageModel, record: PromptRecord, room: int = ROOM) -> PromptState:
    """Read a record, as `prefill` does."""
    prompt = model.read([record])
    with jax.set_mesh(model.mesh):
        logits, cache = prefill_prompt(model.weights, prompt, model.config, room)
    return jax.block_until_ready(PromptState(logits, prompt.lengths, cache))


def time_first_token(
    model: LanguageModel,
    view: View,
    context: np.ndarray,
    question: np.ndarray,
    room: int = ROOM,
    windows_at_once: int = WINDOWS_AT_ONCE,
) -> FirstToken:
    """Time the reading of the tokens of a context, as latents or text, and of a question.

    Prefill starts when all latents are computed.
    """
    latents, compressing = None, 0.0
    if view.name == "latents":
        latents, compressing = timed(lambda: compress(model, context, view.ratio, windows_at_once))
    else:
        question = np.concatenate([context, question])
    state, prefilling = timed(lambda: prefill(model, latents, question, room))
    return FirstToken(state, compressing, prefilling)


jax.tree_util.register_dataclass(PromptState, ["logits", "lengths", "cache"], [])
