"""Rows on which the published models were evaluated: the dataset `latent-context/lclm-eval`.

Its configs are ruler (39,000 rows), gsm8k (1,319), longhealth5 (400) and longbench (4,750). Columns
are `prompt`, a rendered ChatML prompt with memory tags around the context, `category`, as in
`memwrap/ruler/niah_single_1_4096` or `narrativeqa`, and `extra_info` with `ground_truth.answers`
and `scoring_function`. Files are Parquet or JSON lines in a folder for each config.

Known names of `scoring_function` are those of RULER and LongBench; names of the other two configs
are assumed. A row without one is scored by its task. Bounds of answers are those of RULER and
LongBench; the bounds of the other two are not published and chosen here.

Rows of longhealth5 do not say which patient they are about, so that they have no tag `cluster`:
their intervals count questions about one patient as independent and are too narrow. The task
`longhealth`, from the benchmark's own file, knows its patients.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lclm_jax.data.chat import Message, split_context_tags
from lclm_jax.data.text.tokenizer import TURN_END, TURN_START, TextError
from lclm_jax.errors import ConfigError, FileError
from lclm_jax.evaluation.questions import Passage, Question
from lclm_jax.evaluation.tasks.rows import Row, Source, read_rows
from lclm_jax.evaluation.tasks.settings import TaskSettings, number_rows
from lclm_jax.inference.sampling import Sampling

DATASET = "latent-context/lclm-eval"
ADDRESS = f"https://huggingface.co/datasets/{DATASET}"
PATTERNS = ("*.parquet", "*.jsonl")
TURN = re.compile(f"({re.escape(TURN_START)}[a-z]+\n|{re.escape(TURN_END)}\n?)")

# Name in the rows, without the name of the benchmark before it and "_score" after it -> metric.
SCORING_FUNCTIONS = {
    "string_match_all": "contains_all",
    "string_match_part": "contains_any",
    "exact_match": "exact",
    "gsm8k": "number",
    "math": "number",
    "longhealth": "choice",
    "multiple_choice": "choice",
    "f1": "token_f1",
    "qa_f1": "token_f1",
    "qa_f1_zh": "token_f1_zh",
    "rouge": "rouge_l",
    "rouge_zh": "rouge_l_zh",
    "classification": "classification",
    "count": "count",
    "retrieval": "retrieval",
    "retrieval_zh": "retrieval_zh",
    "code_sim": "code_similarity",
}
BENCHMARK_PREFIX = re.compile("^(ruler|gsm8k|longhealth5?|longbench)_")


@dataclass(frozen=True)
class Kind:
    """The settings that the category of a row implies; fields are those of a Question."""

    task: str
    metric: str
    max_tokens: int
    stop: tuple[str, ...] = ()
    tags: dict[str, Any] = field(default_factory=dict)


# --- RULER ---

# By the first word of a task: its metric and the longest answer in tokens.
RULER = {
    "niah": ("contains_all", 128),
    "vt": ("contains_all", 30),
    "cwe": ("contains_all", 120),
    "fwe": ("contains_all", 50),
    "qa": ("contains_any", 32),
}
RULER_CATEGORY = re.compile(r"((?:niah|vt|cwe|fwe|qa)(?:_\w+)??)_([0-9]{3,})")


def load_ruler(settings: TaskSettings) -> list[Question]:
    """Return RULER's rows, whose tasks are called as in "ruler_niah_single_1@4096".

    Raises ConfigError for a length that no row has.
    """
    kinds = ((_ruler_kind(row), row) for row in _read_config("ruler", settings))
    lengths: set[int] = set()

    def wanted() -> Iterable[tuple[Kind, Row]]:
        for kind, row in kinds:
            lengths.add(kind.tags["length"])
            if not settings.lengths or kind.tags["length"] in settings.lengths:
                yield kind, row

    questions = _make_questions(wanted(), settings)
    if absent := sorted(set(settings.lengths) - lengths):
        listed = ", ".join(map(str, sorted(lengths)))
        raise ConfigError(f"the rows of ruler have lengths {listed}; got {absent[0]}")
    return questions


def _ruler_kind(row: Row) -> Kind:
    category = row.text("category")
    match = RULER_CATEGORY.fullmatch(_last_part(category))
    if match is None:
        raise row.error("category", "a task of RULER and a length, as niah_single_1_4096", category)
    name, length = match[1], int(match[2])
    metric, max_tokens = RULER[name.partition("_")[0]]
    tags = {"length": length, "family": "ruler"}
    return Kind(f"ruler_{name}@{length}", metric, max_tokens, tags=tags)


# --- GSM8K and LongHealth ---

GSM8K = Kind("gsm8k", "number", 1024, tags={"family": "gsm8k"})
LONGHEALTH = Kind("longhealth5", "choice", 256, tags={"family": "longhealth"})


def load_gsm8k(settings: TaskSettings) -> list[Question]:
    """Return the rows of GSM8K, whose problems are contexts as a whole."""
    rows = _read_config("gsm8k", settings)
    return _make_questions(((GSM8K, row) for row in rows), settings)


def load_longhealth5(settings: TaskSettings) -> list[Question]:
    """Return the rows of LongHealth with five documents each; their patients are not known."""
    rows = _read_config("longhealth5", settings)
    return _make_questions(((LONGHEALTH, row) for row in rows), settings)


# --- LongBench ---

# Task -> metric, longest answer in tokens.
LONGBENCH = {
    "narrativeqa": ("token_f1", 128),
    "qasper": ("token_f1", 128),
    "multifieldqa_en": ("token_f1", 64),
    "multifieldqa_zh": ("token_f1_zh", 64),
    "hotpotqa": ("token_f1", 32),
    "2wikimqa": ("token_f1", 32),
    "musique": ("token_f1", 32),
    "dureader": ("rouge_l_zh", 128),
    "gov_report": ("rouge_l", 512),
    "qmsum": ("rouge_l", 512),
    "multi_news": ("rouge_l", 512),
    "vcsum": ("rouge_l_zh", 512),
    "trec": ("classification", 64),
    "triviaqa": ("token_f1", 32),
    "samsum": ("rouge_l", 128),
    "lsht": ("classification", 64),
    "passage_count": ("count", 32),
    "passage_retrieval_en": ("retrieval", 32),
    "passage_retrieval_zh": ("retrieval_zh", 32),
    "lcc": ("code_similarity", 64),
    "repobench-p": ("code_similarity", 64),
}
ONE_LINE = ("trec", "triviaqa", "samsum", "lsht")  # the answer ends with its line
CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")


def load_longbench(settings: TaskSettings) -> list[Question]:
    """Return the rows of LongBench, whose tasks are called as in "longbench_hotpotqa"."""
    rows = _read_config("longbench", settings)
    return _make_questions(((_longbench_kind(row), row) for row in rows), settings)


def _longbench_kind(row: Row) -> Kind:
    category = row.text("category")
    name = _last_part(category).removeprefix("longbench_")
    if name not in LONGBENCH:
        raise row.error("category", f"one of {', '.join(LONGBENCH)}", category)
    metric, max_tokens = LONGBENCH[name]
    stop = ("\n",) if name in ONE_LINE else ()
    tags = {"family": "longbench", "language": "zh" if name in CHINESE else "en"}
    return Kind(f"longbench_{name}", metric, max_tokens, stop, tags)


# --- rows ---


def _read_config(config: str, settings: TaskSettings) -> Iterable[Row]:
    """Yield the rows of a config. Raises FileError that says how to download them."""
    source = Source(f"lclm-eval/{config}", PATTERNS, f"{ADDRESS} (folder {config})")
    for file in source.files(settings.directory):
        yield from read_rows(file)


def _last_part(category: str) -> str:
    return category.rpartition("/")[2]


def _make_questions(rows: Iterable[tuple[Kind, Row]], settings: TaskSettings) -> list[Question]:
    """Return the questions of the first rows of each task."""
    by_task = ((kind.task, (kind, row)) for kind, row in rows)
    return [
        _make_question(kind, number, row)
        for _, number, (kind, row) in number_rows(by_task, settings.limit)
    ]


def _make_question(kind: Kind, number: int, row: Row) -> Question:
    extra = row.row("extra_info")
    metric = _find_metric(extra, kind)
    references = extra.row("ground_truth").answers("answers")
    if metric == "classification":
        references = references[:1] + _wrong_classes(extra, references[0])
    question = Question(
        kind.task,
        number,
        _parse(row),
        references=references,
        metric=metric,
        max_tokens=kind.max_tokens,
        sampling=Sampling(stop=kind.stop),
        tags=kind.tags,
    )
    if not question.passages:
        raise row.error("prompt", "a context between memory tags", row.text("prompt"))
    return question


def _find_metric(extra: Row, kind: Kind) -> str:
    """Return the metric that a row names, or that of its task where it names none."""
    name = extra.optional_text("scoring_function")
    if not name:
        return kind.metric
    short = BENCHMARK_PREFIX.sub("", name.removesuffix("_score"))
    if short not in SCORING_FUNCTIONS:
        expected = f"one of {', '.join(SCORING_FUNCTIONS)}"
        raise extra.error("scoring_function", expected, name)
    # Numbers and letters match exactly after they are taken from the answer.
    is_extracted = short == "exact_match" and kind.metric in ("number", "choice")
    return kind.metric if is_extracted else SCORING_FUNCTIONS[short]


def _wrong_classes(extra: Row, right: str) -> list[str]:
    """Return the other classes; without a list of them, naming the right one is enough."""
    if extra.fields.get("all_classes") is None:
        return []
    return [name for name in extra.answers("all_classes") if name != right]


def _parse(row: Row) -> list[Message]:
    try:
        return parse_prompt(row.text("prompt"))
    except TextError as error:
        raise FileError(f"{row.place}: prompt: {error}") from error


# --- prompts ---


def parse_prompt(prompt: str) -> list[Message]:
    """Return the messages of a rendered ChatML prompt, with contexts as passages.

    The prompt ends in a turn of the assistant, of which a message is made if there is text in it.
    Inside of a context, what spells a turn is text. Raises TextError for another prompt.

    >>> prompt = (
    ...     "<|im_start|>user\\n<|memory_start|>Ben likes figs.<|memory_end|> Who?<|im_end|>\\n"
    ...     "<|im_start|>assistant\\n"
    ... )
    >>> parse_prompt(prompt)
    [{'role': 'user', 'content': [Passage(text='Ben likes figs.'), ' Who?']}]
    """
    messages: list[Message] = []
    parts: list[str | Passage] | None = None  # of the turn that has not ended
    for piece, is_context in split_context_tags(prompt):
        for text in [piece] if is_context else TURN.split(piece):
            marker = "" if is_context or not TURN.fullmatch(text) else text
            if marker.startswith(TURN_START) and parts is None:
                parts = []
                role = text.removeprefix(TURN_START).rstrip("\n")
                messages.append({"role": role, "content": parts})
            elif marker.startswith(TURN_END) and parts is not None:
                parts = None
            elif not marker and parts is not None:
                parts += [Passage(text)] if is_context else [text] * bool(text)
            elif text.strip():
                raise TextError(f"expected turns of ChatML one after another, got {text[:80]!r}")
    if parts is None or messages[-1]["role"] != "assistant":
        raise TextError("expected a prompt that ends where the assistant begins, got another")
    return messages if parts else messages[:-1]


LOADERS: dict[str, Callable[[TaskSettings], list[Question]]] = {
    "lclm-eval-ruler": load_ruler,
    "lclm-eval-gsm8k": load_gsm8k,
    "lclm-eval-longhealth": load_longhealth5,
    "lclm-eval-longbench": load_longbench,
}
