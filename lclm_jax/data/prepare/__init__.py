"""Preparation: input files are read, checked, tokenized and written as shards with a manifest."""

from lclm_jax.data.prepare.find_inputs import find_inputs
from lclm_jax.data.prepare.run import prepare
from lclm_jax.data.prepare.summary import describe_output, summary_table

__all__ = ["describe_output", "find_inputs", "prepare", "summary_table"]
