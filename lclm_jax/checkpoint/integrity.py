"""Compares the files of prepared data, or of a run's checkpoints, with their checksums.

Both kinds of directory are checked by one command, so this module imports the names and the
readers of prepared data (data.prepare, data.loading) beside those of saved steps.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lclm_jax.checkpoint.steps import saved_steps
from lclm_jax.data.loading import listed_files
from lclm_jax.data.shards import MANIFEST
from lclm_jax.errors import UserError
from lclm_jax.files.checksums import CHECKSUMS, FileChecksum, check_files, read_checksums
from lclm_jax.files.run_layout import STEPS

MAX_LISTED_PROBLEMS = 20


class IntegrityError(UserError):
    """Files that are missing or changed, each with its name."""


@dataclass(frozen=True)
class Verified:
    """The result of a comparison without differences."""

    files: int  # files compared
    unlisted: tuple[str, ...]  # saved steps without checksums, which were not compared


def verify(directory: Path, progress: Callable[..., Iterable]) -> Verified:
    """Compare every file of a directory with its sha256.

    `progress` is as `lclm_jax.progress.track`. Raises IntegrityError that names the files that
    differ, or where there is nothing to compare.
    """
    steps = [directory / STEPS / str(step) for step in saved_steps(directory / STEPS)]
    unlisted = tuple(step.name for step in steps if not (step / CHECKSUMS).exists())
    if not steps and not (directory / MANIFEST).exists():
        raise IntegrityError(f"{directory} holds neither prepared data nor saved steps")
    listed, problems = [], []
    for step in steps:
        try:
            listed += read_checksums(step) if step.name not in unlisted else []
        except ValueError as error:
            problems.append(f"{step.relative_to(directory)}: {error}")
    listed += listed_files(directory) if (directory / MANIFEST).exists() else []
    problems += _differing(directory, listed, progress)
    if problems:
        shown = "\n  ".join(problems[:MAX_LISTED_PROBLEMS])
        raise IntegrityError(
            f"{len(problems)} files in {directory} are not as they were written:\n  {shown}\n"
            "bring them back, prepare again, or move a damaged step away to go on from the last"
        )
    return Verified(len(listed), unlisted)


def _differing(
    directory: Path, listed: list[FileChecksum], progress: Callable[..., Iterable]
) -> Iterator[str]:
    """Yield a line for every file that is missing or changed."""
    for path, problem in progress(check_files(listed), "verifying", len(listed)):
        if problem:
            yield f"{path.parent.relative_to(directory)}/{problem}".removeprefix("./")
