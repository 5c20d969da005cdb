"""The streams of the recipe, each a pure function from a prepared example and a random generator to a record.

Lengths and roles decide, never the tokens themselves: of an example made of ranges comes the same record, made of ranges.
Source: paper, section 4.1 and appendix C.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from lclm_jax.config import CompressionConfig, ConfigError, DataConfig
from lclm_jax.data.chat.chat import render_chat
from lclm_jax.data.records.spans import Context, Given, Plain, Span
from lclm_jax.data.records.stretches import Role, Stretch, Tokens
from lclm_jax.data.text.tokenizer import Tokenizer

# A document of up to `length` tokens gets between `least` and `most` pairs of a wrapped and a plain segment (C.4).
PAIRS = ((2047, 1, 1), (4095, 1, 2), (8191, 2, 4), (16384, 4, 6), (float("inf"), 4, 8))
LONG_DOCUMENT = 16384  # tokens beyond which the number of trainable tokens is fixed
FIRST_WRAPPED = (0.30, 0.40)  # share of all wrapped tokens in the first wrapped segment
LAST_PLAIN = (0.40, 0.50)  # share of all trainable tokens in the last plain segment
JITTER = 0.20  # of the other segments' even shares
WRAPPED_WHOLE = 0.5  # share of messages compressed as a whole, and of reasoning rows whose analysis is compressed
KEPT = 128  # tokens at the end of an answer without markers that stay plain when its analysis is compressed

BANK = (
    Path(__file__).parent / "requests"
)  # wordings that ask for a passage, a file a kind of source


def interleave(
    example: Sequence[Stretch], rng: np.random.Generator, data: DataConfig, *_
) -> list[Span]:
    """Continual pre-training: wrapped and plain segments of a document in turn, loss on the plain ones (C.4).

    A document too short for two segments gives no record: nothing would be both context and trained on.

    >>> a document of 1000 tokens, shortest 128: [Context 500, Plain 500 trained]
    """
    tokens = crop(_document(example), rng, data.passage)
    if len(tokens) < 2 * data.shortest_segment:
        return []
    trainable = data.trainable if len(tokens) > LONG_DOCUMENT else len(tokens) // 2
    wrapped, plain = segment_lengths(len(tokens), trainable, rng, data.shortest_segment)
    record: list[Span] = []
    start = 0
    for context, text in zip(wrapped, plain, strict=True):
        record.append(Context(tokens[start : start + context]))
        record.append(Plain(tokens[start + context : start + context + text], trained=True))
        start += context + text
    return record


def segment_lengths(
    length: int, trainable: int, rng: np.random.Generator, shortest: int
) -> tuple[list[int], list[int]]:
    """Lengths of the wrapped and of the plain segments of a document, in order; they add up to `length`."""
    least, most = next((least, most) for bound, least, most in PAIRS if length <= bound)
    pairs = int(rng.integers(least, most + 1))
    pairs = max(1, min(pairs, trainable // shortest, (length - trainable) // shortest))
    wrapped = _shares(length - trainable, pairs, rng.uniform(*FIRST_WRAPPED), rng, shortest)
    plain = _shares(trainable, pairs, rng.uniform(*LAST_PLAIN), rng, shortest)[::-1]
    return wrapped, plain


def _shares(
    total: int, parts: int, first: float, rng: np.random.Generator, shortest: int
) -> list[int]:
    """Splits `total` into `parts`: the first takes its share, the others are even up to jitter, none is too short."""
    if parts == 1:
        return [total]
    head = min(max(round(total * first), shortest), total - shortest * (parts - 1))
    spare = total - head - shortest * (parts - 1)
    target = np.maximum((total - head) / (parts - 1) * _jitter(parts - 1, rng) - shortest, 0)
    bounds = np.round(np.cumsum(target / max(target.sum(), 1e-9)) * spare).astype(int)
    return [head, *(int(extra) + shortest for extra in np.diff(bounds, prepend=0))]


def _jitter(parts: int, rng: np.random.Generator) -> np.ndarray:
    """Factors for even shares that keep their sum, each at most 20 % off."""
    while True:
        factors = rng.uniform(1 - JITTER, 1 + JITTER, parts)
        factors /= factors.mean()
        if (abs(factors - 1) <= JITTER).all():
            return factors


def reconstruct(
    example: Sequence[Stretch],
    rng: np.random.Generator,
    data: DataConfig,
    tokenizer: Tokenizer,
    kind: str = "text",
) -> list[Span]:
    """Auxiliary reconstruction: a compressed passage, a request to repeat it that fits its kind, the passage (C.2)."""
    tokens = crop(_document(example), rng, data.reconstruction)
    requests = read_requests(kind)
    request = requests[int(rng.integers(min(data.requests, len(requests))))]
    frame = _frame(tokenizer, f"\n{request}")
    first, second = (i for i, span in enumerate(frame) if isinstance(span, Given))
    return [
        *frame[:first],
        Context(tokens),
        *frame[first + 1 : second],
        Plain(tokens, trained=True),
        *frame[second + 1 :],
    ]


@lru_cache(maxsize=1024)
def _frame(tokenizer: Tokenizer, request: str) -> tuple[Span, ...]:
    """What stands around a passage and its repetition, both of them `Given`."""
    asked = [
        {"role": "user", "content": [Given(1), request]},
        {"role": "assistant", "content": [Given(1)]},
    ]
    return tuple(render_chat(asked, tokenizer))


@lru_cache
def read_requests(kind: str) -> tuple[str, ...]:
    """The wordings for a kind of source; those of text where it has none of its own."""
    file = BANK / f"{kind}.txt"
    return tuple(
        (file if file.exists() else BANK / "text.txt").read_text(encoding="utf-8").splitlines()
    )


def follow(example: Sequence[Stretch], rng: np.random.Generator, *_) -> list[Span]:
    """Supervised fine-tuning with compressed prompts: every message but the assistant's is wrapped, each by itself (C.4)."""
    record: list[Span] = []
    for stretch in example:
        if stretch.role is Role.PROMPT:
            record += wrap_prompt(stretch.tokens, rng)
        elif stretch.role is Role.CONTEXT:
            record.append(Context(stretch.tokens, stretch.ratio))
        else:
            record.append(
                Plain(stretch.tokens, trained=stretch.role in (Role.ANSWER, Role.ANALYSIS))
            )
    return record


def reason(example: Sequence[Stretch], rng: np.random.Generator, *_) -> list[Span]:
    """`follow`, but in half of the rows what the assistant thinks is compressed and only what comes after it is trained on:
    what stands between markers or, without any, all of the last answer but its last 128 tokens."""
    if rng.random() >= WRAPPED_WHOLE:
        return follow(example, rng)
    if any(stretch.role is Role.ANALYSIS for stretch in example):
        return follow(
            [
                replace(one, role=Role.CONTEXT) if one.role is Role.ANALYSIS else one
                for one in example
            ],
            rng,
        )
    last = max(
        (i for i, stretch in enumerate(example) if stretch.role is Role.ANSWER), default=None
    )
    if last is None or len(example[last].tokens) <= KEPT:
        return follow(example, rng)
    tokens = example[last].tokens
    thought, kept = Stretch(tokens[:-KEPT], Role.CONTEXT), Stretch(tokens[-KEPT:], Role.ANSWER)
    return follow([*example[:last], thought, kept, *example[last + 1 :]], rng)


def wrap_prompt(tokens: Tokens, rng: np.random.Generator) -> list[Span]:
    """Wraps a prompt whole in half of the cases, else one to three regions that cover 80-100 % with gaps of
    at least 5 % between them where that is feasible (C.4). Coverage under 70 %, which C.4 would wrap whole, cannot come."""
    if len(tokens) == 0:
        return []
    if rng.random() < WRAPPED_WHOLE or len(tokens) < 32:
        return [Context(tokens)]
    most = 1 if len(tokens) < 200 else 2 if len(tokens) < 600 else 3
    regions = int(rng.integers(1, most + 1))
    uncovered = len(tokens) - round(len(tokens) * rng.uniform(0.8, 1.0))
    least = -(-len(tokens) // 20)  # 5 %
    inner = (
        np.array([0, *[least] * (regions - 1), 0])
        if uncovered >= least * (regions - 1)
        else np.zeros(regions + 1, int)
    )
    gaps = inner + np.floor(rng.dirichlet(np.ones(regions + 1)) * (uncovered - inner.sum())).astype(
        int
    )
    covered = np.diff(np.round(np.linspace(0, len(tokens) - gaps.sum(), regions + 1)).astype(int))
    spans: list[Span] = []
    start = 0
    for gap, region in zip(gaps.tolist(), [*covered.tolist(), 0], strict=True):
        if gap:
            spans.append(Plain(tokens[start : start + gap]))
        if region:
            spans.append(Context(tokens[start + gap : start + gap + region]))
        start += gap + region
    return spans


def draw_ratios(
    record: Sequence[Span],
    rng: np.random.Generator,
    compression: CompressionConfig,
    weights: Sequence[float] = (),
) -> list[Span]:
    """Every context gets one of the model's ratios, by weight, but where it asks for one that the model has."""
    ratios = compression.all_ratios
    if weights and len(weights) != len(ratios):
        raise ConfigError(
            f"data.ratio_weights has one weight for each ratio of {ratios}, got {tuple(weights)}"
        )
    settled = (None, *ratios) if len(ratios) == 1 else ratios
    chances = np.array(weights or [1.0] * len(ratios)) / sum(weights or [1.0] * len(ratios))

    def drawn(span: Span) -> Span:
        if not isinstance(span, Context) or span.ratio in settled:
            return span
        return replace(
            span, ratio=int(rng.choice(ratios, p=chances)) if len(ratios) > 1 else compression.ratio
        )

    return [drawn(span) for span in record]


def crop(tokens: Tokens, rng: np.random.Generator, bounds: tuple[int, int] | None) -> Tokens:
    """A random passage whose length is drawn from `bounds`; all of it when it is shorter, or when there are none."""
    if bounds is None:
        return tokens
    length = min(len(tokens), int(rng.integers(bounds[0], bounds[1] + 1)))
    start = int(rng.integers(len(tokens) - length + 1))
    return tokens[start : start + length]


def _document(example: Sequence[Stretch]) -> Tokens:
    if [stretch.role for stretch in example] != [Role.DOCUMENT]:
        roles = ", ".join(stretch.role.name.lower() for stretch in example)
        raise ConfigError(
            f"this stream reads documents, got an example of {roles}; read chats by a stream of kind sft"
        )
    return example[0].tokens


Transform = Callable[
    ..., list[Span]
]  # (example, rng, data, tokenizer, kind of its source) -> record
STREAMS: dict[str, Transform] = {
    "interleaved": interleave,
    "sft": follow,
    "reconstruction": reconstruct,
    "reasoning": reason,
}
