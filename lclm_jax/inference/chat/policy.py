"""The choice of messages that become latents: a pure function that users can replace."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["plain", "latents", "forgotten"]
LEVELS: tuple[Level, ...] = ("plain", "latents", "forgotten")  # none goes back to one before
KEPT_TURNS = 2  # the last turns stay plain
KEPT_RESULTS = 2  # so do the last results of tools


@dataclass(frozen=True)
class MessageSize:
    """Role, turn, level and sizes of a message, for a policy.

    Attributes:
        role: system, user, assistant or tool.
        turn: number of its turn: a message of the user and all up to the next one.
        level: how it is in the prompt now.
        plain: its tokens.
        latents: their number, if it were compressed.
    """

    role: str
    turn: int
    level: Level
    plain: int
    latents: int


# `policy(sizes, wanted)` returns the new level of each message, and none goes back. It frees about
# `wanted` positions, so that the next turns need no change and read only what they add. It is
# called until the prompt fits its budget.
Policy = Callable[[Sequence[MessageSize], int], Sequence[Level]]


def compress_oldest(sizes: Sequence[MessageSize], wanted: int) -> list[Level]:
    """Compress old results of tools, then old turns, then old steps of the last turns.

    Once all of these are latents, the oldest turns are forgotten, then the oldest steps. System
    messages, what users say in the last turns, and the last results of tools stay plain.

    >>> sizes = [MessageSize("user", turn, "plain", 160, 10) for turn in range(5)]
    >>> compress_oldest(sizes, 200)
    ['latents', 'latents', 'plain', 'plain', 'plain']
    """
    levels: list[Level] = [size.level for size in sizes]
    compressible = _compressible(sizes)
    freed = 0
    for number in compressible or _forgettable(sizes):
        if freed >= wanted:
            break
        size = sizes[number]
        levels[number] = "latents" if compressible else "forgotten"
        freed += size.plain - size.latents if compressible else size.latents
    return levels


def _compressible(sizes: Sequence[MessageSize]) -> list[int]:
    """Return the plain messages that may become latents, those first that are missed least."""
    last = sizes[-1].turn if sizes else 0
    all_results = [n for n, size in enumerate(sizes) if size.role == "tool"]
    results = all_results[:-KEPT_RESULTS]
    others = [n for n, size in enumerate(sizes) if size.role not in ("system", "tool")]
    old_turns = [n for n in others if sizes[n].turn <= last - KEPT_TURNS]
    old_results = [n for n in all_results if sizes[n].turn <= last - KEPT_TURNS]
    # A step is a call with its results; that of the first result that is kept stays.
    steps = [n for n in others if sizes[n].role == "assistant" and results and n < results[-1]]
    order = dict.fromkeys([*results, *sorted([*old_turns, *old_results]), *steps])
    return [number for number in order if sizes[number].level == "plain"]


def _forgettable(sizes: Sequence[MessageSize]) -> list[int]:
    """Return the messages that may be forgotten, the oldest first.

    They are turns of which everything is latents, and the first steps of other turns.
    """
    forgettable: list[int] = []
    blocked = -1  # turn whose further messages stay
    for number, size in enumerate(sizes):
        if size.level == "latents" and size.turn != blocked:
            forgettable.append(number)
        elif size.level == "plain" and size.role not in ("system", "user"):
            blocked = size.turn
    return forgettable
