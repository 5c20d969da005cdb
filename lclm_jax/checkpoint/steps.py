"""Checkpoints with Orbax: parameters, optimizer state, and the position in the data, saved together or not at all.

A checkpoint directory is complete in itself: `model.json` (the ModelConfig), `tokenizer/`, `checkpoints/<step>/`.
"""

import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from lclm_jax.checkpoint.streaming import SavedTree, saving
from lclm_jax.config import ModelConfig
from lclm_jax.config.values import differences, from_dict, to_dict
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.distributed.processes import gather, is_first, once
from lclm_jax.errors import FileError, UserError
from lclm_jax.files.atomic import write_whole
from lclm_jax.files.checksums import CHECKSUMS, find_damage, write_checksums
from lclm_jax.files.directories import DirectoryError, check_path, check_writable, locked
from lclm_jax.files.reading import read_json
from lclm_jax.typing import Params

STEPS = "checkpoints"
RUN_FILES = ("config.json", "tokenizer", STEPS)  # which a run writes after its model.json


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, unfinished, or of another shape than asked for."""


@dataclass(frozen=True)
class _Kept:
    """Which steps stay: the newest, every so many, and some always; what Orbax calls a preservation policy."""

    newest: int
    every: int | None
    always: frozenset[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [one.step for one in checkpoints]
        newest = sorted(steps)[-self.newest :]
        return [
            step in newest or step in self.always or bool(self.every and step % self.every == 0)
            for step in steps
        ]


class Checkpoints:
    """The saved steps of one directory. Each holds named trees, `params` always among them, and JSON metadata.

    Opened with `keep`, for writing, it removes older steps but multiples of `keep_every` and those `always` kept, and what an
    interrupted save left; without, it removes nothing, so that a run can be read while it trains.
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
        policy = None if keep is None else _Kept(keep, keep_every, frozenset(always))
        clean = keep is not None
        self._steps = ocp.training.Checkpointer(
            self.directory, preservation_policy=policy, cleanup_tmp_directories=clean
        )
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[None] | None = None
        self._save_failed = False

    @property
    def latest(self) -> int | None:
        return self._steps.latest.step if self._steps.latest else None

    def metadata(self, step: int) -> dict[str, Any]:
        found: Any = self._steps.checkpointables_metadata(step).custom_metadata
        return found or {}

    def save(self, step: int, trees: dict[str, Any], metadata: dict[str, Any]):
        """Begins to save in the background; older steps stay good.

        The next `save`, `check` or `wait` raises CheckpointError if it fails. So does this for a
        step before the newest, which nobody would read.
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
        """Raises CheckpointError in all processes unless each can write; Orbax would hang."""
        try:
            check_writable(self.directory)
            problem = ""
        except DirectoryError as error:
            problem = str(error)
        if problems := [problem for problem in gather(problem) if problem]:
            raise self._failed(problems[0])

    def _finish(self, step: int):
        """Waits until a step is whole, and writes its checksums."""
        self._steps.wait()
        if not is_first():
            return
        if problems := _unjoined(self.directory / str(step)):
            raise OSError("; ".join(problems))
        write_checksums(self.directory / str(step))

    def check(self):
        """Raises CheckpointError if the last save has failed; waits for nothing."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self):
        """Returns when everything is on disk."""
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result()
        except Exception as error:  # whatever a storage backend raises, the remedy is the same
            self._save_failed = True
            raise self._failed(error) from error

    def _failed(self, error: Exception | str) -> CheckpointError:
        before = (
            "There is none before it"
            if self.latest is None
            else f"Step {self.latest} before it is intact"
        )
        return CheckpointError(
            f"could not write a checkpoint to {self.directory}: {error}. {before}; "
            "free some space, make it writable or set run.directory, then start again to continue "
            "from there"
        )

    def restore(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """The trees named in `abstract` (of ShapeDtypeStructs with shardings).

        Raises CheckpointError on another shape, and on files that cannot be read.
        """
        self.expect(step, abstract)
        try:
            return self._steps.load_checkpointables(step, abstract)
        except (
            OSError,
            ValueError,
            KeyError,
        ) as error:  # of damaged files: tensorstore's, Orbax', and JSON's
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, reason: object) -> CheckpointError:
        told = f"{self.directory}/{step} cannot be read: {reason}"
        return CheckpointError(f"{told}; move it away to continue from the step before it")

    def expect(self, step: int, abstract: dict[str, Any]):
        """Raises CheckpointError unless the step is there and holds these trees, in these shapes."""
        steps = [saved.step for saved in self._steps.checkpoints]
        if step not in steps:
            raise CheckpointError(
                f"{self.directory} has no step {step}; it holds {', '.join(map(str, steps)) or 'none'}"
            )
        saved: Any = self._steps.checkpointables_metadata(step).metadata
        for name, tree in abstract.items():
            if name not in saved:
                raise CheckpointError(
                    f"{self.directory}/{step} holds {', '.join(saved)} and no {name}: it is not a training run's"
                )
            if saved[name] is None:  # what Orbax makes of files that are not what they should be
                raise self._unreadable(step, f"its {name} are not whole")
            check_shapes(tree, saved[name], f"{self.directory}/{step}")

    def close(self):
        try:
            self.wait()
        finally:
            self._background.shutdown()
            if not self._save_failed:  # else Orbax would raise its error once more
                self._steps.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_):
        self.close()


def add_checksums(directory: str | Path) -> list[int]:
    """Writes the checksums of finished steps without any and returns their numbers.

    A process that is killed between the two leaves such a step; whether a file of it was changed
    since cannot be known.
    """
    directory = Path(directory) / STEPS
    found = [
        step for step in saved_steps(directory) if not (directory / str(step) / CHECKSUMS).exists()
    ]

    def write():
        for step in found:
            write_checksums(directory / str(step))

    once("write checksums", write)
    return found


def _unjoined(step: Path) -> list[str]:
    """Names the trees of a step of which every process wrote a part and nobody joined them."""
    parts = {path.parent for path in step.glob("*/ocdbt.process_*")}
    return [
        f"the parts of its {path.name} were not joined"
        for path in sorted(parts)
        if not (path / "manifest.ocdbt").exists()
    ]


def set_aside_damaged(directory: str | Path) -> list[tuple[int, str]]:
    """Moves saved steps that are not as they were written out of the way, and says which and why, until the newest is good.

    They go to `damaged/` beside the steps, so that nothing is lost. All processes look, each at a share of the files.
    """
    directory = Path(directory)
    found = []
    for step in saved_steps(directory / STEPS):
        place = directory / STEPS / str(step)
        own = find_damage(place, jax.process_index(), jax.process_count())
        own += _unjoined(place) if is_first() else []
        reasons = [reason for said in gather("\n".join(own)) if said for reason in said.split("\n")]
        if not reasons:
            break
        more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        found.append((step, ", ".join(reasons[:3]) + more))
        once("set a damaged checkpoint aside", partial(_set_aside, directory, step))
    return found


def saved_steps(directory: Path) -> list[int]:
    """The numbers of a directory's finished steps, the newest first."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted((int(path.name) for path in found if path.name.isdigit()), reverse=True)


def _set_aside(directory: Path, step: int):
    place = directory / "damaged"
    place.mkdir(exist_ok=True)
    number = next(n for n in itertools.count(1) if not (place / f"{step}.{n}").exists())
    (directory / STEPS / str(step)).rename(place / f"{step}.{number}")


def check_shapes(expected: Any, saved: Any, where: str):
    """Raises CheckpointError that lists every array missing from, unknown to or of another shape than `expected`."""

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
        listed = "\n  ".join(wrong[:20])
        raise CheckpointError(
            f"{where} does not fit the config ({len(wrong)} arrays differ):\n  {listed}\nuse its own model.json"
        )


def check_model_files(directory: str | Path, config: ModelConfig, tokenizer: Tokenizer):
    """Raises CheckpointError when a directory is no run's, or one of another model or tokenizer."""
    directory = Path(directory)
    if not (directory / "model.json").exists():
        names = [name for name in RUN_FILES if (directory / name).exists()]
        if names:
            raise CheckpointError(
                f"{directory} holds {', '.join(names)} and no model.json, so it is no training "
                "run; set run.directory to a new place"
            )
        return
    if not (directory / STEPS).exists():
        return
    saved, its_tokenizer = read_model_files(directory)
    saved = replace(saved, dtype=config.dtype, remat=config.remat)
    if changed := differences(to_dict(saved), to_dict(config)):
        parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in changed))
        listed = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in changed.items())
        raise CheckpointError(
            f"{directory} holds another model (model.json differs in {parts}): {listed}; "
            "set run.directory to a new place, or the model as it was"
        )
    if its_tokenizer.definition != tokenizer.definition:
        raise CheckpointError(
            f"{directory} holds a model with another tokenizer; expected the one in "
            f"{directory}/tokenizer. Set run.directory to a new place, or data.directory to the "
            "data this model was trained on"
        )


def write_model_files(directory: str | Path, config: ModelConfig, tokenizer: Tokenizer):
    """Writes beside the steps what is needed to read them, after `check_model_files`."""
    check_model_files(directory, config, tokenizer)
    write_config(directory, config)
    tokenizer.save(Path(directory) / "tokenizer")


def write_config(directory: str | Path, config: ModelConfig):
    write_whole(Path(directory) / "model.json", json.dumps(to_dict(config), indent=2))


def read_model_files(directory: str | Path) -> tuple[ModelConfig, Tokenizer]:
    return read_model(directory), Tokenizer.load(Path(directory) / "tokenizer")


def read_model(directory: str | Path) -> ModelConfig:
    file = Path(directory) / "model.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{file}: not a checkpoint; expected a directory with model.json, tokenizer/ and {STEPS}/"
        )
    try:
        return from_dict(ModelConfig, read_json(file))
    except FileError as error:
        raise CheckpointError(f"{file} is not a model's: {error}") from error


def save_model(directory: str | Path, config: ModelConfig, tokenizer: Tokenizer, params: Params):
    """Writes a model without training state, as step 0."""
    check_path(directory, "the directory of a checkpoint")
    with locked(directory):
        write_model_files(directory, config, tokenizer)
        with Checkpoints(directory, keep=1) as checkpoints:
            checkpoints.save(0, {"params": params}, {})


def save_streamed(directory: str | Path, config: ModelConfig, params: Params):
    """`save_model` for parameters that are read while they are written (a tree of `streaming.Streamed`); no tokenizer."""
    write_config(directory, config)
    with Checkpoints(directory, keep=1) as checkpoints:
        checkpoints.save(0, {"params": params}, {})


def load_params(directory: str | Path, abstract: Params, step: int | None = None) -> Params:
    """Parameters of the newest step, or of `step`, in the dtypes and shardings of `abstract`."""
    with _opened(directory, step) as (checkpoints, found):
        return checkpoints.restore(found, {"params": abstract})["params"]


def saved_params(directory: str | Path, abstract: Params, step: int | None = None) -> SavedTree:
    """The same parameters unread, in their saved dtypes: each is read from disk when asked for."""
    with _opened(directory, step) as (checkpoints, found):
        checkpoints.expect(found, {"params": abstract})
        return SavedTree(checkpoints.directory / str(found) / "params")


@contextmanager
def _opened(directory: str | Path, step: int | None) -> Iterator[tuple[Checkpoints, int]]:
    """The saved steps of a directory, and the newest of them unless one is named."""
    if not (Path(directory) / STEPS).is_dir():
        raise FileNotFoundError(
            f"{directory}/{STEPS}: no saved steps here; expected a training run or a converted checkpoint"
        )
    with Checkpoints(directory) as checkpoints:
        found = checkpoints.latest if step is None else step
        if found is None:
            raise CheckpointError(
                f"{directory}/{STEPS} holds no finished checkpoint; has a first one been saved?"
            )
        yield checkpoints, found
