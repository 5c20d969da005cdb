"""Settings of a model, its data and a run: dataclasses, their ranges, and values as text."""

from lclm_jax.config.schema import (
    AdapterConfig,
    CompressionConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    ParameterGroup,
    Recipe,
    RunConfig,
    Source,
    StageConfig,
    Stream,
    TransformerConfig,
)
from lclm_jax.errors import ConfigError

__all__ = [
    "AdapterConfig",
    "CompressionConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParameterGroup",
    "Recipe",
    "RunConfig",
    "Source",
    "StageConfig",
    "Stream",
    "TransformerConfig",
]
