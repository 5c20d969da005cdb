"""Conversion between the published Hugging Face layout and our checkpoints, in both directions."""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m convert.NAME` imports this package before the module NAME
    from launch.starting import watch

    watch()
