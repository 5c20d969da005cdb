"""Inference: compress text, read prompts, generate and chat."""

from lclm_jax.inference.conversation import Conversation
from lclm_jax.inference.generation import NotFiniteError, generate_tokens
from lclm_jax.inference.language_model import LanguageModel, load
from lclm_jax.inference.latents import Latents, LatentsError
from lclm_jax.inference.prompts import Prompt
from lclm_jax.inference.sampling import GREEDY, Sampling

__all__ = [
    "GREEDY",
    "Conversation",
    "LanguageModel",
    "Latents",
    "LatentsError",
    "NotFiniteError",
    "Prompt",
    "Sampling",
    "generate_tokens",
    "load",
]
