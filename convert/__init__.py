"""Conversion between the published Hugging Face layout and checkpoints of lclm_jax.

Commands: `from_hf` and `to_hf` convert, `from_towers` builds an untrained model from two base
models, and `verify` proves that a conversion lost nothing. `convert.hf` has the published format.
"""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m convert.NAME` imports this package before the module NAME
    from launch.starting import watch

    watch()
