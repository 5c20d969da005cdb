"""Tasks of the harness: loading them at several lengths, and their samples in a view."""

import io
import logging
import random
import re
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind

from lclm_jax.config import ConfigError
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.errors import TextError
from lclm_jax.evaluation.answers_file import AnswersFile
from lclm_jax.evaluation.harness.adapter import HarnessModel
from lclm_jax.evaluation.harness.contexts import add_defaults, check_rules, parse_rule
from lclm_jax.evaluation.request import ChatTemplate, Request
from lclm_jax.evaluation.samples import Sample
from lclm_jax.evaluation.tasks import TASKS
from lclm_jax.evaluation.views import View
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.progress import Progress

log = logging.getLogger(__name__)

# Tasks that are generated at a length, or have one subset for each.
RULER_TASKS, BABILONG_TASKS = r"niah_.*|ruler_.*", r"babilong_.*"
MIN_RULER_LENGTH = 1024  # tokens; generators of the harness do not end at shorter ones
BABILONG_UNIT = 1024  # tokens; its subsets are called "4k"
MAX_ROWS_SECONDS = 900  # to make the rows of a task
PERPLEXITIES = ("word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity")
SEED = 1234  # of few-shot examples and generators, as in the harness

Index = Mapping[str, Entry]  # tasks, groups and tags by name


@dataclass(frozen=True)
class HarnessTask:
    """A task of the harness, at a length in tokens where it has several."""

    name: str
    task: Task
    length: int | None = None

    @property
    def label(self) -> str:
        """Name for tables, such as "niah_single_1@4096"."""
        return f"{self.name}@{self.length}" if self.length else self.name


def load_harness_tasks(
    names: Sequence[str],
    model: LanguageModel,
    request: Request,
    answers: AnswersFile,
    progress: Progress,
) -> "list[AnsweredTask]":
    """Load tasks of the harness for an evaluation; see `load_tasks`.

    Rules of the request come before the built-in ones. Raises ConfigError for one that is of none
    of the tasks.
    """
    rules = dict(rule for text in request.contexts for rule in parse_rule(text).items())
    tasks = load_tasks(names, request.lengths, model.tokenizer, request.include)
    check_rules(rules, list(dict.fromkeys(task.name for task in tasks)))
    view = View("text")  # until the first view is answered
    adapter = HarnessModel(model, view, answers, add_defaults(rules), request.batch, progress)
    return [AnsweredTask(task, adapter, request.limit, request.chat_template) for task in tasks]


def load_tasks(
    names: Sequence[str],
    lengths: Sequence[int],
    tokenizer: Tokenizer,
    include: Path | None = None,
) -> list[HarnessTask]:
    """Load tasks by name, each length of those that have several apart.

    Names may be those of groups and tags; `include` is a directory with further tasks in YAML.
    Lengths of RULER are counted with `tokenizer`. Raises ConfigError for an unknown task, for a
    length that tasks do not have, for tasks whose data is not on this machine, and for one whose
    rows take longer than MAX_ROWS_SECONDS to make.
    """
    index = read_index(include)
    leaves = [leaf for name in names for leaf in list_leaves(name, index)]
    leaves = list(dict.fromkeys(leaves))
    ruler = [name for name in leaves if re.fullmatch(RULER_TASKS, name)]
    babilong = [name for name in leaves if re.fullmatch(BABILONG_TASKS, name)]
    sized = [*ruler, *babilong]
    _check_lengths(ruler, babilong, lengths)

    tasks, missing = [], {}

    def load(chosen: Sequence[str], length: int | None, metadata: dict[str, Any] | None):
        for name in chosen:
            try:
                tasks.append(HarnessTask(name, load_task(index[name], metadata), length))
            except ConfigError:  # also a ValueError, but of a setting and not of missing data
                raise
            except (OSError, ValueError, ImportError, LookupError) as error:
                missing[name] = f"{type(error).__name__}: {str(error).strip()[:200]}"

    load([name for name in leaves if name not in sized], None, None)
    with saved(tokenizer) as directory:
        for length in lengths:
            load(ruler, length, {"tokenizer": str(directory), "max_seq_lengths": [length]})
            # The name of one subset, where RULER's generators expect a list of numbers.
            load(babilong, length, {"max_seq_lengths": f"{length // BABILONG_UNIT}k"})
    if missing:
        raise ConfigError(describe_missing(missing))
    order = {name: number for number, name in enumerate(leaves)}
    return sorted(tasks, key=lambda task: (order[task.name], task.length or 0))


def read_index(include: Path | None = None) -> Index:
    """Return the harness' tasks, groups and tags by name.

    Those in the directory `include` replace built-in ones of the same name.
    """
    if include is None:
        return read_built_in_index()
    own = TaskManager(include_path=str(include), include_defaults=False).task_index
    return {**read_built_in_index(), **own}


@cache
def read_built_in_index() -> Index:
    """Return the built-in part of the index; the harness parses 14,000 files for it, in 20 s."""
    return TaskManager().task_index


def list_leaves(name: str, index: Index) -> list[str]:
    """Return the names of the tasks in a group or with a tag, or of one task.

    Raises ConfigError for an unknown name.
    """
    entry = index.get(name)
    if entry is None:
        near = [known for known in sorted(index) if name.lower() in known.lower()][:8]
        hint = f"; similar: {', '.join(near)}" if near else ""
        own = ", ".join(TASKS)
        raise ConfigError(f"expected {own}, or a task of the harness, got {name!r}{hint}")
    if entry.kind is Kind.TAG:
        tagged = (known for known, other in index.items() if name in other.tags)
        return [leaf for known in tagged for leaf in list_leaves(known, index)]
    if entry.kind is not Kind.GROUP:
        return [name]
    children = (entry.cfg or {}).get("task", [])
    listed = [children] if isinstance(children, str) else children
    names = [child if isinstance(child, str) else child.get("task", name) for child in listed]
    return [leaf for child in names if child != name for leaf in list_leaves(child, index)]


def load_task(entry: Entry, metadata: Mapping[str, Any] | None = None) -> Task:
    """Load a task; rows that it generates are the same each time.

    `metadata` is for these generators: lengths, and the tokenizer that counts them.
    """
    random.seed(SEED)
    np.random.seed(SEED)
    manager = TaskManager(include_defaults=False, metadata=dict(metadata or {}))
    quiet = redirect_stdout(io.StringIO())  # generators print a line for each row
    with quiet, time_limit(MAX_ROWS_SECONDS, f"{entry.name}: making its rows"):
        (task,) = manager.load([str(entry.yaml_path)])["tasks"].values()
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    return task


def _check_lengths(ruler: Sequence[str], babilong: Sequence[str], lengths: Sequence[int]):
    """Raise ConfigError for lengths that tasks of RULER or BABILong need and do not have."""
    if (ruler or babilong) and not lengths:
        first = [*ruler, *babilong][0]
        raise ConfigError(f"{first} needs lengths in tokens; pass --lengths 4096,8192")
    if ruler and min(lengths) < MIN_RULER_LENGTH:
        raise ConfigError(f"RULER needs {MIN_RULER_LENGTH} tokens or more, got {min(lengths)}")
    if babilong and (wrong := [length for length in lengths if length % BABILONG_UNIT]):
        raise ConfigError(
            f"BABILong has lengths that are multiples of {BABILONG_UNIT} tokens, as 4096, "
            f"got {wrong[0]}"
        )


def describe_missing(reasons: Mapping[str, str]) -> str:
    """Return what to do about tasks whose data cannot be read."""
    listed = "\n".join(f"  {name}: {reason}" for name, reason in reasons.items())
    return (
        f"the data of {len(reasons)} tasks is not on this machine:\n{listed}\n"
        "Load these tasks once where there is a network, copy the cache of the Hugging Face hub "
        "(~/.cache/huggingface) to this machine and set HF_HOME to it, or leave them out."
    )


@contextmanager
def saved(tokenizer: Tokenizer) -> Iterator[Path]:
    """Save a tokenizer in a temporary directory, for generators that load it by name."""
    with tempfile.TemporaryDirectory(prefix="lclm-tokenizer-") as directory:
        tokenizer.save(directory)
        yield Path(directory)


@contextmanager
def time_limit(seconds: int, action: str) -> Iterator[None]:
    """Raise ConfigError where the block takes longer; only on the main thread of a process.

    The error is raised in the block and, where the block catches it, again at its end: generators
    of the harness take any error for a row that is too long.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    error = ConfigError(f"{action} took longer than {seconds} s; use longer lengths")
    is_over = threading.Event()

    def stop(*_: Any):
        is_over.set()
        raise error

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        if is_over.is_set():
            raise error


@dataclass(frozen=True)
class AnsweredTask:
    """A task with the model that answers it; the first `limit` rows."""

    task: HarnessTask
    model: HarnessModel
    limit: int | None = None
    chat_template: ChatTemplate = "answers"

    @property
    def label(self) -> str:
        """Name for messages."""
        return self.task.label

    @property
    def family(self) -> str:
        """Name of the tasks that are averaged together."""
        return find_family(self.task.name)

    def answer(self, view: View) -> list[Sample]:
        """Return the sample of each row, with the harness' scores; none of choices for the agent.

        Raises TextError for prompts without the passage that the task's rule expects, and for a
        task without a score for single rows.
        """
        writes = self.task.task.OUTPUT_TYPE == "generate_until"
        if view.name == "expand" and not writes:
            log.info("%s compares choices, which the agent does not", self.label)
            return []
        is_chat = self.chat_template == "always" or (self.chat_template == "answers" and writes)
        self.model.view = view
        return run_task(self.task, self.model, self.limit, is_chat)


def run_task(task: HarnessTask, model: HarnessModel, limit: int | None, chat: bool) -> list[Sample]:
    """Answer the first `limit` rows of a task in the model's view, and score them."""
    model.positions.clear()
    rows = answer_rows(task, model, limit, chat)
    return [_read_sample(task, model, number, filtered) for number, filtered in rows.items()]


def answer_rows(
    task: HarnessTask, model: LM, limit: int | None, chat: bool
) -> dict[int, list[Mapping[str, Any]]]:
    """Return the harness' samples of the first `limit` rows, one for each filter, by row number."""
    task.task.set_fewshot_seed(seed=SEED)  # the same examples for every model and view
    results = evaluator.evaluate(
        lm=model,
        task_dict={"tasks": {task.name: task.task}, "groups": {}},
        limit=limit,
        bootstrap_iters=0,
        apply_chat_template=chat,
        fewshot_as_multiturn=False,
    )
    assert results is not None  # on the only process
    rows: dict[int, list[Mapping[str, Any]]] = {}
    for row in results.get("samples", {})[task.name]:
        rows.setdefault(row["doc_id"], []).append(row)
    return rows


def _read_sample(
    task: HarnessTask, model: HarnessModel, number: int, rows: Sequence[Mapping[str, Any]]
) -> Sample:
    """Return the sample of one document, of which the harness has a row for each filter.

    Raises TextError for a task without a metric of single rows.
    """
    scores = {}
    for row in rows:
        suffix = "" if len(rows) == 1 else f",{row['filter']}"
        for metric in row["metrics"]:
            value = read_score(metric, row[metric])
            if value is not None and value != -1:  # RULER's columns of other lengths are -1
                name = "score" if metric == str(task.length) else metric
                scores[f"{name}{suffix}"] = value
    if not scores:
        raise TextError(f"{task.name} has no score for single rows; leave it out")
    first = rows[0]
    target = first["target"]
    answers = [response for responses in first["resps"] for response in responses]
    return Sample(
        task=task.label,
        number=number,
        view=model.view.label,
        answer=answers[0] if isinstance(answers[0], str) else str(answers),
        references=[str(item) for item in target] if isinstance(target, list) else [str(target)],
        scores=scores,
        positions=model.positions[task.name, number],
        tags={"family": find_family(task.name), **({"length": task.length} if task.length else {})},
        prompt=first["prompt_hash"],
        wording=model.wordings[task.name, number],
    )


def read_score(metric: str, value: Any) -> float | None:
    """Return the score of a row; None for what only a corpus has a score of.

    Rows of perplexities are a log-likelihood and the number of words or bytes that share it. Other
    pairs, as those of f1 and mcc, are a right class and the one that the model chose.

    >>> read_score("acc", 1), read_score("word_perplexity", (-12.0, 4)), read_score("f1", (1, 1))
    (1.0, -3.0, None)
    """
    if metric in PERPLEXITIES and isinstance(value, tuple):
        log_likelihood, count = value
        return log_likelihood / count if count else None
    return float(value) if isinstance(value, (int, float, np.number)) else None


def find_family(name: str) -> str:
    """Return the family of a task, over which tables average."""
    return "ruler" if re.fullmatch(RULER_TASKS, name) else name.partition("_")[0]
