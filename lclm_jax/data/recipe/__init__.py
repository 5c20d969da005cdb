"""The training streams of the recipe: from prepared examples to records."""

from lclm_jax.data.recipe.transforms import (
    TRANSFORMS,
    Transform,
    draw_ratios,
    interleaved_record,
    leave_plain,
    read_requests,
    reasoning_record,
    reconstruction_record,
    sft_record,
)

__all__ = [
    "TRANSFORMS",
    "Transform",
    "draw_ratios",
    "interleaved_record",
    "leave_plain",
    "read_requests",
    "reasoning_record",
    "reconstruction_record",
    "sft_record",
]
