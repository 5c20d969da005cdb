"""Input files to prepared sources: read, checked, tokenised by several processes, whole or resumable, the same however many.

A unit of the input (a file, or a part of one) becomes one shard of each split and a report, `units/<source>-<number>.json`;
whoever starts again reuses the units whose input and settings are the same. The manifest comes last.
"""

import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lclm_jax.config import ConfigError, Recipe, Source
from lclm_jax.config_values import to_dict
from lclm_jax.data.fields import SPLIT_GROUP, fields_of, ignored_fields, is_blank, raise_first
from lclm_jax.data.files import Rejection, Row, read_unit, unread_files
from lclm_jax.data.rows import Raw, RowError, read_examples, tokenise, words_of
from lclm_jax.data.shards import (
    HELD_OUT,
    MANIFEST,
    REJECTIONS,
    SPLITS,
    ShardWriter,
    hash_file,
    index_path,
    shard_path,
    split_of,
)
from lclm_jax.data.stretches import Stretch
from lclm_jax.data.tokens import TextError, Tokenizer
from lclm_jax.data.units import Unit, find_texts, find_units
from lclm_jax.directories import locked
from lclm_jax.errors import UserError
from lclm_jax.writing import write_whole

VERSION = 3  # of the files; another one prepares everything again
LIBRARIES = ("lclm_jax", "tokenizers", "array-record", "msgpack", "numpy")
MAX_DETAIL = 500  # characters of a rejection's detail
Progress = Callable[..., Iterable]  # as lclm_jax.progress.track: (items, label, total) -> the items


def silent(items: Iterable, label: str, total: int | None = None) -> Iterable:
    return items


@dataclass(frozen=True)
class Job:
    """What one worker does at a time."""

    source: Source
    number: int
    unit: Unit
    directory: Path
    key: str  # of the input and everything that decides what is written
    longest: int
    most_rejected: int

    @property
    def report(self) -> Path:
        return self.directory / "units" / f"{self.source.name}-{self.number:05d}.json"

    @property
    def rejections(self) -> Path:
        return self.report.with_suffix(".rejections.jsonl")

    @property
    def begins(self) -> list[Path]:
        """The files whose first unit this is."""
        return (
            [path for name in self.unit.files for path in _files_in(Path(name))]
            if self.unit.start == 0
            else []
        )

    @property
    def shards(self) -> list[Path]:
        """The shard of each split."""
        return [
            shard_path(self.directory, self.source.name, split, self.number) for split in SPLITS
        ]

    def done(self) -> dict[str, Any] | None:
        """The report of an earlier run of the same input and settings, if its files are whole."""
        try:
            report = _read(self.report)
            _summary(self.source, [report])  # raises where something is missing
            return report if report["key"] == self.key and self._is_whole(report) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def _is_whole(self, report: Mapping[str, Any]) -> bool:
        """Whether this unit's own files, and no others, are as the report says, byte for byte."""
        named = [(entry["split"], entry["file"]) for entry in report["shards"]]
        if named != [(split, shard.name) for split, shard in zip(SPLITS, self.shards, strict=True)]:
            return False
        lines = self.rejections.read_text(encoding="utf-8").splitlines()
        rejected = [json.loads(line)["reason"] for line in lines]
        expected = Counter(report["rejected"]) + Counter(report.get("unread"))
        return Counter(rejected) == expected and all(
            hash_file(shard) == entry["sha256"]
            and hash_file(index_path(shard)) == entry["index_sha256"]
            for shard, entry in zip(self.shards, report["shards"], strict=True)
        )


Reports = Sequence[tuple[Job, dict[str, Any]]]  # of all units, in order


def prepare(
    recipe: Recipe,
    inputs: Mapping[str, Sequence[str]],
    directory: str | Path,
    tokenizer: Tokenizer,
    workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Writes the sources of a recipe, each from the patterns named for it, and returns the manifest.

    Raises ConfigError for inputs that do not fit the recipe, DirectoryError when another process
    prepares there, UserError when too much of a source is refused: what was refused is in
    `rejections.jsonl`, and what was done is reused by the next run.
    """
    directory = Path(directory)
    names = [source.name for source in recipe.sources]
    if set(inputs) != set(names):
        raise ConfigError(
            f"expected an input for each of {', '.join(names)}, got {', '.join(inputs) or 'none'}"
        )
    _check_own(directory)
    jobs = [
        job
        for source in recipe.sources
        for job in plan(recipe, source, inputs[source.name], directory, tokenizer.fingerprint)
    ]
    manifest = partial(_manifest, recipe, inputs, tokenizer)
    if finished := _finished(recipe, directory, tokenizer, jobs, manifest):
        return finished
    with locked(directory):
        reports = _prepare(recipe, directory, tokenizer, jobs, workers, progress)
        write_whole(directory / MANIFEST, json.dumps(manifest(reports), indent=2))
    return manifest(reports)


def _check_own(directory: Path):
    """Raises ConfigError for a directory whose other files preparation would write over."""
    names = [name for name in ("model.json", "config.json") if (directory / name).exists()]
    if (directory / "tokenizer").exists() and not (directory / "units").exists():
        names.append("tokenizer")
    if names:
        raise ConfigError(
            f"expected a new directory or one of prepared data, got {directory} with "
            f"{', '.join(names)}"
        )


def _finished(
    recipe: Recipe,
    directory: Path,
    tokenizer: Tokenizer,
    jobs: Sequence[Job],
    manifest: Callable[[Reports], dict[str, Any]],
) -> dict[str, Any] | None:
    """The manifest of an earlier preparation, if it was this one and is whole.

    Nothing is written then: any number of runs may prepare the same data at once, and others read.
    """
    if not (directory / MANIFEST).exists():
        return None
    with ThreadPoolExecutor() as threads:
        done = list(threads.map(Job.done, jobs))
    reports = [(job, report) for job, report in zip(jobs, done, strict=True) if report is not None]
    try:
        same = (
            len(reports) == len(jobs)
            and _read(directory / MANIFEST) == json.loads(json.dumps(manifest(reports)))
            and (directory / REJECTIONS).read_text(encoding="utf-8") == _rejections(jobs)
            and Tokenizer.load(directory / "tokenizer").fingerprint == tokenizer.fingerprint
            and all(
                sum(source["rejected"].values()) <= recipe.most_rejected
                for source in manifest(reports)["sources"].values()
            )
        )
    except (OSError, ValueError, KeyError, UserError):
        return None
    return manifest(reports) if same else None


def _prepare(
    recipe: Recipe,
    directory: Path,
    tokenizer: Tokenizer,
    jobs: Sequence[Job],
    workers: int | None,
    progress: Progress,
) -> Reports:
    """Writes everything but the manifest, once nobody else writes into the directory."""
    (directory / "units").mkdir(exist_ok=True)
    tokenizer.save(directory / "tokenizer")
    (directory / MANIFEST).unlink(missing_ok=True)
    _remove_others(directory, jobs)
    reports: dict[Path, dict[str, Any]] = {}
    refused: Counter[str] = Counter()
    with closing(run_jobs(jobs, directory / "tokenizer", workers)) as finished:
        for job, report in progress(finished, "tokenising", len(jobs)):
            reports[job.report] = report
            refused[job.source.name] += sum(report["rejected"].values())
            if refused[job.source.name] > recipe.most_rejected:
                _gather_rejections(directory, [job for job in jobs if job.report in reports])
                raise UserError(
                    _too_many(job.source.name, directory, recipe, refused[job.source.name])
                )
    _gather_rejections(directory, jobs)
    return [(job, reports[job.report]) for job in jobs]


def _manifest(
    recipe: Recipe, inputs: Mapping[str, Sequence[str]], tokenizer: Tokenizer, reports: Reports
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "recipe": to_dict(recipe),
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "entries": tokenizer.size},
        "held_out": HELD_OUT,
        "libraries": {name: version(name) for name in LIBRARIES},
        "sources": {
            source.name: _summary(
                source, [report for job, report in reports if job.source == source]
            )
            | {"inputs": list(inputs[source.name])}
            for source in recipe.sources
        },
    }


def plan(
    recipe: Recipe, source: Source, patterns: Sequence[str], directory: Path, tokenizer: str
) -> list[Job]:
    """The units of a source in order; they depend on the input alone."""
    units = [unit for pattern in patterns for unit in find_units(pattern)]
    settings = [VERSION, HELD_OUT, asdict(source), tokenizer, recipe.longest]
    return [
        Job(
            source,
            number,
            unit,
            directory,
            _key(unit, settings),
            recipe.longest,
            recipe.most_rejected,
        )
        for number, unit in enumerate(units)
    ]


def run_jobs(
    jobs: Sequence[Job], tokenizer: Path, workers: int | None
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Jobs and their reports, as they are finished; those done before come first."""
    waiting = []
    with ThreadPoolExecutor() as threads:
        for job, report in zip(jobs, threads.map(Job.done, jobs), strict=True):
            if report is None:
                waiting.append(job)
            else:
                yield job, report
    if not waiting:
        return
    count = min(len(waiting), workers or os.cpu_count() or 1)
    if count == 1:
        yield from ((job, run_job(job, tokenizer)) for job in waiting)
        return
    with ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=_one_thread
    ) as pool:
        running: dict[Future, Job] = {pool.submit(run_job, job, tokenizer): job for job in waiting}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker was ended from outside, perhaps for its memory; run again to continue, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def run_job(job: Job, tokenizer: Path) -> dict[str, Any]:
    """Writes the shards of a unit, its rejections and, last, its report."""
    reader = _load(tokenizer)
    writers = {
        split: ShardWriter(shard_path(job.directory, job.source.name, split, job.number))
        for split in SPLITS
    }
    unread = unread_files(job.unit) if job.unit.form == "unread" else []
    rejections: list[Rejection] = []
    ignored: Counter[str] = Counter()
    rows = spelled = 0
    for row in read_unit(job.unit, fields_of(job.source.kind)) if not unread else ():
        rows += 1
        if isinstance(row, Rejection):
            rejections.append(row)
        else:
            ignored.update([*row.ignored, *ignored_fields(row.fields, job.source.kind)])
            for example in read_examples_of(row, job, reader):
                if isinstance(example, Rejection):
                    rejections.append(example)
                else:
                    writers[example.split].add(example.raw, example.stretches)
                    spelled += example.spells_control
        if len(rejections) > job.most_rejected:
            break
    shards = [{"split": split} | writer.close() for split, writer in writers.items()]
    text = "".join(json.dumps(asdict(one)) + "\n" for one in [*rejections, *unread])
    write_whole(job.rejections, text)
    report = {
        "key": job.key,
        "rows": rows,
        "spelled_control": spelled,
        "rejected": _count_reasons(rejections),
        "unread": _count_reasons(unread),
        "ignored_fields": dict(sorted(ignored.items())),
        "shards": shards,
    }
    report["files"] = [
        {"file": str(path), "bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in (job.begins if not unread else ())
    ]
    write_whole(job.report, json.dumps(report))
    return report


def _count_reasons(rejections: Iterable[Rejection]) -> dict[str, int]:
    return dict(sorted(Counter(one.reason for one in rejections).items()))


@dataclass(frozen=True)
class Example:
    """An example of a row, tokenised."""

    raw: Raw
    stretches: list[Stretch]
    split: str
    spells_control: bool  # as plain text, which is trained on


def read_examples_of(row: Row, job: Job, tokenizer: Tokenizer) -> Iterator[Example | Rejection]:
    """The examples of a row, then one rejection where there are others that cannot be used.

    Whatever exception a row causes is its rejection, with reason "error" where none is foreseen.
    """
    try:
        yield from read_row(row.fields, job, tokenizer)
    except RowError as error:
        yield Rejection(row.file, row.number, error.reason, error.detail[:MAX_DETAIL])
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of Rust, as in tokenizers
        if isinstance(error, MemoryError) or not (isinstance(error, Exception) or is_panic):
            raise
        detail = f"{type(error).__name__}: {error}"
        yield Rejection(row.file, row.number, "error", detail[:MAX_DETAIL])


def read_row(fields: Mapping[str, Any], job: Job, tokenizer: Tokenizer) -> Iterator[Example]:
    """The examples of a row; their split is that of the row's `split_group`, if it has one, else
    that of their own words.

    Raises RowError for those that cannot be used, after all the others.
    """
    group = fields.get(SPLIT_GROUP)
    count, problems = 0, []
    try:
        for raw in read_examples(fields, job.source.kind, tokenizer, job.longest):
            count += 1
            try:
                stretches = tokenise(raw, tokenizer)
            except TextError as error:
                problems.append(RowError("chat", str(error)))
                continue
            if not sum(len(stretch.tokens) for stretch in stretches):
                problems.append(RowError("empty", "expected words, got none"))
                continue
            words = words_of(raw)
            split = split_of(words if is_blank(group) else str(group))
            yield Example(raw, stretches, split, spells_control(words, tokenizer))
    except RowError as error:
        problems.append(error)
    raise_first(problems, count)


def spells_control(text: str, tokenizer: Tokenizer) -> bool:
    """Whether the text spells a control token, which is trained on as plain text."""
    return "<" in text and any(name in text for name in tokenizer.control)


@lru_cache(maxsize=1)
def _load(directory: Path) -> Tokenizer:
    return Tokenizer.load(directory)


def _one_thread():
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken by the other workers


def _key(unit: Unit, settings: list[Any]) -> str:
    """Of a unit's input, by the size and age of its files, and of the settings."""
    names = unit.files if unit.form != "unread" else ()
    files = [path for name in names for path in _files_in(Path(name))]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([asdict(unit), stats, settings]).encode()).hexdigest()


def _files_in(path: Path) -> list[Path]:
    """What is read of a file or a repository."""
    return [file for file, _ in find_texts(path)[0]] if path.is_dir() else [path]


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _summary(source: Source, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shards = [shard for report in reports for shard in report["shards"]]
    files = [file for report in reports for file in report["files"]]
    rejected, unread, ignored = (
        _sum_counts(report[name] for report in reports)
        for name in ("rejected", "unread", "ignored_fields")
    )
    return {
        "kind": source.kind,
        "files": len(files),  # each with its own hash in units/
        "bytes": sum(file["bytes"] for file in files),
        "sha256": hashlib.sha256("".join(file["sha256"] for file in files).encode()).hexdigest(),
        "rows": sum(report["rows"] for report in reports),
        "rejected": rejected,
        "unread": unread,  # files by reason
        "ignored_fields": ignored,  # rows that have each
        "spelled_control": sum(report["spelled_control"] for report in reports),
        "examples": {
            split: sum(shard["examples"] for shard in shards if shard["split"] == split)
            for split in SPLITS
        },
        "tokens": {
            split: sum(shard["tokens"] for shard in shards if shard["split"] == split)
            for split in SPLITS
        },
        "shards": shards,
    }


def _sum_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _remove_others(directory: Path, jobs: Sequence[Job]):
    """Removes the reports of an earlier preparation that are no part of this one, and their shards.

    A shard's name follows from its report's; whatever else a report names is left alone, and so is
    a file that is no report.
    """
    numbers = {f"{job.source.name}-{job.number:05d}" for job in jobs}
    for report in (directory / "units").glob("*.json"):
        source, _, number = report.stem.rpartition("-")
        if report.stem in numbers or not number.isdecimal() or not _is_report(report):
            continue
        for split in SPLITS:
            shard = shard_path(directory, source, split, int(number))
            shard.unlink(missing_ok=True)
            index_path(shard).unlink(missing_ok=True)
        report.with_suffix(".rejections.jsonl").unlink(missing_ok=True)
        report.unlink()


def _is_report(file: Path) -> bool:
    try:
        return {"key", "rows", "shards"} <= _read(file).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _rejections(jobs: Sequence[Job]) -> str:
    """The refused rows of all units, a line of JSON each."""
    lines = [
        json.dumps({"source": job.source.name} | json.loads(line)) + "\n"
        for job in jobs
        for line in job.rejections.read_text(encoding="utf-8").splitlines()
    ]
    return "".join(lines)


def _gather_rejections(directory: Path, jobs: Sequence[Job]):
    write_whole(directory / REJECTIONS, _rejections(jobs))


def _too_many(source: str, directory: Path, recipe: Recipe, count: int) -> str:
    lines = (directory / REJECTIONS).read_text(encoding="utf-8").splitlines()
    some = [one for one in map(json.loads, lines) if one["source"] == source][:3]
    listed = "\n  ".join(
        f"{one['file']}, record {one['number']}: {one['reason']}, {one['detail']}" for one in some
    )
    return (
        f"{count} rows of source {source} were refused, more than recipe.most_rejected={recipe.most_rejected}; "
        f"all are in {directory / REJECTIONS}, the first are\n  {listed}"
    )
