"""LongMemEval: questions about many sessions with an assistant (arXiv 2410.10813).

`longmemeval_s.json`, `longmemeval_m.json` and `longmemeval_oracle.json`, or later editions such as
`longmemeval_s_cleaned.json`, are lists of rows with `question_id`, `question_type`, `question`,
`answer`, `question_date`, `haystack_dates` and `haystack_sessions`, a list of lists of turns with
`role` and `content`.

All sessions are read, without retrieval. Published scores come from an LLM as a judge; here an
answer is right if it contains the reference, so that the two cannot be compared. Questions without
an answer in the history (`question_id` ends in `_abs`) are right if the model says so. Answers to
questions of type single-session-preference describe what a good answer would respect; they are a
task of their own, scored by words in common.
"""

from collections.abc import Iterator

from lclm_jax.evaluation.questions import Question, ask
from lclm_jax.evaluation.tasks.rows import Row, Source, read_rows
from lclm_jax.evaluation.tasks.sessions import (
    NOT_MENTIONED,
    Session,
    ask_briefly,
    show_sessions,
)
from lclm_jax.evaluation.tasks.settings import TaskSettings, number_rows

ORIGIN = "https://huggingface.co/datasets/xiaowu0162/longmemeval"
SOURCE = Source("longmemeval", ["longmemeval_*.json"], ORIGIN)
PREFERENCE = "single-session-preference"
MAX_TOKENS = 64


def load(settings: TaskSettings) -> list[Question]:
    """Return the questions of all files; a task is called as its file.

    Raises ConfigError or FileError for a file that is missing or malformed.
    """
    rows = (
        (file.stem + _suffix(row), row)
        for file in SOURCE.files(settings.directory)
        for row in read_rows(file)
    )
    return [_question(*numbered) for numbered in number_rows(rows, settings.limit)]


def _suffix(row: Row) -> str:
    return "_preference" if row.text("question_type") == PREFERENCE else ""


def _question(task: str, number: int, row: Row) -> Question:
    is_answered = not row.answer("question_id").endswith("_abs")
    kind = row.text("question_type")
    today = f"Today is {row.text('question_date')}. "
    return ask(
        task,
        number,
        [*show_sessions(_sessions(row)), ask_briefly(today + row.text("question"))],
        references=[row.answer("answer") if is_answered else NOT_MENTIONED],
        metric="token_f1" if kind == PREFERENCE and is_answered else "contains_any",
        max_tokens=MAX_TOKENS,
        tags={"family": "longmemeval", "kind": kind if is_answered else "abstention"},
    )


def _sessions(row: Row) -> list[Session]:
    """Return the sessions by date, which the file of oracle sessions does not follow."""
    dates, count = row.answers("haystack_dates"), len(row.items("haystack_sessions"))
    if len(dates) != count:
        raise row.error("haystack_dates", f"a date for each of {count} sessions", dates)
    sessions = [Session(date, text) for date, text in zip(dates, _texts(row), strict=True)]
    return sorted(sessions, key=lambda session: session.date)  # as "2023/05/20 (Sat) 02:21"


def _texts(row: Row) -> Iterator[str]:
    """Yield the turns of each session as text."""
    for i, turns in enumerate(row.items("haystack_sessions")):
        name = f"haystack_sessions[{i}]"
        session = Row(row.place, {name: turns}, row.path)
        yield "\n".join(_turn(turn) for turn in session.rows(name))


def _turn(turn: Row) -> str:
    return f"{turn.text('role')}: {turn.optional_text('content')}"
