"""Traces of an agent that reads chunks as latents and expands those it needs word for word.

As in section 7 of the paper, the first turn holds a question and every chunk of a text, numbered
and compressed. The assistant asks for chunks (`EXPAND: 7, 9`), gets their text in the next turn,
and answers (`ANSWER: ...`).
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lclm_jax.data.text.tokenizer import Tokenizer

CHUNK_TOKENS = 512
MAX_CHUNKS_PER_ROUND = 3
MAX_ROUNDS = 5  # a round is one request for chunks and their text
DETOUR_SHARE = 0.25  # of the traces first expand a chunk next to the right one
MAX_LINES_TRIED = 20
INSTRUCTIONS = (
    "The text below comes in numbered chunks, compressed. "
    "Write EXPAND: and chunk numbers to read chunks word for word, "
    "ANSWER: and the answer when you know it.\n\n"
)
QUESTION_FORMS = (
    "Which words come right after “{}”?",
    "How does the line go on after “{}”?",
    "Quote what follows “{}”.",
    "Complete the line that begins with “{}”, word for word.",
    "What stands directly after “{}” in the text?",
    "After “{}”, what are the next words?",
)
QUOTED_WORDS = 5  # the first words of a line, which a question quotes
MIN_ANSWER_WORDS, MAX_ANSWER_WORDS = 3, 12


def build_expand_chat(
    text: str, tokenizer: Tokenizer, question: str | None = None, answer: str | None = None
) -> dict[str, Any] | None:
    """Return a chat over the chunks of `text`, which decides every random choice.

    Without a question, the chat asks how a line goes on after its first words. Returns None for a
    text of one chunk, for a text without the answer, and for an answer across too many chunks.
    """
    digest = hashlib.sha256(text.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    bounds = _chunk_bounds(text, tokenizer)
    if len(bounds) < 2:
        return None
    if question and answer:
        first = text.find(answer)
        last = first + len(answer)
    else:
        question, answer, (first, last) = _ask_about_line(text, rng)
    if not question or not answer or first < 0:
        return None

    rounds = _plan_rounds(bounds, first, last, rng)
    if rounds is None:
        return None
    chunks = [text[start:stop] for start, stop in bounds]
    return {"messages": _write_messages(chunks, rounds, question, answer)}


def _plan_rounds(
    bounds: list[tuple[int, int]], first: int, last: int, rng: np.random.Generator
) -> list[list[int]] | None:
    """Return the chunks to expand in each round to read characters [first, last).

    Returns None where this takes too many rounds.
    """
    needed = [i for i, (start, stop) in enumerate(bounds) if start < last and first < stop]
    starts = range(0, len(needed), MAX_CHUNKS_PER_ROUND)
    rounds = [needed[i : i + MAX_CHUNKS_PER_ROUND] for i in starts]
    if len(rounds) > MAX_ROUNDS - 1:  # a detour takes one more
        return None

    neighbours = [i for i in (needed[0] - 1, needed[-1] + 1) if 0 <= i < len(bounds)]
    if neighbours and rng.random() < DETOUR_SHARE:
        rounds = [[int(rng.choice(neighbours))], *rounds]
    return rounds


def _write_messages(
    chunks: list[str], rounds: list[list[int]], question: str, answer: str
) -> list[dict[str, Any]]:
    """Return the messages of a trace that expands the chunks of each round, then answers."""
    content = write_first_turn([{"context": chunk} for chunk in chunks], question)
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    for expanded in rounds:
        numbers = ", ".join(str(i + 1) for i in expanded)
        messages.append({"role": "assistant", "content": f"EXPAND: {numbers}"})
        text = write_expanded({i + 1: chunks[i] for i in expanded})
        messages.append({"role": "user", "content": [{"text": text}]})
    messages.append({"role": "assistant", "content": f"ANSWER: {answer}"})
    return messages


def write_first_turn(contexts: Sequence[Any], question: str) -> list[Any]:
    """Return the content of the first turn: numbered contexts, as parts, and a question."""
    content: list[Any] = [{"text": INSTRUCTIONS}]
    for number, context in enumerate(contexts, start=1):
        content += [{"text": f"Chunk {number}:\n"}, context, {"text": "\n"}]
    content.append({"text": f"\n{question}"})
    return content


def write_expanded(chunks: Mapping[int, str]) -> str:
    """Return the turn that shows chunks, by number, word for word."""
    return "\n\n".join(f"Chunk {number}:\n{text}" for number, text in chunks.items())


def _chunk_bounds(text: str, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Return the characters [start, stop) of each chunk of CHUNK_TOKENS tokens.

    A character that spans tokens of two chunks stays whole.
    """
    _, offsets = tokenizer.encode_with_offsets(text)
    starts = [
        0,
        *(int(offsets[i, 0]) for i in range(CHUNK_TOKENS, len(offsets), CHUNK_TOKENS)),
        len(text),
    ]
    return [(start, stop) for start, stop in pairwise(starts) if start < stop]


def _ask_about_line(
    text: str, rng: np.random.Generator
) -> tuple[str | None, str | None, tuple[int, int]]:
    """Return a question about a line, its answer, and the characters [start, stop) of the answer.

    The question quotes the first words of the line, which occur once in the text. Without such a
    line, returns None, None and (-1, -1).
    """
    min_words = QUOTED_WORDS + MIN_ANSWER_WORDS
    lines = [line for line in re.finditer(r"[^\n]+", text) if len(line[0].split()) >= min_words]
    for i in rng.permutation(len(lines))[:MAX_LINES_TRIED]:
        line = lines[i]
        words = list(re.finditer(r"\S+", line[0]))
        quoted = line[0][words[0].start() : words[QUOTED_WORDS - 1].end()]
        if text.count(quoted) != 1:
            continue
        last_word = words[min(len(words), QUOTED_WORDS + MAX_ANSWER_WORDS) - 1]
        start = line.start() + words[QUOTED_WORDS].start()
        stop = line.start() + last_word.end()
        form = QUESTION_FORMS[int(rng.integers(len(QUESTION_FORMS)))]
        return form.format(quoted), text[start:stop], (start, stop)
    return None, None, (-1, -1)
