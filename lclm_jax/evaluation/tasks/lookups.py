"""Values of keys in lists of random pairs, which the committed small models are trained on.

    cedar harbour: amber kestrel, stone river, paper window, ...     stone?     ->     river

A list cannot be guessed, so without it the share of right answers is that of a random word. Words
are frequent ones of the running Python's documentation, as in training: another version of Python
asks other questions.
"""

import random
from collections.abc import Iterator, Sequence
from functools import cache

from lclm_jax.config import ConfigError
from lclm_jax.data.synthetic import corpus
from lclm_jax.data.synthetic.pairs import (
    WORD_COUNT,
    Pair,
    draw_document,
    draw_pairs,
    frequent_words,
)
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.evaluation.questions import Passage, Question, ask
from lclm_jax.evaluation.tasks.settings import TaskSettings

DEFAULT_LENGTHS, DEFAULT_COUNT = (32, 64, 96), 100  # tokens of a list; questions of each length
MAX_TOKENS = 8  # of an answer, which is a word


def load(settings: TaskSettings) -> list[Question]:
    """Return `limit` questions of each length. Raises ConfigError without a tokenizer."""
    if settings.tokenizer is None:
        raise ConfigError("expected a tokenizer to count the tokens of lists with, got none")
    lengths = settings.lengths or DEFAULT_LENGTHS
    count = DEFAULT_COUNT if settings.limit is None else settings.limit
    return list(generate(settings.tokenizer, lengths, count, settings.seed))


@cache
def read_words() -> list[str]:
    """Return the frequent words of Python's own documentation, of which pairs consist."""
    rows = corpus.documentation(list(corpus.standard_library()))
    return frequent_words([row["text"] for row in rows], WORD_COUNT)


def generate(
    tokenizer: Tokenizer, lengths: Sequence[int], count: int, seed: int = 0
) -> Iterator[Question]:
    """Yield `count` questions about as many lists of each length.

    A list has as many pairs as fit `length` tokens. Raises ConfigError for a length of no pair, or
    of more pairs than there are words.
    """
    words = read_words()
    for length in lengths:
        for number in range(count):
            rng = random.Random(f"{seed}/lookups/{length}/{number}")
            pairs, text = fill(words, length, tokenizer, rng)
            key, value = rng.choice(pairs)
            yield ask(
                f"lookups@{length}",
                number,
                [Passage(text), f" {key}?"],
                references=[value],
                metric="exact",
                max_tokens=MAX_TOKENS,
                tags={"family": "lookups", "length": length, "pairs": len(pairs)},
            )


def fill(
    words: Sequence[str], length: int, tokenizer: Tokenizer, rng: random.Random
) -> tuple[list[Pair], str]:
    """Return pairs and their list, the longest that has at most `length` tokens."""
    pairs, title = draw_pairs(words, rng, len(words), len(words)), rng.getstate()
    least, most = 0, len(words) + 1
    while most - least > 1:
        middle = (least + most) // 2
        rng.setstate(title)
        text = draw_document(words, rng, pairs[:middle])
        if middle <= len(words) and len(tokenizer.encode(text)) <= length:
            least = middle
        else:
            most = middle
    if not 0 < least < len(words):
        raise ConfigError(f"expected a length of 1 to {len(words) - 1} pairs, got {length} tokens")
    rng.setstate(title)
    return pairs[:least], draw_document(words, rng, pairs[:least])
