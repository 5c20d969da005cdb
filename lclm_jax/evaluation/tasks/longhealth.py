"""LongHealth: multiple choice about the letters of a patient (arXiv 2401.14490).

`benchmark_v5.json` of https://github.com/kbressem/LongHealth is one object: patient -> `texts`, an
object of letters by name, and `questions`, each with `question`, `answer_a` to `answer_e` and
`correct`, which is the text of the right option (its letter is read, too).

This is the first of the benchmark's three tasks, where the letters hold the answer. The published
one leaves letters out until the rest fits 16,000 tokens and shuffles them; here, a patient's
letters are all read in their order, so that every question of a patient has the same latents. Each
letter is a passage: it is what an application compresses once.
"""

from collections.abc import Iterator, Mapping, Sequence

from lclm_jax.errors import FileError
from lclm_jax.evaluation.questions import Passage, Question, ask
from lclm_jax.evaluation.tasks.rows import Row, Source, read_rows
from lclm_jax.evaluation.tasks.settings import TaskSettings, spread_rows

TASK = "longhealth"
ORIGIN = "https://github.com/kbressem/LongHealth (data/benchmark_v5.json)"
SOURCE = Source("longhealth", ["benchmark_v5.json"], ORIGIN)
LETTERS = "ABCDE"
MAX_TOKENS = 64
REQUEST = (
    "Which option is right? Answer in one line, in the form "
    '"The correct answer is LETTER: text of the option".'
)


def load(settings: TaskSettings) -> list[Question]:
    """Return the questions about all patients; a limit takes them from each in turn.

    Raises ConfigError or FileError for a file that is missing or malformed.
    """
    (file,) = SOURCE.files(settings.directory)
    questions = ((TASK, question) for row in read_rows(file) for question in _read_file(row))
    chosen = spread_rows(questions, settings.limit, document=lambda item: item[0])
    return [
        ask(
            TASK,
            number,
            [*parts, _ask_choice(question)],
            references=_right_letters(question),
            metric="choice",
            max_tokens=MAX_TOKENS,
            tags={"family": "longhealth", "cluster": patient},
        )
        for _, number, (patient, parts, question) in chosen
    ]


def _read_file(row: Row) -> Iterator[tuple[str, Sequence[str | Passage], Row]]:
    """Yield each question with its patient and the parts of the prompt before it."""
    for name in row.fields:
        patient = row.row(name)
        parts = _show_letters(patient.row("texts"))
        for question in patient.rows("questions"):
            yield name, parts, question


def _show_letters(texts: Row) -> Sequence[str | Passage]:
    if not texts.fields:
        raise FileError(f"{texts.place}: expected letters in {texts.path.rstrip('.')}, got none")
    parts: list[str | Passage] = ["These are the letters about a patient.\n\n"]
    for i, name in enumerate(texts.fields):
        parts += [f"Letter {i + 1}:\n", Passage(texts.text(name)), "\n\n"]
    return parts


def _options(question: Row) -> Mapping[str, str]:
    return {letter: question.answer(f"answer_{letter.lower()}") for letter in LETTERS}


def _ask_choice(question: Row) -> str:
    options = "\n".join(f"{letter}: {text}" for letter, text in _options(question).items())
    return f"{question.text('question')}\n\n{options}\n\n{REQUEST}"


def _right_letters(question: Row) -> list[str]:
    """Return the letter of the right option, or letters where two options have the same text."""
    correct = question.answer("correct").strip()
    options = _options(question)
    if letters := [letter for letter, text in options.items() if text.strip() == correct]:
        return letters
    if correct.upper() in options:
        return [correct.upper()]
    raise question.error("correct", "the text or the letter of an option", correct)
