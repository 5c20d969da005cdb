"""What a trained model can do on documents it has never seen, always beside the same decoder with the full text and with none."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from lclm_jax.config import DataConfig, ModelConfig
from lclm_jax.config.settings import FileName, Interval, Settings, Size
from lclm_jax.data.loading import PreparedSource, RowBudget, assemble, fill_row
from lclm_jax.data.recipe.transforms import interleaved_record, reconstruction_record, sft_record
from lclm_jax.data.records import VIEWS, Context, Plain, Section, Span, lay_out
from lclm_jax.data.records.views import at_ratio
from lclm_jax.data.rows.raw_examples import RawExample
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.model.lclm import apply, output_table
from lclm_jax.model.loss import cross_entropy
from lclm_jax.typing import Array, Float, Params

BATCH = 16
Progress = Callable[..., Iterable]


@dataclass(frozen=True)
class Tests(Settings):
    """Sources and lengths that an Experiment's model is evaluated on."""

    passages: tuple[FileName, ...] = ("docs", "haystacks")  # to be reconstructed
    # Of passages, in tokens; none: half the shortest trained on, and all of them.
    lengths: tuple[Interval, ...] = ()
    continued: tuple[FileName, ...] = ("docs", "code")  # documents whose second half is predicted
    questions: FileName | None = "tasks"
    asked: Size = 128  # questions


def reconstruction_accuracy(
    model: LanguageModel,
    directory: str,
    source: str,
    data: DataConfig,
    lengths: tuple[int, int],
    limit: int,
    progress: Progress,
) -> dict[str, Any]:
    """Share of tokens of held-out passages that are the best guess, each token given those before it, in every view; of a model
    with several ratios also from latents of each, the view `latents` being of its own.

    `lengths` bounds the passages in tokens. Only the passage itself counts, not the token that ends the turn.
    """
    held, cut = (
        PreparedSource(directory, source, "held", model.tokenizer),
        replace(data, reconstruction_length=lengths),
    )
    records = _records(
        held,
        limit,
        lambda example, rng: reconstruction_record(example, rng, cut, model.tokenizer, held.kind),
    )

    def accuracy(seen: list[Sequence[Span]], view: str) -> dict[str, Any]:
        scores = list(progress(_score(model, seen), f"{source} from {view}", len(seen)))
        right = sum(correct[:-1].sum() for _, correct in scores)
        total = sum(len(correct) - 1 for _, correct in scores)
        nll = sum(losses[:-1].sum() for losses, _ in scores)
        return {"accuracy": _proportion(right, total), "loss": float(nll / total)}

    result: dict[str, Any] = {"source": source, "lengths": list(lengths), "passages": len(records)}
    result |= {
        view: accuracy([see(record) for record in records], view) for view, see in VIEWS.items()
    }
    ratios = sorted(model.config.compression.all_ratios)
    if len(ratios) > 1:
        read = {n: [at_ratio(record, n) for record in records] for n in ratios}
        result["ratios"] = {
            str(n): accuracy(seen, f"latents of {n} tokens") for n, seen in read.items()
        }
    return result


def continuation_loss(
    model: LanguageModel,
    directory: str,
    source: str,
    data: DataConfig,
    limit: int,
    progress: Progress,
) -> dict[str, Any]:
    """Loss of the plain half of held-out documents, nats a token, in every view of the wrapped half."""
    held = PreparedSource(directory, source, "held", model.tokenizer)
    records = _records(held, limit, lambda example, rng: interleaved_record(example, rng, data))
    result: dict[str, Any] = {"source": source, "documents": len(records)}
    for view, see in VIEWS.items():
        scores = list(
            progress(
                _score(model, [see(record) for record in records]),
                f"{source} after {view}",
                len(records),
            )
        )
        result[view] = float(
            sum(losses.sum() for losses, _ in scores) / sum(len(losses) for losses, _ in scores)
        )
    return result


def question_accuracy(
    model: LanguageModel,
    directory: str,
    source: str,
    data: DataConfig,
    limit: int,
    progress: Progress,
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Share of held-out questions answered exactly, generated greedily, in every view; and every question with its answers.

    Of a chat with several questions the first is asked. White space around an answer does not count.
    """
    held = PreparedSource(directory, source, "held", model.tokenizer)
    prompts = [
        _prompt_of(record)
        for record in _records(held, limit, lambda example, rng: sft_record(example, rng, data))
    ]
    samples = [_describe(held.raw(i)) for i in range(len(prompts))]
    result: dict[str, Any] = {"questions": len(prompts)}
    for view, see in VIEWS.items():
        answers: list[str] = []
        for start in progress(range(0, len(prompts), BATCH), f"questions from {view}"):
            records = [see(prompt) for prompt in prompts[start : start + BATCH]]
            answers += model.complete_records(records, max_tokens=16)
        right = sum(
            answer.strip() == sample["answer"]
            for answer, sample in zip(answers, samples, strict=True)
        )
        result[view] = _proportion(right, len(prompts))
        for sample, answer in zip(samples, answers, strict=True):
            sample[f"from_{view}"] = answer.strip()
    return result, samples


def reconstruction_samples(
    model: LanguageModel, directory: str, source: str, data: DataConfig, count: int
) -> list[dict[str, str]]:
    """Held-out passages and what the model writes when asked for them, generated greedily from latents."""
    held = PreparedSource(directory, source, "held", model.tokenizer)
    records = _records(
        held,
        count,
        lambda example, rng: reconstruction_record(example, rng, data, model.tokenizer, held.kind),
    )
    prompts = [_prompt_of(record) for record in records]
    originals = [
        np.asarray(next(span.tokens for span in record if isinstance(span, Context)))
        for record in records
    ]
    written = model.complete_records(prompts, max_tokens=max(map(len, originals)))
    return [
        {"source": source, "passage": model.tokenizer.decode(tokens), "written": text}
        for tokens, text in zip(originals, written, strict=True)
    ]


def continuation_samples(
    model: LanguageModel, directory: str, source: str, data: DataConfig, count: int
) -> list[dict[str, str]]:
    """Held-out openings read as latents, what follows them in truth, and what the model writes next."""
    held = PreparedSource(directory, source, "held", model.tokenizer)
    records = _records(held, count, lambda example, rng: interleaved_record(example, rng, data))
    written = model.complete_records([record[:1] for record in records], max_tokens=24)
    samples = []
    for record, text in zip(records, written, strict=True):
        opening, truth = record[0], record[1]
        assert isinstance(opening, Context) and isinstance(truth, Plain)
        decode = model.tokenizer.decode
        samples.append(
            {
                "source": source,
                "opening": decode(np.asarray(opening.tokens)),
                "truth": decode(np.asarray(truth.tokens[:24])),
                "written": text,
            }
        )
    return samples


def _records(
    held: PreparedSource,
    limit: int,
    build: Callable[[list[Section], np.random.Generator], list[Span]],
) -> list[list[Span]]:
    """One record from each of the first `limit` examples, the same at every call."""
    return [
        record
        for i in range(min(limit, len(held)))
        if (record := build(held[i], np.random.default_rng(i)))
    ]


def _prompt_of(record: Sequence[Span]) -> list[Span]:
    """Everything before the first trained span."""
    first = next(i for i, span in enumerate(record) if isinstance(span, Plain) and span.trained)
    return list(record[:first])


def _describe(raw: RawExample) -> dict[str, str]:
    question, answer = raw["messages"][:2]
    context, asked = question["content"]
    return {
        "context": context["context"],
        "question": asked["text"].strip(),
        "answer": answer["content"].strip(),
    }


def _score(model: LanguageModel, records: Sequence[Sequence[Span]]):
    """Yields per record (losses, whether right) of its trained tokens; one record a row, 16 rows a pass."""
    examples = [lay_out(record, model.config, model.tokenizer.memory) for record in records]
    windows = max(1, max(len(example.pieces) for example in examples))
    room = RowBudget.for_model(model.config, max(map(len, examples)), windows)
    for start in range(0, len(examples), BATCH):
        some = examples[start : start + BATCH]
        rows = [fill_row(room, [example]) for example in some]
        batch = assemble(rows + [fill_row(room, [])] * (BATCH - len(rows)))
        losses, correct = map(np.asarray, _losses(model.weights, batch, model.config))
        for i in range(len(some)):
            chosen = batch.weights[i] > 0
            yield losses[i][chosen], correct[i][chosen]


@partial(jax.jit, static_argnames=("config",))
def _losses(
    params: Params, batch, config: ModelConfig
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    hidden = apply(config, params, batch)
    return cross_entropy(
        hidden, output_table(params, config), batch.targets, batch.weights, chunk=1024
    )[1:]


def _proportion(right: float, total: int) -> dict[str, float]:
    """A share with its 95 % Wilson interval."""
    if not total:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "count": 0}
    z, p = 1.96, float(right) / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return {
        "value": p,
        "low": max(0.0, middle - half),
        "high": min(1.0, middle + half),
        "count": int(total),
    }
