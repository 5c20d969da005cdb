"""Input files to prepared sources: read, checked, tokenised by several processes.

A unit of the input (a file, or a part of one) becomes one shard of each split and a report,
`units/<source>-<number>.json`: see `jobs`. Whoever starts again reuses the units whose input and
settings are the same. The result is the same for any number of processes; the manifest comes last.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lclm_jax.config import ConfigError, Recipe, Source
from lclm_jax.config.values import to_dict
from lclm_jax.data.inputs.units import Unit, find_units
from lclm_jax.data.prepare.jobs import Job, Reports, files_in, run_jobs, summarise
from lclm_jax.data.prepare.shards import (
    HELD_OUT,
    MANIFEST,
    REJECTIONS,
    SPLITS,
    index_path,
    shard_path,
)
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.errors import UserError
from lclm_jax.files.atomic import write_whole
from lclm_jax.files.directories import locked
from lclm_jax.files.reading import read_json

VERSION = 3  # of the files; another one prepares everything again
LIBRARIES = ("lclm_jax", "tokenizers", "array-record", "msgpack", "numpy")
Progress = Callable[..., Iterable]  # as lclm_jax.progress.track: (items, label, total) -> the items


def silent(items: Iterable, label: str, total: int | None = None) -> Iterable:
    return items


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
            and read_json(directory / MANIFEST) == json.loads(json.dumps(manifest(reports)))
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
            source.name: summarise(
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


def _key(unit: Unit, settings: list[Any]) -> str:
    """Of a unit's input, by the size and age of its files, and of the settings."""
    names = unit.files if unit.form != "unread" else ()
    files = [path for name in names for path in files_in(Path(name))]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([asdict(unit), stats, settings]).encode()).hexdigest()


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
        return {"key", "rows", "shards"} <= read_json(file).keys()
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
