"""Jobs of a preparation: each turns one unit of the input into shards and a report."""

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from lclm_jax.config import Source
from lclm_jax.data.inputs.files import InputRow, Rejection, read_unit, unread_files
from lclm_jax.data.inputs.units import Unit, find_texts
from lclm_jax.data.prepare.examples import read_examples_of
from lclm_jax.data.rows.field_names import list_ignored_fields, usable_fields
from lclm_jax.data.shards import SPLITS, ShardWriter, index_path, shard_path
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.errors import UserError
from lclm_jax.files.atomic import write_whole
from lclm_jax.files.checksums import hash_file
from lclm_jax.files.reading import read_json


@dataclass(frozen=True)
class Job:
    """One unit of a source, with the settings and names of the files made from it.

    Attributes:
        source: the source of the recipe.
        number: position of the unit among those of its source.
        unit: the input.
        directory: where the shards are written.
        key: hash of the input and of every setting that changes the output.
        longest: `recipe.max_document_chars`, characters of a document.
        most_rejected: `recipe.max_rejected_rows`, rejections after which the job stops.
    """

    source: Source
    number: int
    unit: Unit
    directory: Path
    key: str
    longest: int
    most_rejected: int

    @property
    def report(self) -> Path:
        """The file with counts and checksums, written last."""
        return self.directory / "units" / f"{self.source.name}-{self.number:05d}.json"

    @property
    def rejections(self) -> Path:
        """The file with one line of JSON for each refused row."""
        return self.report.with_suffix(".rejections.jsonl")

    @property
    def first_files(self) -> list[Path]:
        """The input files that begin with this unit, so that a source counts each once."""
        if self.unit.start != 0:
            return []
        return [path for name in self.unit.files for path in files_in(Path(name))]

    @property
    def shards(self) -> list[Path]:
        """The shard of each split, in the order of `SPLITS`."""
        name, number = self.source.name, self.number
        return [shard_path(self.directory, name, split, number) for split in SPLITS]

    def finished_report(self) -> dict[str, Any] | None:
        """Return the report of an earlier run with the same key if its files are undamaged."""
        try:
            report = read_json(self.report)
            summarise(self.source, [report])  # raises where a part is missing
            is_current = report["key"] == self.key and self._is_undamaged(report)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return report if is_current else None

    def _is_undamaged(self, report: Mapping[str, Any]) -> bool:
        """Return whether exactly this unit's files exist, byte for byte as the report says."""
        entries = report["shards"]
        expected_names = [(s, path.name) for s, path in zip(SPLITS, self.shards, strict=True)]
        if [(entry["split"], entry["file"]) for entry in entries] != expected_names:
            return False

        lines = self.rejections.read_text(encoding="utf-8").splitlines()
        reasons = Counter(json.loads(line)["reason"] for line in lines)
        if reasons != Counter(report["rejected"]) + Counter(report.get("unread")):
            return False

        return all(
            hash_file(shard) == entry["sha256"]
            and hash_file(index_path(shard)) == entry["index_sha256"]
            for shard, entry in zip(self.shards, entries, strict=True)
        )


Reports = Sequence[tuple[Job, dict[str, Any]]]  # every job with its report, in order


def run_jobs(
    jobs: Sequence[Job], tokenizer: Path, workers: int | None
) -> Generator[tuple[Job, dict[str, Any]], None, None]:
    """Yield every job with its report as it finishes; those of an earlier run come first.

    `tokenizer` is a directory. By default there is a worker process for each core. Raises UserError
    when a worker is killed.
    """
    waiting = []
    with ThreadPoolExecutor() as threads:
        reports = threads.map(Job.finished_report, jobs)
        for job, report in zip(jobs, reports, strict=True):
            if report is None:
                waiting.append(job)
            else:
                yield job, report

    count = min(len(waiting), workers or os.cpu_count() or 1)
    if count > 1:
        yield from _run_in_processes(waiting, tokenizer, count)
    else:
        yield from ((job, run_job(job, tokenizer)) for job in waiting)


def _run_in_processes(
    jobs: Sequence[Job], tokenizer: Path, workers: int
) -> Iterator[tuple[Job, dict[str, Any]]]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_use_one_thread) as pool:
        running: dict[Future, Job] = {pool.submit(run_job, job, tokenizer): job for job in jobs}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, perhaps because memory ran out; run again to "
                "continue, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass
class _Counts:
    """Counts of a job while it reads its rows."""

    rows: int = 0
    spelled_control: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    rejections: list[Rejection] = field(default_factory=list)


def run_job(job: Job, tokenizer: Path) -> dict[str, Any]:
    """Write the shards of a unit, its rejections and, last, its report. Returns the report."""
    writers = {split: ShardWriter(path) for split, path in zip(SPLITS, job.shards, strict=True)}
    is_read = job.unit.form != "unread"
    unread = [] if is_read else unread_files(job.unit)
    counts = _write_examples(job, _load_tokenizer(tokenizer), writers) if is_read else _Counts()

    shards = [{"split": split} | writer.close() for split, writer in writers.items()]
    rejections = [*counts.rejections, *unread]
    lines = [json.dumps(asdict(rejection)) + "\n" for rejection in rejections]
    write_whole(job.rejections, "".join(lines))
    report = {
        "key": job.key,
        "rows": counts.rows,
        "spelled_control": counts.spelled_control,
        "rejected": _count_reasons(counts.rejections),
        "unread": _count_reasons(unread),
        "ignored_fields": dict(sorted(counts.ignored.items())),
        "shards": shards,
        "files": [
            {"file": str(path), "bytes": path.stat().st_size, "sha256": hash_file(path)}
            for path in (job.first_files if is_read else ())
        ],
    }
    write_whole(job.report, json.dumps(report))
    return report


def _write_examples(job: Job, tokenizer: Tokenizer, writers: Mapping[str, ShardWriter]) -> _Counts:
    """Read the rows of a job into its shards, until too many have been refused."""
    counts = _Counts()
    for row in read_unit(job.unit, usable_fields(job.source.kind)):
        counts.rows += 1
        if isinstance(row, Rejection):
            counts.rejections.append(row)
        else:
            _write_row(row, job, tokenizer, writers, counts)
        if len(counts.rejections) > job.most_rejected:
            break
    return counts


def _write_row(
    row: InputRow,
    job: Job,
    tokenizer: Tokenizer,
    writers: Mapping[str, ShardWriter],
    counts: _Counts,
):
    counts.ignored.update([*row.ignored, *list_ignored_fields(row.fields, job.source.kind)])
    for example in read_examples_of(row, job.source.kind, job.longest, tokenizer):
        if isinstance(example, Rejection):
            counts.rejections.append(example)
        else:
            writers[example.split].add(example.raw, example.sections)
            counts.spelled_control += example.spells_control


def _count_reasons(rejections: Iterable[Rejection]) -> dict[str, int]:
    counts = Counter(rejection.reason for rejection in rejections)
    return dict(sorted(counts.items()))


@lru_cache(maxsize=1)
def _load_tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.load(directory)


def _use_one_thread():
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other workers use the other cores


def files_in(path: Path) -> list[Path]:
    """Return the text files of a repository, or the file itself."""
    return [file for file, _ in find_texts(path)[0]] if path.is_dir() else [path]


def summarise(source: Source, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a source's entry in the manifest: the sums of its reports, and all its shards.

    `sha256` hashes the hashes of the input files; `units/` has each.
    """
    shards = [shard for report in reports for shard in report["shards"]]
    files = [file for report in reports for file in report["files"]]
    digests = "".join(file["sha256"] for file in files)
    return {
        "kind": source.kind,
        "files": len(files),
        "bytes": sum(file["bytes"] for file in files),
        "sha256": sha256(digests.encode()).hexdigest(),
        "rows": sum(report["rows"] for report in reports),
        "rejected": _sum_counts(report["rejected"] for report in reports),
        "unread": _sum_counts(report["unread"] for report in reports),
        "ignored_fields": _sum_counts(report["ignored_fields"] for report in reports),
        "spelled_control": sum(report["spelled_control"] for report in reports),
        "examples": {split: _sum_split(shards, split, "examples") for split in SPLITS},
        "tokens": {split: _sum_split(shards, split, "tokens") for split in SPLITS},
        "shards": shards,
    }


def _sum_split(shards: Sequence[Mapping[str, Any]], split: str, key: str) -> int:
    return sum(shard[key] for shard in shards if shard["split"] == split)


def _sum_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
