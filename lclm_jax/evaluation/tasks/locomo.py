"""LoCoMo: questions about months of conversation between two people (arXiv 2402.17753).

`locomo10.json` is a list of ten rows. `conversation` has `session_1`, `session_2`, ..., lists of
turns with `speaker` and `text` (and `blip_caption` for a shared picture), and the date of each in
`session_1_date_time`, .... `qa` is a list of `question`, `answer` and `category`: 1 several
sessions, 2 time, 3 knowledge of the world, 4 one session, 5 adversarial, which has no answer.

The whole conversation is read, without retrieval. Answers are scored by words in common. The paper
also stems words and scores each item of a list of answers, and most later results come from an LLM
as a judge, so that neither can be compared. Adversarial questions are a task of their own, where
the model has to say that it is not mentioned.
"""

import re
from collections.abc import Iterator, Sequence

from lclm_jax.evaluation.questions import Passage, Question, ask
from lclm_jax.evaluation.tasks.rows import Row, Source, read_rows
from lclm_jax.evaluation.tasks.sessions import (
    NOT_MENTIONED,
    Session,
    ask_briefly,
    show_sessions,
)
from lclm_jax.evaluation.tasks.settings import TaskSettings, spread_rows

TASK, ADVERSARIAL_TASK = "locomo", "locomo_adversarial"
ORIGIN = "https://github.com/snap-research/locomo (data/locomo10.json)"
SOURCE = Source("locomo", ["locomo10.json"], ORIGIN)
KINDS = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
ADVERSARIAL, OPEN_DOMAIN = 5, 3
REFUSALS = [NOT_MENTIONED, "no information available"]
MAX_TOKENS = 64

# A question, with the beginning of its prompt and the name of its conversation.
Item = tuple[Row, Sequence[str | Passage], str]


def load(settings: TaskSettings) -> list[Question]:
    """Return the questions about all conversations; a limit takes them from each in turn.

    Raises ConfigError or FileError for a file that is missing or malformed.
    """
    (file,) = SOURCE.files(settings.directory)
    items = (item for row in read_rows(file) for item in _read_conversation(row))
    chosen = spread_rows(items, settings.limit, document=lambda item: item[2])
    return [_question(*numbered) for numbered in chosen]


def _read_conversation(row: Row) -> Iterator[tuple[str, Item]]:
    """Yield each question about a conversation with its task."""
    parts, name = show_sessions(_sessions(row.row("conversation"))), row.answer("sample_id")
    for question in row.rows("qa"):
        is_adversarial = _category(question) == ADVERSARIAL
        yield ADVERSARIAL_TASK if is_adversarial else TASK, (question, parts, name)


def _category(question: Row) -> int:
    category = question.fields.get("category")
    if category not in KINDS:
        raise question.error("category", f"one of {', '.join(map(str, KINDS))}", category)
    return int(category)


def _question(task: str, number: int, item: Item) -> Question:
    question, parts, name = item
    category = _category(question)
    return ask(
        task,
        number,
        [*parts, ask_briefly(question.text("question"))],
        references=_references(question, category),
        metric="contains_any" if category == ADVERSARIAL else "token_f1",
        max_tokens=MAX_TOKENS,
        tags={"family": "locomo", "kind": KINDS[category], "cluster": name},
    )


def _references(question: Row, category: int) -> list[str]:
    if category == ADVERSARIAL:
        return REFUSALS
    answer = question.answer("answer")
    # The explanation after the answer is not scored, as in the paper's own evaluation.
    return [answer.partition(";")[0].strip() if category == OPEN_DOMAIN else answer]


def _sessions(conversation: Row) -> list[Session]:
    """Return the sessions in their order; a date without turns is no session."""
    names = [re.fullmatch(r"session_([0-9]+)", name) for name in conversation.fields]
    numbers = sorted(int(match[1]) for match in names if match)
    if not numbers:
        raise conversation.error("session_1", "a list of turns", None)
    return [
        Session(
            conversation.text(f"session_{number}_date_time"),
            "\n".join(_turn(turn) for turn in conversation.rows(f"session_{number}")),
        )
        for number in numbers
    ]


def _turn(turn: Row) -> str:
    caption = turn.optional_text("blip_caption")
    picture = f" [shares a picture: {caption}]" if caption else ""
    return f"{turn.text('speaker')}: {turn.optional_text('text')}{picture}"
