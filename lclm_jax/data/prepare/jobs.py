"""Jobs of a preparation: each writes the shards of one unit of the input, and a report of it."""

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from lclm_jax.config import Source
from lclm_jax.data.inputs.files import Rejection, read_unit, unread_files
from lclm_jax.data.inputs.units import Unit, find_texts
from lclm_jax.data.prepare.examples import read_examples_of
from lclm_jax.data.prepare.shards import SPLITS, ShardWriter, index_path, shard_path
from lclm_jax.data.rows.fields import fields_of, ignored_fields
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.errors import UserError
from lclm_jax.files.atomic import write_whole
from lclm_jax.files.checksums import hash_file
from lclm_jax.files.reading import read_json


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
            [path for name in self.unit.files for path in files_in(Path(name))]
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
            report = read_json(self.report)
            summarise(self.source, [report])  # raises where something is missing
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
            for example in read_examples_of(row, job.source.kind, job.longest, reader):
                if isinstance(example, Rejection):
                    rejections.append(example)
                else:
                    writers[example.split].add(example.raw, example.sections)
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


@lru_cache(maxsize=1)
def _load(directory: Path) -> Tokenizer:
    return Tokenizer.load(directory)


def _one_thread():
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken by the other workers


def files_in(path: Path) -> list[Path]:
    """What is read of a file or a repository."""
    return [file for file, _ in find_texts(path)[0]] if path.is_dir() else [path]


def summarise(source: Source, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
        "sha256": sha256("".join(file["sha256"] for file in files).encode()).hexdigest(),
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
