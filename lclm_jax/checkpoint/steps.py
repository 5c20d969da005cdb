"""Saved steps, written by Orbax: parameters, optimizer state and the position in the data.

A step is saved completely or not at all, as `checkpoints/<step>/`. `model_files.py` writes the
files beside the steps that make a checkpoint directory complete.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from lclm_jax.checkpoint.streaming import SavedTree, saving
from lclm_jax.distributed.processes import gather, is_first, once
from lclm_jax.errors import UserError
from lclm_jax.files.checksums import CHECKSUMS, find_damage, write_checksums
from lclm_jax.files.directories import DirectoryError, check_path, check_writable
from lclm_jax.files.run_layout import DAMAGED, STEPS
from lclm_jax.typing import Params

# Reasons and arrays that an error lists; the rest is counted.
MAX_REASONS = 3
MAX_LISTED_ARRAYS = 20


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, unfinished, or of another shape than asked for."""


@dataclass(frozen=True)
class _PreservationPolicy:
    """Orbax preservation policy: the newest N steps, every k-th, and an explicit set."""

    newest: int
    every: int | None
    always: frozenset[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return, for each checkpoint, True where it is preserved."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        newest = sorted(steps)[-self.newest :]
        return [
            step in newest or step in self.always or bool(self.every and step % self.every == 0)
            for step in steps
        ]


class Checkpoints:
    """The saved steps of one directory.

    Each step holds named trees, `params` always among them, and JSON metadata. Opened with `keep`,
    for writing, it removes what an interrupted save left, and older steps except multiples of
    `keep_every` and those in `always`. Opened without, it removes nothing, so that a run can be
    read while it trains.
    """

    def __init__(
        self,
        directory: str | Path,
        keep: int | None = None,
        keep_every: int | None = None,
        always: Collection[int] = (),
    ):
        check_path(Path(directory).resolve(), "the directory of a checkpoint")
        self.directory = Path(directory).resolve() / STEPS
        policy = None if keep is None else _PreservationPolicy(keep, keep_every, frozenset(always))
        clean = keep is not None
        self._steps = ocp.training.Checkpointer(
            str(self.directory), preservation_policy=policy, cleanup_tmp_directories=clean
        )
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[None] | None = None
        self._save_failed = False

    @property
    def latest(self) -> int | None:
        """The newest saved step, or None."""
        return self._steps.latest.step if self._steps.latest else None

    def metadata(self, step: int) -> dict[str, Any]:
        """Return the metadata that a step was saved with."""
        metadata: Any = self._steps.checkpointables_metadata(step).custom_metadata
        return metadata or {}

    def save(self, step: int, trees: dict[str, Any], metadata: dict[str, Any]):
        """Start to save in the background.

        The next `save`, `check` or `wait` raises CheckpointError if it fails; older steps stay as
        they are. Raises CheckpointError for a step before the newest, which would never be read.
        """
        self.wait()
        if self.latest is not None and step < self.latest:
            raise CheckpointError(
                f"{self.directory} has step {self.latest}, so that step {step} would never be "
                "read; name another directory"
            )
        self.check_writable()
        self._save_failed = False
        try:
            with saving(trees, self.directory):
                self._steps.save_checkpointables_async(
                    step, trees, force=True, overwrite=True, custom_metadata=metadata
                )
        except OSError as error:
            self._save_failed = True
            raise self._failed(error) from error
        self._saving = self._background.submit(self._finish, step)

    def check_writable(self):
        """Raise CheckpointError in all processes unless each can write, where Orbax would hang."""
        try:
            check_writable(self.directory)
            problem = ""
        except DirectoryError as error:
            problem = str(error)
        if problems := [problem for problem in gather(problem) if problem]:
            raise self._failed(problems[0])

    def _finish(self, step: int):
        """Wait until a step is complete, and write its checksums."""
        self._steps.wait()
        if not is_first():
            return
        if problems := _unjoined(self.directory / str(step)):
            raise OSError("; ".join(problems))
        write_checksums(self.directory / str(step))

    def check(self):
        """Raise CheckpointError if the last save has failed, without waiting for it."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self):
        """Wait until everything is on disk."""
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result()
        except Exception as error:  # whatever a storage backend raises, the remedy is the same
            self._save_failed = True
            raise self._failed(error) from error

    def _failed(self, error: Exception | str) -> CheckpointError:
        previous = (
            "There is none before it"
            if self.latest is None
            else f"Step {self.latest} before it is intact"
        )
        return CheckpointError(
            f"could not write a checkpoint to {self.directory}: {error}. {previous}; "
            "free some space, make it writable or set run.directory, then start again to continue "
            "from there"
        )

    def restore(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """Read the trees named in `abstract`, trees of ShapeDtypeStructs with shardings.

        Raises CheckpointError for another shape, and for files that cannot be read.
        """
        self.expect(step, abstract)
        try:
            return self._steps.load_checkpointables(step, abstract)
        # What tensorstore, Orbax and JSON raise for damaged files.
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, reason: object) -> CheckpointError:
        return CheckpointError(
            f"{self.directory}/{step} cannot be read: {reason}; move it away to continue from the "
            "step before it"
        )

    def expect(self, step: int, abstract: dict[str, Any]):
        """Raise CheckpointError unless the step exists and holds these trees, in these shapes."""
        steps = [saved.step for saved in self._steps.checkpoints]
        if step not in steps:
            raise CheckpointError(
                f"{self.directory} has no step {step}; it holds "
                f"{', '.join(map(str, steps)) or 'none'}"
            )
        saved: Any = self._steps.checkpointables_metadata(step).metadata
        for name, tree in abstract.items():
            if name not in saved:
                raise CheckpointError(
                    f"{self.directory}/{step} holds {', '.join(saved)} and no {name}: it is "
                    "not a training run's"
                )
            if saved[name] is None:  # as Orbax reads damaged files
                raise self._unreadable(step, f"its {name} are not whole")
            check_shapes(tree, saved[name], f"{self.directory}/{step}")

    def close(self):
        """Wait for the last save and release Orbax."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            if not self._save_failed:  # otherwise Orbax would raise its error again
                self._steps.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_):
        self.close()


def add_checksums(directory: str | Path) -> list[int]:
    """Write the checksums of finished steps that have none, and return the numbers of the steps.

    A process that is killed between a save and its checksums leaves such a step. Changes to its
    files since then cannot be found.
    """
    directory = Path(directory) / STEPS
    unlisted = [
        step for step in saved_steps(directory) if not (directory / str(step) / CHECKSUMS).exists()
    ]

    def write():
        for step in unlisted:
            write_checksums(directory / str(step))

    once("write checksums", write)
    return unlisted


def _unjoined(step: Path) -> list[str]:
    """Return the trees of a step whose parts, one per process, were never joined."""
    parts = {path.parent for path in step.glob("*/ocdbt.process_*")}
    return [
        f"the parts of its {path.name} were not joined"
        for path in sorted(parts)
        if not (path / "manifest.ocdbt").exists()
    ]


def set_aside_damaged(directory: str | Path) -> list[tuple[int, str]]:
    """Move damaged steps to `damaged/` until the newest step is intact; return (step, reason).

    A step is damaged where its files differ from their checksums. Every process checks a share of
    the files, and all return the same.
    """
    directory = Path(directory)
    damaged = []
    for step in saved_steps(directory / STEPS):
        place = directory / STEPS / str(step)
        own = find_damage(place, jax.process_index(), jax.process_count())
        own += _unjoined(place) if is_first() else []
        messages = gather("\n".join(own))
        reasons = [reason for message in messages for reason in message.split("\n") if reason]
        if not reasons:
            break
        more = f" and {len(reasons) - MAX_REASONS} more" if len(reasons) > MAX_REASONS else ""
        damaged.append((step, ", ".join(reasons[:MAX_REASONS]) + more))
        once("set a damaged checkpoint aside", partial(_set_aside, directory, step))
    return damaged


def saved_steps(directory: Path) -> list[int]:
    """Return the numbers of the finished steps in a directory, newest first."""
    paths = directory.iterdir() if directory.is_dir() else ()
    return sorted((int(path.name) for path in paths if path.name.isdigit()), reverse=True)


def _set_aside(directory: Path, step: int):
    place = directory / DAMAGED
    place.mkdir(exist_ok=True)
    number = next(n for n in itertools.count(1) if not (place / f"{step}.{n}").exists())
    (directory / STEPS / str(step)).rename(place / f"{step}.{number}")


def check_shapes(expected: Any, saved: Any, where: str):
    """Compare the shapes of two trees.

    Raises CheckpointError that lists every array that is missing, unknown or of another shape.
    """

    def shapes(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in leaves
        }

    want, have = shapes(expected), shapes(saved)
    wrong = [
        f"{path}: expected {want[path]}, got {have.get(path, 'nothing')}"
        for path in want
        if want[path] != have.get(path)
    ]
    wrong += [f"{path}: not expected, got {have[path]}" for path in have if path not in want]
    if wrong:
        listed = "\n  ".join(wrong[:MAX_LISTED_ARRAYS])
        raise CheckpointError(
            f"{where} does not fit the config ({len(wrong)} arrays differ):\n  {listed}\n"
            "use its own model.json"
        )


def load_params(directory: str | Path, abstract: Params, step: int | None = None) -> Params:
    """Read parameters of the newest step, or of `step`, as `abstract` has dtypes and shardings."""
    with _opened(directory, step) as (checkpoints, number):
        return checkpoints.restore(number, {"params": abstract})["params"]


def saved_params(directory: str | Path, abstract: Params, step: int | None = None) -> SavedTree:
    """Return the parameters of a step in their saved dtypes, each read from disk when asked for."""
    with _opened(directory, step) as (checkpoints, number):
        checkpoints.expect(number, {"params": abstract})
        return SavedTree(checkpoints.directory / str(number) / "params")


@contextmanager
def _opened(directory: str | Path, step: int | None) -> Iterator[tuple[Checkpoints, int]]:
    """Open the saved steps of a directory, and yield them with `step`, by default the newest."""
    if not (Path(directory) / STEPS).is_dir():
        raise FileNotFoundError(
            f"{directory}/{STEPS}: no saved steps here; expected a training run or a "
            "converted checkpoint"
        )
    with Checkpoints(directory) as checkpoints:
        number = checkpoints.latest if step is None else step
        if number is None:
            raise CheckpointError(
                f"{directory}/{STEPS} holds no finished checkpoint; has a first one been saved?"
            )
        yield checkpoints, number
