"""A worker or follower of a sweep of counting children, as a process.

python -m tests.support.sweep_worker JSON
"""

import json
import logging
import os
import sys
import time
from pathlib import Path

import tests.support.without_jax  # noqa: F401  # isort: skip
from lclm_jax.sweeps.workers import Follower, Intervals, StopSignal, Worker


def child_command(directory: Path, cells: dict[str, str], cell: str) -> list[str]:
    """Return the command of a child; `cells` has the behaviour in each cell."""
    path = directory / "cells" / cell
    return [sys.executable, "-m", "tests.support.sweep_child", str(path), cells[cell]]


def main():
    os.fsync = lambda descriptor: None  # a busy disk must not make leases stale
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    values = json.loads(sys.argv[1])
    directory, cells, offset = Path(values["directory"]), values["cells"], values["offset"]
    options = values["options"]
    kind = Follower if "host" in options else Worker
    os.environ["SWEEP_HOST"] = str(options.get("host", 0))
    with StopSignal() as stop:
        all_settled = kind(
            directory,
            list(cells),
            lambda cell: child_command(directory, cells, cell),
            intervals=Intervals(**values["intervals"]),
            clock=lambda: time.monotonic() + offset,
            **options,
        ).run(stop)
    assert "jax" not in sys.modules
    sys.exit(0 if all_settled else 3)


if __name__ == "__main__":
    main()
