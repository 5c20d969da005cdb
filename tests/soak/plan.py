"""The faults of a soak in order, drawn from a seed and spread over the steps of a run."""

import random
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "kill: starting",
    "kill: in a step",
    "kill: saving",
    "full disk: checkpoint",
    "full disk: log",
    "damaged checkpoint",
    "damaged shard: records",
    "damaged shard: cut short",
    "damaged shard: index",
    "data worker: slow",
    "data worker: dead",
    "data worker: stuck",
    "clock: a day on",
    "clock: a day back",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
KILLS = KINDS[:3]
# Steps left after the last fault, in gaps between faults: no run may end before it is disturbed.
MARGIN = 3


@dataclass(frozen=True)
class Fault:
    """A fault of one child."""

    kind: Kind
    step: int  # of the run, at the earliest
    moment: float  # in [0, 1), drawn: the exact time, byte or batch, as the kind of fault needs


def make_plan(
    seed: int, kills: int, steps: int, others: tuple[Kind, ...] = KINDS[3:]
) -> tuple[Fault, ...]:
    """Plan faults over a run of `steps`: `kills` of every kind in turn, the others once each."""
    rng = random.Random(seed)
    kinds: list[Kind] = [KILLS[(i + 1) % len(KILLS)] for i in range(kills)]
    kinds += others
    rng.shuffle(kinds)
    gap = steps / (len(kinds) + MARGIN)
    return tuple(
        Fault(kind, max(2, round((number + 1) * gap)), rng.random())
        for number, kind in enumerate(kinds)
    )
