"""Latent Context Language Models in JAX: long text as a few latent vectors (arXiv 2606.09659)."""

from lclm_jax.config import Config, ModelConfig
from lclm_jax.config.values import override
from lclm_jax.data.records import Context
from lclm_jax.inference.agent import Agent
from lclm_jax.inference.chat import Chat
from lclm_jax.inference.language_model import LanguageModel, load
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.sampling import Sampling
from lclm_jax.inference.store import Store
from lclm_jax.training.loop import train

__all__ = [
    "Agent",
    "Chat",
    "Config",
    "Context",
    "LanguageModel",
    "Latents",
    "ModelConfig",
    "Sampling",
    "Store",
    "load",
    "override",
    "train",
]
