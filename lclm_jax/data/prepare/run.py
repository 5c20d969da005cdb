"""Prepare the sources of a recipe: input files are read, checked and tokenized in parallel.

A unit of the input (a file, or a part of one) becomes one shard of each split and a report,
`units/<source>-<number>.json` (see `jobs`). A second run reuses the units whose input and settings
are the same. The output does not depend on the number of processes. The manifest is written last.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lclm_jax.config import ConfigError, Recipe, Source
from lclm_jax.config.values import to_dict, with_current_names
from lclm_jax.data.inputs.units import Unit, find_units
from lclm_jax.data.prepare.jobs import Job, Reports, files_in, run_jobs, summarise
from lclm_jax.data.shards import (
    HELD_OUT_EVERY,
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
from lclm_jax.progress import Progress, without_progress

VERSION = 3  # of the prepared files; a change prepares everything again
LIBRARIES = ("lclm_jax", "tokenizers", "array-record", "msgpack", "numpy")
MAX_REJECTIONS_SHOWN = 3
MakeManifest = Callable[[Reports], dict[str, Any]]


def prepare(
    recipe: Recipe,
    inputs: Mapping[str, Sequence[str]],
    directory: str | Path,
    tokenizer: Tokenizer,
    workers: int | None = None,
    progress: Progress = without_progress,
) -> dict[str, Any]:
    """Prepare every source of a recipe from its input patterns, and return the manifest.

    Finished data are not written again. Raises ConfigError for inputs that do not match the
    recipe's sources, DirectoryError when another process prepares there, and UserError when more
    than `recipe.max_rejected_rows` rows of a source are refused; `rejections.jsonl` lists them.
    """
    directory = Path(directory)
    names = [source.name for source in recipe.sources]
    if set(inputs) != set(names):
        raise ConfigError(
            f"expected an input for each of {', '.join(names)}, got {', '.join(inputs) or 'none'}"
        )
    _check_directory(directory)
    jobs = [
        job
        for source in recipe.sources
        for job in plan(recipe, source, inputs[source.name], directory, tokenizer.fingerprint)
    ]
    make_manifest = partial(_make_manifest, recipe, inputs, tokenizer)
    finished = _finished_manifest(recipe, directory, tokenizer, jobs, make_manifest)
    if finished is not None:
        return finished

    with locked(directory):
        reports = _prepare(recipe, directory, tokenizer, jobs, workers, progress)
        manifest = make_manifest(reports)
        write_whole(directory / MANIFEST, json.dumps(manifest, indent=2))
    return manifest


def _check_directory(directory: Path):
    """Raise ConfigError for a run or a model, whose files preparation would overwrite."""
    names = [name for name in ("model.json", "config.json") if (directory / name).exists()]
    if (directory / "tokenizer").exists() and not (directory / "units").exists():
        names.append("tokenizer")
    if names:
        raise ConfigError(
            f"expected a new directory or one of prepared data, got {directory} with "
            f"{', '.join(names)}"
        )


def _finished_manifest(
    recipe: Recipe,
    directory: Path,
    tokenizer: Tokenizer,
    jobs: Sequence[Job],
    make_manifest: MakeManifest,
) -> dict[str, Any] | None:
    """Return the manifest of an earlier preparation if it is this one and undamaged.

    Nothing is written, so several runs may check the same data at once while others read it.
    """
    if not (directory / MANIFEST).exists():
        return None
    with ThreadPoolExecutor() as threads:
        finished = list(threads.map(Job.finished_report, jobs))
    reports = [
        (job, report) for job, report in zip(jobs, finished, strict=True) if report is not None
    ]
    if len(reports) != len(jobs):
        return None

    try:
        manifest = make_manifest(reports)
        is_same = (
            _read_earlier_manifest(directory) == json.loads(json.dumps(manifest))
            and (directory / REJECTIONS).read_text(encoding="utf-8") == _join_rejections(jobs)
            and Tokenizer.load(directory / "tokenizer").fingerprint == tokenizer.fingerprint
        )
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
    sources = manifest["sources"].values()
    has_too_many = any(sum(s["rejected"].values()) > recipe.max_rejected_rows for s in sources)
    return manifest if is_same and not has_too_many else None


def _read_earlier_manifest(directory: Path) -> dict[str, Any]:
    """Return a manifest whose recipe has today's names of settings, whichever version wrote it."""
    manifest = read_json(directory / MANIFEST)
    recipe = with_current_names(Recipe, dict(manifest["recipe"]))
    return manifest | {"recipe": recipe}


def _prepare(
    recipe: Recipe,
    directory: Path,
    tokenizer: Tokenizer,
    jobs: Sequence[Job],
    workers: int | None,
    progress: Progress,
) -> Reports:
    """Write everything but the manifest. The caller has locked the directory."""
    (directory / "units").mkdir(exist_ok=True)
    tokenizer.save(directory / "tokenizer")
    (directory / MANIFEST).unlink(missing_ok=True)
    _remove_outdated(directory, jobs)

    reports: dict[Path, dict[str, Any]] = {}
    rejected: Counter[str] = Counter()
    with closing(run_jobs(jobs, directory / "tokenizer", workers)) as finished:
        for job, report in progress(finished, "tokenizing", len(jobs)):
            reports[job.report] = report
            source = job.source.name
            rejected[source] += sum(report["rejected"].values())
            if rejected[source] > recipe.max_rejected_rows:
                finished_jobs = [job for job in jobs if job.report in reports]
                write_whole(directory / REJECTIONS, _join_rejections(finished_jobs))
                raise _too_many_error(source, directory, recipe, rejected[source])

    write_whole(directory / REJECTIONS, _join_rejections(jobs))
    return [(job, reports[job.report]) for job in jobs]


def _make_manifest(
    recipe: Recipe, inputs: Mapping[str, Sequence[str]], tokenizer: Tokenizer, reports: Reports
) -> dict[str, Any]:
    sources = {}
    for source in recipe.sources:
        own_reports = [report for job, report in reports if job.source == source]
        entry = summarise(source, own_reports)
        sources[source.name] = entry | {"inputs": list(inputs[source.name])}
    return {
        "version": VERSION,
        "recipe": to_dict(recipe),
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "entries": tokenizer.vocab_size},
        "held_out": HELD_OUT_EVERY,
        "libraries": {name: version(name) for name in LIBRARIES},
        "sources": sources,
    }


def plan(
    recipe: Recipe, source: Source, patterns: Sequence[str], directory: Path, fingerprint: str
) -> list[Job]:
    """Return a job for every unit of a source, in order; they depend only on the input.

    `fingerprint` is that of the tokenizer.
    """
    units = [unit for pattern in patterns for unit in find_units(pattern)]
    settings = [VERSION, HELD_OUT_EVERY, asdict(source), fingerprint, recipe.max_document_chars]
    jobs = []
    for number, unit in enumerate(units):
        key = _hash_input(unit, settings)
        limits = recipe.max_document_chars, recipe.max_rejected_rows
        jobs.append(Job(source, number, unit, directory, key, *limits))
    return jobs


def _hash_input(unit: Unit, settings: list[Any]) -> str:
    """Return a hash of a unit's files, by size and modification time, and of the settings."""
    names = unit.files if unit.form != "unread" else ()
    files = [path for name in names for path in files_in(Path(name))]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([asdict(unit), stats, settings]).encode()).hexdigest()


def _remove_outdated(directory: Path, jobs: Sequence[Job]):
    """Remove the reports and shards of earlier units that no job writes.

    The name of a report determines the names of its shards. Files that a report lists under other
    names, and files that are no reports, stay.
    """
    current = {f"{job.source.name}-{job.number:05d}" for job in jobs}
    for report in (directory / "units").glob("*.json"):
        source, _, number = report.stem.rpartition("-")
        if report.stem in current or not number.isdecimal() or not _is_report(report):
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


def _join_rejections(jobs: Sequence[Job]) -> str:
    """Return the refused rows of all jobs, one line of JSON each, with their source."""
    lines = []
    for job in jobs:
        for line in job.rejections.read_text(encoding="utf-8").splitlines():
            record = {"source": job.source.name} | json.loads(line)
            lines.append(json.dumps(record) + "\n")
    return "".join(lines)


def _too_many_error(source: str, directory: Path, recipe: Recipe, count: int) -> UserError:
    """Return an error that shows the first refused rows of a source."""
    lines = (directory / REJECTIONS).read_text(encoding="utf-8").splitlines()
    rejections = [record for record in map(json.loads, lines) if record["source"] == source]
    first = "\n  ".join(
        f"{record['file']}, record {record['number']}: {record['reason']}, {record['detail']}"
        for record in rejections[:MAX_REJECTIONS_SHOWN]
    )
    return UserError(
        f"{count} rows of source {source} were refused, more than "
        f"recipe.max_rejected_rows={recipe.max_rejected_rows}; all are in "
        f"{directory / REJECTIONS}, the first are\n  {first}"
    )
