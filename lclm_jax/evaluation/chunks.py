"""Chunks of passages, ranked by the words that they have in common with a question.

The ranking is BM25, which needs neither a model nor an index: an evaluation on any machine can ask
whether a few chunks as text, beside latents of the rest, are worth their positions. An application
that has a retriever (`inference.retrieval`) will rank better, not worse.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.evaluation.questions import Question
from lclm_jax.inference.retrieval import Range

# Words, and single characters of scripts that are written without blanks.
WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff]+|[\u3040-\u30ff\u3400-\u9fff]")
# Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009).
SATURATION, LENGTH_WEIGHT = 1.2, 0.75


def choose_chunks(
    question: Question, count: int, tokens: int, tokenizer: Tokenizer
) -> list[list[Range]]:
    """Return the characters of the `count` chunks of `tokens` tokens that fit a question best.

    There is a list for every passage of the question, in the order of its text.
    """
    texts = [passage.text for passage in question.passages]
    places = [
        (passage, chunk)
        for passage, text in enumerate(texts)
        for chunk in split_chunks(text, tokens, tokenizer)
    ]
    query = " ".join(part for parts in question.contents for part in parts if isinstance(part, str))
    order = rank_texts(query, [texts[passage][start:stop] for passage, (start, stop) in places])
    chosen = [places[place] for place in sorted(order[:count])]
    return [[chunk for owner, chunk in chosen if owner == n] for n in range(len(texts))]


def split_chunks(text: str, tokens: int, tokenizer: Tokenizer) -> list[Range]:
    """Return the characters of consecutive chunks of `tokens` tokens; the last may be shorter."""
    starts: list[int] = []
    count = 0
    for part, offsets in tokenizer.encode_stream_with_offsets(text):
        starts += offsets[-count % tokens :: tokens, 0].tolist()
        count += len(part)
    bounds = sorted({0, *starts, len(text)})
    return list(pairwise(bounds))


def rank_texts(query: str, texts: Sequence[str]) -> list[int]:
    """Return the numbers of texts by their BM25 score for a query, the best first.

    Texts of equal scores keep their order.

    >>> rank_texts("Who likes figs?", ["Ada likes pears.", "Ben likes figs.", "Cy sleeps."])
    [1, 0, 2]
    """
    counts = [Counter(split_words(text)) for text in texts]
    lengths = [words.total() for words in counts]
    mean_length = sum(lengths) / max(1, len(lengths)) or 1.0
    scores = [0.0] * len(texts)
    for word in set(split_words(query)):
        containing = sum(word in words for words in counts)
        rarity = math.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
        for number, (words, length) in enumerate(zip(counts, lengths, strict=True)):
            penalty = 1 - LENGTH_WEIGHT + LENGTH_WEIGHT * length / mean_length
            frequency = words[word]
            gain = frequency * (SATURATION + 1) / (frequency + SATURATION * penalty)
            scores[number] += rarity * gain
    return sorted(range(len(texts)), key=lambda number: -scores[number])


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case.

    >>> split_words("Lease 12 ends; 租约")
    ['lease', '12', 'ends', '租', '约']
    """
    return WORD.findall(text.lower())
