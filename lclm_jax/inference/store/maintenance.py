"""Verification of a store, and removal of what no document needs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lclm_jax.inference.store.documents import read_index, read_text, read_windows
from lclm_jax.inference.store.entries import Entry
from lclm_jax.inference.store.objects import Objects, StoreError
from lclm_jax.progress import Progress

PREFIXES = ("windows/", "texts/", "indexes/")
UNFINISHED = ".__lock"  # suffix of TensorStore's files under way; a killed process leaves its last
CHECKED_AT_ONCE = 256  # windows


@dataclass(frozen=True)
class Cleaned:
    """Objects and unfinished files that were removed, and objects that are needed."""

    removed: int
    unfinished: int
    needed: int


def find_damage(objects: Objects, progress: Progress) -> list[str]:
    """Return a line for every object of a document that is missing or damaged."""
    problems, keys = [], set()
    for key in progress(objects.list("documents/"), "documents"):
        (value,) = objects.read([key])
        if value is None:  # just removed
            continue
        try:
            entry = Entry.from_bytes(value)
            read_text(objects, entry)
            keys.update(read_index(objects, entry).keys)
        except StoreError as error:
            problems.append(f"{key}: {error}")
    for batch in progress(list(_batches(sorted(keys))), f"{len(keys)} windows"):
        windows = read_windows(objects, batch)
        problems += [
            f"{key} is missing or damaged" for key, window in windows.items() if window is None
        ]
    return problems


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), CHECKED_AT_ONCE):
        yield keys[start : start + CHECKED_AT_ONCE]


def clean_up(objects: Objects, entries: Sequence[Entry], progress: Progress) -> Cleaned:
    """Remove every object that no entry needs, and what killed processes left unfinished."""
    needed: set[str] = set()
    for entry in progress(entries, "documents"):
        needed.update((f"texts/{entry.text}", f"indexes/{entry.index}"))
        needed.update(read_index(objects, entry).keys)
    kept = [key for prefix in PREFIXES for key in objects.list(prefix)]
    unused = [key for key in kept if key not in needed]
    for batch in progress(list(_batches(unused)), f"removing {len(unused)} objects"):
        objects.remove(batch)
    unfinished = [Path(path) for path in objects.directory.rglob(f"*{UNFINISHED}")]
    for path in unfinished:
        path.unlink(missing_ok=True)
    return Cleaned(len(unused), len(unfinished), len(kept) - len(unused))
