"""Records: what one training example says, and the arrays it becomes."""

from lclm_jax.data.records.layout import (
    CONTEXT_TAGS,
    Example,
    RecordSize,
    context_positions,
    lay_out,
    measure,
)
from lclm_jax.data.records.sections import Role, Section
from lclm_jax.data.records.spans import Context, Given, Plain, Span, Tokens
from lclm_jax.data.records.views import VIEWS, View
from lclm_jax.data.records.windows import (
    ContextPiece,
    count_latents,
    cut_windows,
    latent_starts,
    split_windows,
)

__all__ = [
    "CONTEXT_TAGS",
    "VIEWS",
    "Context",
    "ContextPiece",
    "Example",
    "Given",
    "Plain",
    "RecordSize",
    "Role",
    "Section",
    "Span",
    "Tokens",
    "View",
    "context_positions",
    "count_latents",
    "cut_windows",
    "latent_starts",
    "lay_out",
    "measure",
    "split_windows",
]
