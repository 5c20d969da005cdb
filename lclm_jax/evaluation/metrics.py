"""Scores of an answer against right answers, from 0 to 1, in a table by name.

A metric is a pure function of the answer and of at least one reference. Those that LongBench
defines come from lm-evaluation-harness (`lm-eval[longbench]`), which is imported when one is used.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from types import ModuleType

from lclm_jax.errors import ConfigError

Metric = Callable[[str, Sequence[str]], float]

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f]")
FINAL_ANSWER = "####"  # before the number that ends a solution of GSM8K
NUMBER = re.compile(r"(?<![0-9])-?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
# Letters of options: those that words announce, by how much the words say, and one that begins an
# answer.
ANNOUNCED_LETTERS = (
    re.compile(r"(?i:answer(?:\s+is)?\s*:?\s*(?:(?:option|choice)\s+)?)[*(\[]*([A-J])\b"),
    re.compile(r"(?i:(?:option|choice)\s*:?\s*)[*(\[]*([A-J])\b"),
)
LEADING_LETTER = re.compile(r"[*(\[]*([A-J])(?:[*)\].:,\n]|$)")
LONE_LETTER = re.compile(r"[A-Za-z]")
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


# --- text that an answer names ---


def contains_all(answer: str, references: Sequence[str]) -> float:
    """Return the share of references that stand in the answer, whatever their case.

    This is RULER's score of all tasks but question answering (arXiv 2404.06654).
    """
    return sum(_contained(answer, references)) / len(references)


def contains_any(answer: str, references: Sequence[str]) -> float:
    """Return 1 if a reference stands in the answer, whatever its case: RULER's score of qa."""
    return float(any(_contained(answer, references)))


def _contained(answer: str, references: Sequence[str]) -> list[bool]:
    text = CONTROL_CHARACTERS.sub("\n", answer.strip()).strip().lower()
    return [reference.lower() in text for reference in references]


def exact(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the answer is a reference, apart from white space around both."""
    return float(answer.strip() in [reference.strip() for reference in references])


# --- numbers and letters ---


def number(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the final number of the answer equals that of a reference.

    The final number follows `####` where that is written, as in the solutions of GSM8K (arXiv
    2110.14168), and is the last one elsewhere. A comma between thousands is ignored.
    """
    value = final_number(answer)
    values = [final_number(reference) for reference in references]
    return float(value is not None and value in values)


def final_number(text: str) -> Decimal | None:
    """Return the final number of a solution; None where there is none.

    >>> final_number("He pays 3 * $400 = $1,200.50. #### 1,200.50")
    Decimal('1200.50')
    """
    text = text.replace("\N{MINUS SIGN}", "-")
    _, marker, ending = text.partition(FINAL_ANSWER)
    matches = NUMBER.findall(ending if marker else text)
    if not matches:
        return None
    return Decimal(matches[0 if marker else -1].replace(",", ""))


def choice(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the answer chooses the option of a reference.

    A reference is a letter, alone or before the text of its option; a reference without a letter
    has to stand in the answer. LongHealth (arXiv 2401.14490) asks for "The correct answer is
    LETTER: TEXT"; a letter that begins the answer counts too.
    """
    letter = chosen_letter(answer)
    for reference in references:
        right = option_letter(reference)
        if right is None and contains_any(answer, [reference]):
            return 1.0
        if right is not None and right == letter:
            return 1.0
    return 0.0


def option_letter(reference: str) -> str | None:
    """Return the letter of the option that a reference names; None where it has none.

    >>> [option_letter(text) for text in ("B", "(b)", "B: figs", "figs")]
    ['B', 'B', 'B', None]
    """
    letter = reference.strip().strip("()[]*.:")
    return letter.upper() if LONE_LETTER.fullmatch(letter) else chosen_letter(reference)


def chosen_letter(text: str) -> str | None:
    """Return the letter, A to J, of the option that a text chooses; None where it chooses none.

    >>> [chosen_letter(text) for text in ("The correct answer is B: figs.", "(C)", "A fig.")]
    ['B', 'C', None]
    """
    for pattern in ANNOUNCED_LETTERS:
        if letters := pattern.findall(text):
            return letters[-1]
    leading = LEADING_LETTER.match(text.strip())
    return leading[1] if leading else None


# --- words in common ---


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the best F1 of the words in common with a reference.

    Words are compared as by SQuAD (arXiv 1606.05250): in lower case, without punctuation and
    English articles.
    """
    return max(_f1(_words(answer), _words(reference)) for reference in references)


def _words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def _f1(words: Sequence[str], right_words: Sequence[str]) -> float:
    shared = (Counter(words) & Counter(right_words)).total()
    return 2 * shared / (len(words) + len(right_words)) if shared else 0.0


# --- LongBench ---


def classification(answer: str, references: Sequence[str]) -> float:
    """Return LongBench's score of a class: 1 / number of classes that the answer names, or 0.

    The first reference is the right class; the others are the wrong ones.
    """
    function = _longbench_metrics().classification_score
    return float(function(answer.strip(), references[0], all_classes=list(references)))


def _longbench(name: str, strip: bool = True) -> Metric:
    """Return a metric of LongBench (arXiv 2308.14508): the best score over all references."""

    def score(answer: str, references: Sequence[str]) -> float:
        function = getattr(_longbench_metrics(), name)
        text = answer.strip() if strip else answer
        return max(float(function(text, reference)) for reference in references)

    return score


def _longbench_metrics() -> ModuleType:
    try:
        from lm_eval.tasks.longbench import metrics
    except ImportError as error:
        raise ConfigError(
            "this score of LongBench needs the packages of lm-eval[longbench]; "
            "pip install -e '.[evaluation]'"
        ) from error
    return metrics


METRICS: dict[str, Metric] = {
    "contains_all": contains_all,
    "contains_any": contains_any,
    "exact": exact,
    "number": number,
    "choice": choice,
    "token_f1": token_f1,
    "token_f1_zh": _longbench("qa_f1_zh_score"),
    "rouge_l": _longbench("rouge_score"),
    "rouge_l_zh": _longbench("rouge_zh_score"),
    "classification": classification,
    "count": _longbench("count_score"),
    "retrieval": _longbench("retrieval_score"),
    "retrieval_zh": _longbench("retrieval_zh_score"),
    "code_similarity": _longbench("code_sim_score", strip=False),
}
