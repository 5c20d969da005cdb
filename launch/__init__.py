"""Command lines: each parses its arguments and calls the library."""

import sys

if sys.argv[:1] == ["-m"]:  # python -m launch.NAME, before the module NAME is imported
    from launch.starting import watch

    watch()
