"""Settings that all tasks take, and the choice of their rows."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lclm_jax.data.text.tokenizer import Tokenizer

Item = TypeVar("Item")


@dataclass(frozen=True)
class TaskSettings:
    """Settings of what to read or generate.

    Attributes:
        directory: where the files of published tasks lie, in a folder for each.
        lengths: of passages in tokens, for tasks with rows of several lengths; none means all
            lengths of published rows, and the default ones of generated tasks. Other tasks ignore
            them.
        limit: rows of each task and length, the first ones, or the first of each document in turn
            where many ask about one; None for all.
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


def spread_rows(
    rows: Iterable[tuple[str, Item]], limit: int | None, document: Callable[[Item], Hashable]
) -> list[tuple[str, int, Item]]:
    """Return rows as `number_rows` does, but `limit` of them from all documents in turn.

    The first rows of a file may all be about one document, whose intervals say nothing of others.
    Rows have the same number whatever the limit is.

    >>> rows = [("vt", "a1"), ("vt", "a2"), ("vt", "a3"), ("vt", "b1")]
    >>> spread_rows(rows, 2, document=lambda row: row[0])
    [('vt', 0, 'a1'), ('vt', 3, 'b1')]
    """
    numbered = list(number_rows(rows, None))
    if limit is None:
        return numbered
    counts: Counter[Hashable] = Counter()
    ranks: dict[str, list[tuple[int, int]]] = {}  # place in the document, and number
    for task, number, row in numbered:
        place = (task, document(row))
        ranks.setdefault(task, []).append((counts[place], number))
        counts[place] += 1
    chosen = {
        task: {number for _, number in sorted(pairs)[:limit]} for task, pairs in ranks.items()
    }
    return [(task, number, row) for task, number, row in numbered if number in chosen[task]]
