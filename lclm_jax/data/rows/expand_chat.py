"""Traces of an agent that skims latents and expands what it must read word for word.

As in section 7 of the paper, the first turn holds every chunk of a text, numbered and compressed,
and a question; the assistant asks for chunks (`EXPAND: 7, 9`), gets their text in the next turn,
and answers (`ANSWER: ...`).
"""

import hashlib
import re
from itertools import pairwise
from typing import Any

import numpy as np

from lclm_jax.data.text.tokenizer import Tokenizer

CHUNK = 512  # tokens
ROUNDS = 5  # expansions before an answer, at most
DETOUR = 0.25  # share of traces that first expand a chunk beside the right one
TASK = (
    "The text below comes in numbered chunks, compressed. "
    "Write EXPAND: and chunk numbers to read chunks word for word, "
    "ANSWER: and the answer when you know it.\n\n"
)
ASKING = (
    "Which words come right after “{}”?",
    "How does the line go on after “{}”?",
    "Quote what follows “{}”.",
    "Complete the line that begins with “{}”, word for word.",
    "What stands directly after “{}” in the text?",
    "After “{}”, what are the next words?",
)
QUOTED = 5  # words of a line that name it
ANSWERED = 12  # words asked for, at most


def build_expand_chat(
    text: str, tokenizer: Tokenizer, question: str | None = None, answer: str | None = None
) -> dict[str, Any] | None:
    """A chat over the chunks of `text`, the same whenever it is made; None when the text has one
    chunk or no answer in it.

    Without a question, one line is asked for by its first words.
    """
    rng = np.random.default_rng(
        int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    )
    bounds = _bounds(text, tokenizer)
    if len(bounds) < 2:
        return None
    if question and answer:
        place = (text.find(answer), text.find(answer) + len(answer))
    else:
        question, answer, place = _ask(text, rng)
    if not question or not answer or place[0] < 0:
        return None
    wanted = [i for i, (start, stop) in enumerate(bounds) if start < place[1] and place[0] < stop]
    rounds = [wanted[i : i + 3] for i in range(0, len(wanted), 3)]
    if len(rounds) > ROUNDS - 1:
        return None
    beside = [i for i in (wanted[0] - 1, wanted[-1] + 1) if 0 <= i < len(bounds)]
    if beside and rng.random() < DETOUR:
        rounds = [[int(rng.choice(beside))], *rounds]
    chunks = [text[start:stop] for start, stop in bounds]
    content: list[dict[str, str]] = [{"text": TASK}]
    for i, chunk in enumerate(chunks):
        content += [{"text": f"Chunk {i + 1}:\n"}, {"context": chunk}, {"text": "\n"}]
    content.append({"text": f"\n{question}"})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    for some in rounds:
        messages.append(
            {"role": "assistant", "content": f"EXPAND: {', '.join(str(i + 1) for i in some)}"}
        )
        told = "\n\n".join(f"Chunk {i + 1}:\n{chunks[i]}" for i in some)
        messages.append({"role": "user", "content": [{"text": told}]})
    messages.append({"role": "assistant", "content": f"ANSWER: {answer}"})
    return {"messages": messages}


def _bounds(text: str, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """First and last character of every chunk of CHUNK tokens; a character is never cut."""
    _, offsets = tokenizer.encode_with_offsets(text)
    starts = [0, *(int(offsets[i, 0]) for i in range(CHUNK, len(offsets), CHUNK)), len(text)]
    return [(start, stop) for start, stop in pairwise(starts) if start < stop]


def _ask(text: str, rng: np.random.Generator) -> tuple[str | None, str | None, tuple[int, int]]:
    """A question about a line whose first words stand nowhere else, its answer, and its place."""
    lines = [line for line in re.finditer(r"[^\n]+", text) if len(line[0].split()) >= QUOTED + 3]
    for i in rng.permutation(len(lines))[:20]:
        line = lines[i]
        words = list(re.finditer(r"\S+", line[0]))
        named = line[0][words[0].start() : words[QUOTED - 1].end()]
        last = words[min(len(words), QUOTED + ANSWERED) - 1]
        if text.count(named) == 1:
            place = (line.start() + words[QUOTED].start(), line.start() + last.end())
            return ASKING[int(rng.integers(len(ASKING)))].format(named), text[slice(*place)], place
    return None, None, (-1, -1)
