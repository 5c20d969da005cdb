"""Latent Context Language Models in JAX: read long text as a few latent vectors (arXiv 2606.09659)."""

from lclm_jax.config import Config, ModelConfig
from lclm_jax.config_values import override
from lclm_jax.data.spans import Context
from lclm_jax.language_model import LanguageModel, load
from lclm_jax.latents import Latents
from lclm_jax.sampling import Sampling
from lclm_jax.train import train

__all__ = [
    "Config",
    "Context",
    "LanguageModel",
    "Latents",
    "ModelConfig",
    "Sampling",
    "load",
    "override",
    "train",
]
