"""Adds documents to a store until it is killed, or as many as it is asked for.

python -m tests.support.store_writer CHECKPOINT STORE SEED COUNT [BYTES]

BYTES limits the size of every file that is written, as a full disk does.
"""

import resource
import signal
import sys

import numpy as np

from lclm_jax import load
from lclm_jax.errors import UserError
from lclm_jax.inference.store import Store
from tests.support.prose import PROSE


def main():
    checkpoint, directory, seed, count, *limit = sys.argv[1:]
    store = Store(directory, load(checkpoint))
    store.add_text("first", PROSE[:200])  # compiles the programs
    rng = np.random.default_rng(int(seed))
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit[0]), resource.RLIM_INFINITY))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for number in range(int(count)):
        start = int(rng.integers(0, 5000))
        name = f"document {int(rng.integers(0, 6))}"
        try:
            store.add_text(name, PROSE[start : start + int(rng.integers(1, 3000))])
        except UserError as error:
            sys.stdout.write(f"{number}: {error}\n")
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main()
