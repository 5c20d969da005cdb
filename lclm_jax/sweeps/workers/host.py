"""The slice that this process runs on, as its environment describes it."""

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """A host of a slice of several."""

    slice_name: str
    index: int  # from 0


def find_host() -> Host | None:
    """Return this host, or None where a slice is one host.

    The slice has the name of the address at which its processes meet. Raises JobError for settings
    that contradict each other.
    """
    # Imports JAX, which nothing else in a worker needs.
    from lclm_jax.distributed.job import find, find_address

    job = find(os.environ)
    if job is None:
        return None
    return Host(re.sub(r"[^\w.-]", "-", find_address(job)), job.process)
