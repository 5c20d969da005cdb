"""Rows of a dataset to raw examples, whatever their fields are called."""

from lclm_jax.data.rows.field_names import SPLIT_GROUP_FIELD, list_ignored_fields, usable_fields
from lclm_jax.data.rows.raw_examples import (
    RawExample,
    example_text,
    read_raw_examples,
    tokenize_example,
)
from lclm_jax.data.rows.row_errors import RowError

__all__ = [
    "SPLIT_GROUP_FIELD",
    "RawExample",
    "RowError",
    "example_text",
    "list_ignored_fields",
    "read_raw_examples",
    "tokenize_example",
    "usable_fields",
]
