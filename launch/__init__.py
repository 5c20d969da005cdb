"""Commands that parse arguments and call the library.

`python -m launch.NAME --help` describes each. `clusters/` has job scripts, `bench/` benchmarks.
"""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m launch.NAME` imports this package before the module NAME
    from launch.starting import watch

    watch()
