"""Results of an evaluation: a file with every sample, and the tables and means made from it."""

import json
import logging
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lclm_jax.errors import FileError
from lclm_jax.evaluation.samples import Sample
from lclm_jax.evaluation.statistics import Difference, Mean, PairingError, paired_difference
from lclm_jax.files import read_json, read_text, write_whole
from lclm_jax.version import code_version

log = logging.getLogger(__name__)
FILE_NAME = "results.json"
FORMAT = "lclm_jax evaluation, version 1"
EFFICIENCY_FILE = "efficiency.jsonl"
EFFICIENCY_KEY = ("view", "length", "device", "source")  # of an entry
PROTOCOL = ("question_tokens", "warm_ups", "repeats", "windows_at_once")  # of an entry, or None
BASELINE = "text"  # label of the view that others are compared with
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "transformers", "lm_eval")


@dataclass(frozen=True)
class Row:
    """Scores of one view in one task, or the macro mean of several tasks of a family.

    Attributes:
        family: name of the family of tasks.
        tasks: the task, or all tasks that the row averages, each with the same weight.
        length: tokens of the passage that were asked for; None for tasks without lengths.
        view: label of the view.
        score: mean of the task's own metric.
        positions: mean length of the decoder's prompt.
        is_share: whether all scores of the task lie between 0 and 1, in every view.
        difference: score less that of the baseline; None where the questions differ.
    """

    family: str
    tasks: tuple[str, ...]
    length: int | None
    view: str
    score: Mean
    positions: float
    is_share: bool
    difference: Difference | None = None

    @property
    def name(self) -> str:
        """Name for tables: of the task without its length, or of the mean over tasks."""
        if len(self.tasks) == 1:
            return self.tasks[0].removesuffix(f"@{self.length}")
        return f"{self.family}, mean of {len(self.tasks)}"


@dataclass(frozen=True)
class Results:
    """All that an evaluation measured.

    Attributes:
        settings: of the evaluation, in JSON; `command` is the line that repeats it.
        versions: of the packages, the code and Python, and the device (`read_versions`).
        samples: every answer in every view.
        efficiency: measurements, each with `view`, `length` (tokens), `first_token_seconds`,
            `peak_bytes`, `device` and `source` ("measured" or "compiler"), as in `read_efficiency`;
            and `family` where a question of it was measured, not random tokens.
    """

    settings: Mapping[str, Any]
    versions: Mapping[str, Any]
    samples: Sequence[Sample]
    efficiency: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def write(self, directory: str | Path) -> Path:
        """Write results.json, one sample a line, and return its path.

        The file appears complete or not at all. Numbers that are not finite become null.
        """
        path = Path(directory) / FILE_NAME
        head = {
            "format": FORMAT,
            "settings": self.settings,
            "versions": self.versions,
            "efficiency": self.efficiency,
        }
        fields = [f"{json.dumps(name)}: {_to_json(value)}" for name, value in head.items()]
        samples = ",\n".join(_to_json(sample.to_dict()) for sample in self.samples)
        write_whole(path, "{" + ",\n".join(fields) + f',\n"samples": [\n{samples}\n]}}\n')
        return path

    @classmethod
    def read(cls, path: str | Path) -> "Results":
        """Return the results in a file, or in the results.json of a directory.

        Raises FileNotFoundError where there is none, FileError for a file that was cut off or that
        is something else.
        """
        path = Path(path)
        if path.is_dir():
            path = path / FILE_NAME
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: no such file; expected the results of an evaluation, or their directory"
            )
        values = read_json(path)
        if values.get("format") != FORMAT:
            raise FileError(
                f"{path}: expected results with format {FORMAT!r}, got {values.get('format')!r}"
            )
        try:
            samples = [_read_sample(sample) for sample in values["samples"]]
            efficiency = [_read_measurement(entry) for entry in values["efficiency"]]
            return cls({**values["settings"]}, {**values["versions"]}, samples, efficiency)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(
                f"{path}: expected results as an evaluation writes them, got "
                f"{type(error).__name__}: {error}; copy the file or evaluate again"
            ) from error

    @cached_property
    def views(self) -> list[str]:
        """Labels of all views, in the order of their first sample."""
        return list(dict.fromkeys(sample.view for sample in self.samples))

    @cached_property
    def families(self) -> list[str]:
        """Names of all families of tasks, in the order of their first sample."""
        return list(dict.fromkeys(sample.family for sample in self.samples))

    def tables(self, baseline: str | None = BASELINE) -> list[Row]:
        """Return a row for every family, length, task and view, in this order.

        Each has its difference from the view `baseline`, which takes a bootstrap; None leaves the
        differences out.
        """
        shares = find_share_tasks(self.samples)
        return [
            Row(
                samples[0].family,
                (task,),
                length,
                view,
                Mean.of_samples(samples),
                sum(sample.positions for sample in samples) / len(samples),
                task in shares,
                self.difference(view, baseline, length, [task]),
            )
            for (task, length, view), samples in self._cells.items()
        ]

    def family_rows(self, baseline: str | None = BASELINE) -> list[Row]:
        """Return a row for every family, length and view: the macro mean over its tasks.

        Left out are views that lack some of the tasks, because their mean would be of easier or
        harder ones, and families of several tasks with metrics outside 0 to 1.
        """
        groups: dict[tuple[str, int | None], dict[str, list[Row]]] = {}
        for row in self.tables(baseline=None):
            views = groups.setdefault((row.family, row.length), {})
            views.setdefault(row.view, []).append(row)
        means = []
        for by_view in groups.values():
            task_count = len({row.tasks for rows in by_view.values() for row in rows})
            means += [
                self._average(rows, baseline)
                for rows in by_view.values()
                if len(rows) == task_count and (task_count == 1 or all(r.is_share for r in rows))
            ]
        return means

    def difference(
        self, view: str, other: str | None, length: int | None, tasks: Iterable[str]
    ) -> Difference | None:
        """Return by how much the score of `view` exceeds that of `other`, at one length.

        Every task has the same weight. The difference is None without another view, and unless
        both answered the same questions.
        """
        if other is None:
            return None
        first, second = (
            [sample for task in tasks for sample in self._cells.get((task, length, label), ())]
            for label in (view, other)
        )
        try:
            return paired_difference(first, second) if first and second else None
        except PairingError:
            return None

    def _average(self, rows: Sequence[Row], baseline: str | None) -> Row:
        """Return the mean of rows of one family, length and view."""
        first, tasks = rows[0], tuple(row.tasks[0] for row in rows)
        return replace(
            first,
            tasks=tasks,
            score=Mean.of_means([row.score for row in rows]),
            positions=sum(row.positions for row in rows) / len(rows),
            difference=self.difference(first.view, baseline, first.length, tasks),
        )

    @cached_property
    def _cells(self) -> dict[tuple[str, int | None, str], list[Sample]]:
        """Samples by task, length and view, in the order of tables."""
        cells: dict[tuple[str, int | None, str], list[Sample]] = {}
        for sample in self.samples:
            cells.setdefault((sample.task, sample.length, sample.view), []).append(sample)
        families = {task: samples[0].family for (task, _, _), samples in cells.items()}
        tasks, views = list(families), self.views

        def place(cell: tuple[str, int | None, str]) -> tuple[int, int, int, int]:
            task, length, view = cell
            family = self.families.index(families[task])
            return family, length or 0, tasks.index(task), views.index(view)

        return {cell: cells[cell] for cell in sorted(cells, key=place)}


def read_efficiency(directory: str | Path) -> list[dict[str, Any]]:
    """Return the measurements in the efficiency.jsonl of a directory; none without this file.

    Of measurements on the same device and from the same source, those by the protocol of the last
    one count, because a line of others would mix two protocols; of equal view and length, the last.
    A line that was cut off is left out.
    """
    path = Path(directory) / EFFICIENCY_FILE
    if not path.exists():
        return []
    entries = []
    for line in read_text(path).splitlines():
        try:
            entries.append(_read_measurement(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            log.warning("%s: left out a line that is no measurement: %.60r", path, line)
    newest = _select_newest_protocol(entries)
    if len(newest) < len(entries):
        log.info("%s: left out %d of an earlier protocol", path, len(entries) - len(newest))
    return list({tuple(entry[name] for name in EFFICIENCY_KEY): entry for entry in newest}.values())


def _select_newest_protocol(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries by the protocol of the last one of their device and source.

    Text has no `windows_at_once`: None is part of every protocol.
    """

    def name_parts(entry: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
        parts = {name: entry.get(name) for name in PROTOCOL}
        place = (entry["device"], entry["source"])
        return {(*place, name): value for name, value in parts.items() if value is not None}

    newest: dict[tuple[str, ...], Any] = {}
    for entry in entries:
        newest |= name_parts(entry)
    return [entry for entry in entries if name_parts(entry).items() <= newest.items()]


def read_versions() -> dict[str, str]:
    """Return the versions of the code, the packages and Python, and the device."""
    versions = {"lclm_jax": code_version(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    devices = jax.devices()
    return {**versions, "device": devices[0].device_kind, "devices": str(len(devices))}


def find_share_tasks(samples: Iterable[Sample]) -> set[str]:
    """Return the tasks whose finite scores all lie between 0 and 1, in every view."""
    is_share: dict[str, bool] = {}
    for sample in samples:
        is_inside = not math.isfinite(sample.score) or 0 <= sample.score <= 1
        is_share[sample.task] = is_inside and is_share.get(sample.task, True)
    return {task for task, holds in is_share.items() if holds}


def _to_json(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_plain)


def _finite(value: Any) -> Any:
    """Replace numbers that JSON lacks by None, in nested values too."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """Return a value that JSON does not know as text, such as a path."""
    return str(value)


def _read_sample(values: Mapping[str, Any]) -> Sample:
    sample = Sample.from_dict(values)
    if not sample.scores:
        raise ValueError(f"sample {sample.number} of {sample.task} has no score")
    scores = {
        name: math.nan if score is None else float(score) for name, score in sample.scores.items()
    }
    texts = (sample.task, sample.view, sample.answer, sample.prompt)
    numbers = (sample.number, sample.positions)
    is_valid = (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int | float) for number in numbers)
        and isinstance(sample.tags, dict)
        and isinstance(sample.length, int | None)
        and isinstance(sample.family, str)
    )
    if not is_valid:
        raise TypeError(f"sample {sample.number} of {sample.task} has fields of other types")
    return Sample.from_dict({**values, "scores": scores})


def _read_measurement(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of `efficiency`, which must say what was measured, where and how."""
    for name in EFFICIENCY_KEY:
        if not isinstance(values[name], int if name == "length" else str):
            raise TypeError(f"a measurement has the {name} {values[name]!r}")
    return {**values}
