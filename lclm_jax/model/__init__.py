"""The model: how contexts become latents, what the decoder reads, its loss and its parameters."""

from lclm_jax.model.lclm import LCLM, apply, cast, output_table
from lclm_jax.model.loss import cross_entropy
from lclm_jax.model.params import (
    abstract_params,
    component,
    count_parameters,
    flatten,
    init_params,
    unflatten,
)

__all__ = [
    "LCLM",
    "abstract_params",
    "apply",
    "cast",
    "component",
    "count_parameters",
    "cross_entropy",
    "flatten",
    "init_params",
    "output_table",
    "unflatten",
]
