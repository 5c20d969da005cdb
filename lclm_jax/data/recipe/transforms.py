"""The streams of the recipe: each turns a prepared example and a random generator into a record.

Transforms are pure and read only lengths and roles, never the tokens: from an example whose tokens
are ranges they make the same record with ranges. Source: paper, section 4.1 and appendix C.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from lclm_jax.config import CompressionConfig, ConfigError, DataConfig
from lclm_jax.data.chat.chat import build_chat_record
from lclm_jax.data.records import Context, Given, Plain, Role, Section, Span, Tokens
from lclm_jax.data.text.tokenizer import Tokenizer

# Interleaved documents (C.4): a document of at most `length` tokens is cut into between `least` and
# `most` pairs of a context segment and a plain segment.
PAIRS_BY_LENGTH = ((2047, 1, 1), (4095, 1, 2), (8191, 2, 4), (16384, 4, 6), (float("inf"), 4, 8))
LONG_DOCUMENT_TOKENS = 16384  # above this the number of trained tokens is fixed
FIRST_CONTEXT_SHARE = (0.30, 0.40)  # of all context tokens
LAST_PLAIN_SHARE = (0.40, 0.50)  # of all trained tokens
SEGMENT_JITTER = 0.20  # largest deviation of the other segments from even shares

# Prompts of chats (C.4).
WHOLE_PROMPT_PROBABILITY = 0.5  # of compressing a message as one context
SHORT_PROMPT_TOKENS = 32  # shorter messages are always one context
REGIONS_BY_LENGTH = ((200, 1), (600, 2), (float("inf"), 3))  # (length, most regions below it)
PROMPT_COVERAGE = (0.8, 1.0)  # share of a message that its regions cover
MIN_GAPS_PER_PROMPT = 20  # a gap between regions is at least 1 / 20 of the message

# Reasoning traces.
COMPRESSED_ANALYSIS_PROBABILITY = 0.5
PLAIN_ANSWER_TOKENS = 128  # the end of an answer without markers, which is never compressed

REQUESTS = Path(__file__).parent / "requests"  # one file of wordings for each kind of source


def interleaved_record(
    example: Sequence[Section], rng: np.random.Generator, data: DataConfig, *_
) -> list[Span]:
    """Return alternating contexts and trained plain text of a document (pre-training, C.4).

    A document of 1000 tokens becomes [Context of 500, Plain of 500, trained]. A document too short
    for two segments gives an empty record: nothing would be both context and trained on.
    """
    tokens = crop(_document_tokens(example), rng, data.crop_length)
    if len(tokens) < 2 * data.min_segment_length:
        return []
    is_long = len(tokens) > LONG_DOCUMENT_TOKENS
    trainable = data.max_trained_tokens if is_long else len(tokens) // 2
    lengths = segment_lengths(len(tokens), trainable, rng, data.min_segment_length)
    record: list[Span] = []
    start = 0
    for context, plain in zip(*lengths, strict=True):
        middle, end = start + context, start + context + plain
        record.append(Context(tokens[start:middle]))
        record.append(Plain(tokens[middle:end], trained=True))
        start = end
    return record


def segment_lengths(
    length: int, trainable: int, rng: np.random.Generator, shortest: int
) -> tuple[list[int], list[int]]:
    """Draw the lengths of a document's context segments and of its plain segments, in order.

    The plain segments have `trainable` tokens in all, both together `length`.
    """
    least, most = next((least, most) for bound, least, most in PAIRS_BY_LENGTH if length <= bound)
    drawn = int(rng.integers(least, most + 1))
    context_tokens = length - trainable
    pairs = max(1, min(drawn, trainable // shortest, context_tokens // shortest))
    first_share = rng.uniform(*FIRST_CONTEXT_SHARE)
    contexts = _split_lengths(context_tokens, pairs, first_share, rng, shortest)
    last_share = rng.uniform(*LAST_PLAIN_SHARE)
    plain = _split_lengths(trainable, pairs, last_share, rng, shortest)
    return contexts, plain[::-1]


def _split_lengths(
    total: int, parts: int, first_share: float, rng: np.random.Generator, shortest: int
) -> list[int]:
    """Split `total` into parts: the first by its share, the others evenly up to jitter.

    No part is below `shortest` as long as `total` allows it.
    """
    if parts == 1:
        return [total]
    rest = parts - 1
    first = min(max(round(total * first_share), shortest), total - shortest * rest)
    spare = total - first - shortest * rest
    even = (total - first) / rest
    target = np.maximum(even * _jitter(rest, rng) - shortest, 0)
    bounds = np.round(np.cumsum(target / max(target.sum(), 1e-9)) * spare).astype(int)
    return [first, *(int(extra) + shortest for extra in np.diff(bounds, prepend=0))]


def _jitter(parts: int, rng: np.random.Generator) -> np.ndarray:
    """Draw factors of mean 1, each at most SEGMENT_JITTER away from it."""
    while True:
        factors = rng.uniform(1 - SEGMENT_JITTER, 1 + SEGMENT_JITTER, parts)
        factors /= factors.mean()
        if (abs(factors - 1) <= SEGMENT_JITTER).all():
            return factors


def reconstruction_record(
    example: Sequence[Section],
    rng: np.random.Generator,
    data: DataConfig,
    tokenizer: Tokenizer,
    kind: str = "text",
) -> list[Span]:
    """Return a compressed passage, a request to repeat it, and the trained passage (C.2).

    `kind` is the kind of the source, which decides the wording of the request.
    """
    tokens = crop(_document_tokens(example), rng, data.reconstruction_length)
    requests = read_requests(kind)
    request = requests[int(rng.integers(min(data.request_wordings, len(requests))))]
    passages: list[Span] = [Context(tokens), Plain(tokens, trained=True)]
    return [
        passages.pop(0) if isinstance(span, Given) else span
        for span in _reconstruction_chat(tokenizer, f"\n{request}")
    ]


@lru_cache(maxsize=1024)
def _reconstruction_chat(tokenizer: Tokenizer, request: str) -> tuple[Span, ...]:
    """Render a reconstruction with `Given` in place of the passage and of its repetition."""
    messages = [
        {"role": "user", "content": [Given(1), request]},
        {"role": "assistant", "content": [Given(1)]},
    ]
    return tuple(build_chat_record(messages, tokenizer))


@lru_cache
def read_requests(kind: str) -> tuple[str, ...]:
    """Return the wordings that ask for a passage of this kind; other kinds use those for text."""
    file = REQUESTS / f"{kind}.txt"
    if not file.exists():
        file = REQUESTS / "text.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


def sft_record(example: Sequence[Section], rng: np.random.Generator, *_) -> list[Span]:
    """Return a chat whose prompts are compressed and whose answers are trained on (C.4)."""
    record: list[Span] = []
    for section in example:
        if section.role is Role.PROMPT:
            record += split_prompt(section.tokens, rng)
        elif section.role is Role.CONTEXT:
            record.append(Context(section.tokens, section.ratio))
        else:
            trained = section.role in (Role.ANSWER, Role.ANALYSIS)
            record.append(Plain(section.tokens, trained))
    return record


def reasoning_record(example: Sequence[Section], rng: np.random.Generator, *_) -> list[Span]:
    """Return `sft_record`, in half of the cases with the assistant's reasoning compressed.

    The reasoning is what the chat marks as analysis or, without marks, all of the last answer but
    its last 128 tokens. Where it is compressed, only what follows is trained on.
    """
    if rng.random() >= COMPRESSED_ANALYSIS_PROBABILITY:
        return sft_record(example, rng)
    if any(section.role is Role.ANALYSIS for section in example):
        return sft_record([_compress_analysis(section) for section in example], rng)
    answers = [i for i, section in enumerate(example) if section.role is Role.ANSWER]
    if not answers or len(example[answers[-1]].tokens) <= PLAIN_ANSWER_TOKENS:
        return sft_record(example, rng)
    last = answers[-1]
    tokens = example[last].tokens
    reasoning = Section(tokens[:-PLAIN_ANSWER_TOKENS], Role.CONTEXT)
    answer = Section(tokens[-PLAIN_ANSWER_TOKENS:], Role.ANSWER)
    return sft_record([*example[:last], reasoning, answer, *example[last + 1 :]], rng)


def _compress_analysis(section: Section) -> Section:
    return replace(section, role=Role.CONTEXT) if section.role is Role.ANALYSIS else section


def split_prompt(tokens: Tokens, rng: np.random.Generator) -> list[Span]:
    """Return a prompt as one context in half of the cases, else as one to three contexts (C.4).

    The contexts cover 80 to 100 % of the prompt, with gaps of at least 5 % between them where that
    is feasible. C.4 compresses the whole prompt at a coverage below 70 %, which cannot occur here.
    """
    length = len(tokens)
    if length == 0:
        return []
    if rng.random() < WHOLE_PROMPT_PROBABILITY or length < SHORT_PROMPT_TOKENS:
        return [Context(tokens)]
    most = next(most for bound, most in REGIONS_BY_LENGTH if length < bound)
    regions = int(rng.integers(1, most + 1))
    gaps = _draw_gaps(length, regions, rng)
    bounds = np.linspace(0, length - gaps.sum(), regions + 1)
    covered = np.diff(np.round(bounds).astype(int))
    spans: list[Span] = []
    start = 0
    for gap, region in zip(gaps.tolist(), [*covered.tolist(), 0], strict=True):
        middle, end = start + gap, start + gap + region
        if gap:
            spans.append(Plain(tokens[start:middle]))
        if region:
            spans.append(Context(tokens[middle:end]))
        start = end
    return spans


def _draw_gaps(length: int, regions: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the plain tokens before, between and after the regions of a prompt."""
    uncovered = length - round(length * rng.uniform(*PROMPT_COVERAGE))
    smallest = -(-length // MIN_GAPS_PER_PROMPT)
    if uncovered >= smallest * (regions - 1):
        fixed = np.array([0, *[smallest] * (regions - 1), 0])
    else:
        fixed = np.zeros(regions + 1, int)
    shares = rng.dirichlet(np.ones(regions + 1))
    return fixed + np.floor(shares * (uncovered - fixed.sum())).astype(int)


def draw_ratios(
    record: Sequence[Span],
    rng: np.random.Generator,
    compression: CompressionConfig,
    weights: Sequence[float] = (),
) -> list[Span]:
    """Draw one of the model's ratios, by weight, for every context without one of them.

    No weights: all ratios are equally likely. Raises ConfigError for another number of weights.
    """
    ratios = compression.all_ratios
    if weights and len(weights) != len(ratios):
        raise ConfigError(
            f"data.ratio_weights has one weight for each ratio of {ratios}, got {tuple(weights)}"
        )
    # A model with one ratio reads contexts without a ratio at that one, so nothing is drawn.
    accepted = (None, *ratios) if len(ratios) == 1 else ratios
    used_weights = weights or [1.0] * len(ratios)
    probabilities = np.array(used_weights) / sum(used_weights)

    def with_ratio(span: Span) -> Span:
        if not isinstance(span, Context) or span.ratio in accepted:
            return span
        if len(ratios) == 1:
            return replace(span, ratio=compression.ratio)
        return replace(span, ratio=int(rng.choice(ratios, p=probabilities)))

    return [with_ratio(span) for span in record]


def leave_plain(record: Sequence[Span], rng: np.random.Generator, probability: float) -> list[Span]:
    """Return the record with some of its contexts as plain text that carries no loss.

    Each context is drawn on its own, so a record may have contexts of both kinds. Nothing is drawn
    at probability 0.
    """
    if not probability:
        return list(record)
    return [
        Plain(span.tokens) if isinstance(span, Context) and rng.random() < probability else span
        for span in record
    ]


def crop(tokens: Tokens, rng: np.random.Generator, bounds: tuple[int, int] | None) -> Tokens:
    """Return a random passage whose length is drawn between `bounds`, both included.

    Tokens shorter than that are returned whole, and all are without bounds.
    """
    if bounds is None:
        return tokens
    length = min(len(tokens), int(rng.integers(bounds[0], bounds[1] + 1)))
    start = int(rng.integers(len(tokens) - length + 1))
    return tokens[start : start + length]


def _document_tokens(example: Sequence[Section]) -> Tokens:
    if [section.role for section in example] != [Role.DOCUMENT]:
        roles = ", ".join(section.role.name.lower() for section in example)
        raise ConfigError(
            f"this stream reads documents, got an example of {roles}; read chats by a stream of "
            "kind sft"
        )
    return example[0].tokens


# (example, rng, data settings, tokenizer, kind of its source) -> record
Transform = Callable[..., list[Span]]
TRANSFORMS: dict[str, Transform] = {
    "interleaved": interleaved_record,
    "sft": sft_record,
    "reconstruction": reconstruction_record,
    "reasoning": reasoning_record,
}
