"""The three streams of the recipe, each a pure function from a raw example and a random generator to a record.

Raw examples are dicts: `{"tokens": ids [n], "kind": "text" | "code"}` for documents, `{"messages": [...]}` for chats.
Source: paper, section 4.1 and appendix C.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lclm_jax.config import CompressionConfig, DataConfig
from lclm_jax.data.chat import Part, as_parts, render_chat
from lclm_jax.data.spans import Context, Plain, Span
from lclm_jax.data.tokens import Tokenizer

Raw = dict[str, Any]

# Documents shorter than `length` tokens get between `least` and `most` pairs of a wrapped and a plain segment (C.4).
PAIRS = ((2048, 1, 1), (4096, 1, 2), (8192, 2, 4), (16384, 4, 6), (float("inf"), 4, 8))
LONG_DOCUMENT = 16384  # tokens beyond which the number of trainable tokens is fixed
FIRST_WRAPPED = (0.30, 0.40)  # share of all wrapped tokens in the first wrapped segment
LAST_PLAIN = (0.40, 0.50)  # share of all trainable tokens in the last plain segment
JITTER = 0.20  # of the other segments' even shares

REQUESTS = {
    "text": ("Repeat the text.", "Repeat it word for word.", "Copy the text.", "Quote all of it.", "Write it out again."),
    "code": ("Repeat the code.", "Repeat it exactly.", "Copy the code.", "Print the source again.", "Write it out again."),
}


def interleave(raw: Raw, rng: np.random.Generator, data: DataConfig, _: Tokenizer) -> list[Span]:
    """Continual pre-training: wrapped and plain segments in turn, loss on the plain ones (C.4).

    >>> a document of 1000 tokens, shortest 128: [Context 500, Plain 500 trained]
    """
    tokens = crop(raw["tokens"], rng, data.passage)
    trainable = data.trainable if len(tokens) > LONG_DOCUMENT else len(tokens) // 2
    wrapped, plain = segment_lengths(len(tokens), trainable, rng, data.shortest_segment)
    record: list[Span] = []
    start = 0
    for context, text in zip(wrapped, plain, strict=True):
        record.append(Context(tokens[start : start + context]))
        record.append(Plain(tokens[start + context : start + context + text], trained=True))
        start += context + text
    return record


def segment_lengths(length: int, trainable: int, rng: np.random.Generator, shortest: int) -> tuple[list[int], list[int]]:
    """Lengths of the wrapped and of the plain segments of a document, in order; they add up to `length`."""
    least, most = next((least, most) for bound, least, most in PAIRS if length < bound)
    pairs = int(rng.integers(least, most + 1))
    pairs = max(1, min(pairs, trainable // shortest, (length - trainable) // shortest))
    wrapped = _shares(length - trainable, pairs, rng.uniform(*FIRST_WRAPPED), rng, shortest)
    plain = _shares(trainable, pairs, rng.uniform(*LAST_PLAIN), rng, shortest)[::-1]
    return wrapped, plain


def _shares(total: int, parts: int, first: float, rng: np.random.Generator, shortest: int) -> list[int]:
    """Splits `total` into `parts`: the first takes its share, the others are even up to jitter, none is too short."""
    if parts == 1:
        return [total]
    head = min(max(round(total * first), shortest), total - shortest * (parts - 1))
    weights = rng.uniform(1 - JITTER, 1 + JITTER, parts - 1)
    spare = total - head - shortest * (parts - 1)
    target = np.maximum((total - head) * weights / weights.sum() - shortest, 0)
    bounds = np.round(np.cumsum(target / max(target.sum(), 1e-9)) * spare).astype(int)
    return [head, *(int(extra) + shortest for extra in np.diff(bounds, prepend=0))]


def reconstruct(raw: Raw, rng: np.random.Generator, data: DataConfig, tokenizer: Tokenizer) -> list[Span]:
    """Auxiliary reconstruction: a compressed passage, a request to repeat it, the passage (C.2)."""
    tokens = crop(raw["tokens"], rng, data.reconstruction)
    requests = REQUESTS[raw.get("kind", "text")]
    request = "\n" + requests[rng.integers(min(data.requests, len(requests)))]
    user, assistant = [Context(tokens), request], [tokens]
    return render_chat([{"role": "user", "content": user}, {"role": "assistant", "content": assistant}], tokenizer)


def follow(raw: Raw, rng: np.random.Generator, _: DataConfig, tokenizer: Tokenizer) -> list[Span]:
    """Supervised fine-tuning with compressed prompts: every message but the assistant's is wrapped (C.4).

    A content that is already in parts (`{"context": text}`, with a `"ratio"` if it asks for one, or `{"text": text}`) is
    taken as it is.
    """
    messages = []
    for message in raw["messages"]:
        content = message["content"]
        if not isinstance(content, str):
            content = [_read_part(part, tokenizer) for part in content]
        elif message["role"] != "assistant":
            content = wrap_prompt(tokenizer.encode(content), rng)
        messages.append({"role": message["role"], "content": as_parts(content)})
    return render_chat(messages, tokenizer)


def _read_part(part: Raw, tokenizer: Tokenizer) -> Part:
    return Context(tokenizer.encode(part["context"]), part.get("ratio")) if "context" in part else part["text"]


def wrap_prompt(tokens: np.ndarray, rng: np.random.Generator) -> list[Part]:
    """Wraps a prompt whole in half of the cases, else one to three regions that cover 80-100 % with gaps of
    at least 5 % between them where that is feasible (C.4)."""
    if len(tokens) == 0:
        return []
    if rng.random() < 0.5 or len(tokens) < 32:
        return [Context(tokens)]
    most = 1 if len(tokens) < 200 else 2 if len(tokens) < 600 else 3
    regions = int(rng.integers(1, most + 1))
    uncovered = len(tokens) - round(len(tokens) * rng.uniform(0.8, 1.0))
    least = -(-len(tokens) // 20)  # 5 %
    inner = np.array([0, *[least] * (regions - 1), 0]) if uncovered >= least * (regions - 1) else np.zeros(regions + 1, int)
    gaps = inner + np.floor(rng.dirichlet(np.ones(regions + 1)) * (uncovered - inner.sum())).astype(int)
    covered = np.diff(np.round(np.linspace(0, len(tokens) - gaps.sum(), regions + 1)).astype(int))
    parts: list[Part] = []
    start = 0
    for gap, region in zip(gaps, [*covered, 0], strict=True):
        if gap:
            parts.append(tokens[start : start + gap])
        if region:
            parts.append(Context(tokens[start + gap : start + gap + region]))
        start += gap + region
    return parts


def draw_ratios(record: Sequence[Span], rng: np.random.Generator, compression: CompressionConfig) -> list[Span]:
    """Every context that asks for no ratio gets one of the model's, each as likely; a model of one ratio draws nothing."""
    if not compression.ratios:
        return list(record)

    def drawn(span: Span) -> Span:
        free = isinstance(span, Context) and span.ratio is None
        return replace(span, ratio=int(rng.choice(compression.all_ratios))) if free else span

    return [drawn(span) for span in record]


def crop(tokens: np.ndarray, rng: np.random.Generator, bounds: tuple[int, int]) -> np.ndarray:
    """A random passage whose length is drawn from `bounds`, or all of it when it is shorter."""
    length = min(len(tokens), int(rng.integers(bounds[0], bounds[1] + 1)))
    start = int(rng.integers(len(tokens) - length + 1))
    return np.asarray(tokens[start : start + length], np.int32)


STREAMS = {"interleaved": interleave, "sft": follow, "reconstruction": reconstruct}
