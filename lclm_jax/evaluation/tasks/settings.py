"""Settings that all tasks take, and the choice of their first rows."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lclm_jax.data.text.tokenizer import Tokenizer

Item = TypeVar("Item")


@dataclass(frozen=True)
class TaskSettings:
    """What to read or generate.

    Attributes:
        directory: where the files of published tasks lie, in a folder for each.
        lengths: of passages in tokens, for tasks with rows of several lengths; none means all
            lengths of published rows, and the default ones of generated tasks. Other tasks ignore
            them.
        limit: rows of each task and length, the first ones; None for all.
        seed: of generated tasks.
        tokenizer: counts the tokens of generated tasks.
    """

    directory: Path | None = None
    lengths: Sequence[int] = ()
    limit: int | None = None
    seed: int = 0
    tokenizer: Tokenizer | None = None


def number_rows(
    rows: Iterable[tuple[str, Item]], limit: int | None
) -> Iterator[tuple[str, int, Item]]:
    """Yield the task, the number in its task, and the row, for the first `limit` of each task.

    >>> list(number_rows([("vt", "a"), ("qa", "b"), ("vt", "c"), ("vt", "d")], 2))
    [('vt', 0, 'a'), ('qa', 0, 'b'), ('vt', 1, 'c')]
    """
    counts: Counter[str] = Counter()
    for task, row in rows:
        if limit is None or counts[task] < limit:
            yield task, counts[task], row
        counts[task] += 1
