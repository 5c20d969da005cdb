"""Failed attempts to train a cell: those that ended without a result, and those never released."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lclm_jax.sweeps.workers import shared_directory
from lclm_jax.sweeps.workers.layout import FAILURE
from lclm_jax.sweeps.workers.leases import lease_path, newest_generation, parse_lease


@dataclass(frozen=True)
class Failure:
    """A failed attempt to train a cell."""

    generation: int  # of the attempt's lease
    host: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the failure's JSON."""
        return asdict(self)


def read_failures(cell: Path, names: Iterable[str]) -> tuple[Failure, ...]:
    """Return the failed attempts among the leases of a cell, given the names in its directory.

    An owner that was never heard of again failed, too, or a cell that takes down its machine would
    be tried for ever; one that had been asked to stop did not.
    """
    failures, newest = [], newest_generation(names)
    for generation in range(1, newest + 1):
        lease = parse_lease(shared_directory.read(lease_path(cell, generation)))
        if lease is None:
            if generation < newest:
                failures.append(Failure(generation, "", "its lease cannot be read"))
        elif lease.state == "failed":
            failures.append(Failure(generation, lease.host, lease.reason))
        elif lease.state == "running" and generation < newest:
            reason = f"worker {lease.pid} on {lease.host} gave no sign of life"
            failures.append(Failure(generation, lease.host, reason))
    return tuple(failures)


def give_up(cell: Path, failures: Iterable[Failure]):
    """Write why a cell will not be tried again.

    To try it once more, remove this file and the leases beside it.
    """
    values = {"cell": cell.name, "attempts": [failure.to_dict() for failure in failures]}
    shared_directory.create(cell / FAILURE, json.dumps(values, indent=1))
