"""Questions of one's own about one's own documents.

`questions.jsonl` has a row for each question:

    {"question": "When does it end?", "answer": "2027", "document": "contracts/lease.pdf"}
    {"question": "Who signed?", "answers": ["Ada", "A. Byron"], "context": "Signed by Ada Byron."}

`document` is a path, or a list of several, below the directory of documents, in any format of
`inference.documents`; `context` is the text itself. `answers` are alternatives, each of which is
right. `metric` is a name of `evaluation.metrics.METRICS`; without one an answer is right if it
contains a reference. A question follows its documents as in `launch.ask`.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

from lclm_jax.errors import ConfigError, FileError, TextError
from lclm_jax.evaluation.metrics import METRICS
from lclm_jax.evaluation.questions import Passage, Question, ask
from lclm_jax.evaluation.tasks.rows import Row, read_rows
from lclm_jax.evaluation.tasks.settings import TaskSettings
from lclm_jax.inference.documents import read_document

TASK = "questions"
FILE_NAME = "questions.jsonl"
MAX_TOKENS = 64
MIN_CLUSTERS = 10  # documents, below which intervals hold for questions about these documents only
REMEDY = "mend the row"

ReadDocument = Callable[[str], str]  # from its name to its text


def load(settings: TaskSettings) -> list[Question]:
    """Return the questions in `questions.jsonl` of a directory, which has the documents, too.

    Raises the errors of `load_questions`.
    """
    if settings.directory is None:
        raise ConfigError(f"expected a directory with {FILE_NAME}, got none; name it")
    return load_questions(settings.directory / FILE_NAME, settings.directory, settings.limit)


def load_questions(
    file: Path, documents: Path, limit: int | None = None, max_tokens: int = MAX_TOKENS
) -> list[Question]:
    """Return the questions in a file about texts in it and documents below a directory.

    Questions about the same documents have the same tag `document`. Questions that share any
    document, or that others connect, are a cluster. Where there are MIN_CLUSTERS of them, questions
    have the tag `cluster`, too, so that intervals hold for questions about further documents.

    Raises FileError for a file without rows, and for a row, which it names, that is malformed or
    whose document cannot be read.
    """
    if not file.is_file():
        raise FileError(f"{file}: expected a file of questions, got no such file; check the path")

    @cache
    def read(name: str) -> str:
        return read_document(documents / name).text

    rows = islice(read_rows(file, REMEDY), limit)
    questions, documents_of = [], []
    for number, row in enumerate(rows):
        names = _name_documents(row)
        questions.append(_question(number, row, names, read, max_tokens))
        documents_of.append(names)
    if not questions:
        raise FileError(f"{file}: expected at least one question, got none")
    clusters = _find_clusters(documents_of)
    if len(set(clusters)) < MIN_CLUSTERS:
        return questions
    return [
        replace(question, tags={**question.tags, "cluster": cluster})
        for question, cluster in zip(questions, clusters, strict=True)
    ]


def _find_clusters(documents_of: Sequence[Sequence[str]]) -> list[str]:
    """Return the cluster of each question, given the names of its documents.

    Clusters are the connected components of documents, called as the first of them by name.

    >>> _find_clusters([["b"], ["c"], ["b", "a"], ["d"]])
    ['a', 'c', 'a', 'd']
    """
    connected: dict[str, set[str]] = {}
    for names in documents_of:
        joined = set(names).union(*(connected.get(name, ()) for name in names))
        connected |= dict.fromkeys(joined, joined)
    return [min(connected[names[0]]) for names in documents_of]


def _question(
    number: int, row: Row, names: Sequence[str], read: ReadDocument, max_tokens: int
) -> Question:
    return ask(
        TASK,
        number,
        [*_read_context(row, names, read), f" {row.text('question').strip()}"],
        references=_answers(row),
        metric=_metric(row),
        max_tokens=max_tokens,
        tags={"family": TASK, "document": ", ".join(names)},
    )


def _name_documents(row: Row) -> list[str]:
    """Return the names of a question's documents; that of its own text is a hash."""
    if "context" in row.fields and "document" in row.fields:
        raise row.error("document", "either a context or a document", row.fields["document"])
    if "context" in row.fields:
        return [hashlib.sha256(row.text("context").encode()).hexdigest()[:16]]
    return row.answers("document")


def _read_context(row: Row, names: Sequence[str], read: ReadDocument) -> Sequence[str | Passage]:
    """Return the parts of the context of a question."""
    if "context" in row.fields:
        return [Passage(row.text("context"))]
    passages = [Passage(_read_document(row, name, read)) for name in names]
    return passages if len(passages) == 1 else list(_name_passages(names, passages))


def _read_document(row: Row, name: str, read: ReadDocument) -> str:
    try:
        return read(name)
    except TextError as error:
        raise FileError(f"{row.place}: document {name!r} cannot be read: {error}") from error


def _name_passages(names: Sequence[str], passages: Sequence[Passage]) -> Iterator[str | Passage]:
    """Yield passages under the names of their documents."""
    for name, passage in zip(names, passages, strict=True):
        yield from (f"{name}:\n", passage, "\n")


def _answers(row: Row) -> list[str]:
    if "answer" in row.fields and "answers" in row.fields:
        raise row.error("answers", "either an answer or answers", row.fields["answers"])
    return row.answers("answers" if "answers" in row.fields else "answer")


def _metric(row: Row) -> str:
    """Return the name of the metric, which has been called once.

    A metric that needs a package says so before any question is answered.
    """
    name = row.optional_text("metric") or "contains_any"
    if name not in METRICS:
        raise row.error("metric", f"one of {', '.join(METRICS)}", name)
    METRICS[name]("", ["reference"])
    return name
