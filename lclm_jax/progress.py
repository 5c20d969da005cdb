"""Progress bars: one for training steps, one for anything iterated over. On stderr; quiet where there is no terminal."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


@contextmanager
def progress_bar(
    label: str, total: int, done: int = 0, shown: bool = True
) -> Iterator[Callable[[int, str], None]]:
    """Yields `show(done, note)`."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bars:
        task = bars.add_task(label, total=total, completed=done, note="")
        yield lambda done, note="": bars.update(task, completed=done, note=note)


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar."""
    with progress_bar(label, total or (len(items) if hasattr(items, "__len__") else None)) as show:  # type: ignore[arg-type]
        for done, item in enumerate(items, start=1):
            yield item
            show(done, "")
