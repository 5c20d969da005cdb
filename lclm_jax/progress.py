"""Progress bars on stderr, drawn only in a terminal."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressDisplay

T = TypeVar("T")
# A function as `track`: takes items, a label and their count, and yields the items.
Progress = Callable[..., Iterable]


@contextmanager
def progress_bar(
    label: str, total: int | None, done: int = 0, shown: bool = True
) -> Iterator[Callable[[int, str], None]]:
    """Show a bar during the block. Yields `update(done, note)`.

    A total of None shows a bar that only moves.
    """
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    with ProgressDisplay(*columns, console=console, disable=not shown) as display:
        task = display.add_task(label, total=total, completed=done, note="")
        yield lambda done, note="": display.update(task, completed=done, note=note)


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how many have been used; a total of None asks for their length."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with progress_bar(label, total) as update:
        for done, item in enumerate(items, start=1):
            yield item
            update(done, "")


def without_progress(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """Return the items and show nothing: the `Progress` of a silent caller."""
    return items
