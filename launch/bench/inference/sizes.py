"""Shapes and lengths to measure: for a test, for a CPU, or the published ones."""

from dataclasses import dataclass, replace
from typing import Any

from launch.bench.accelerator import sizes as accelerator
from lclm_jax.config import CompressionConfig, ModelConfig, TransformerConfig

K = 1024
THOUSAND = 1000


@dataclass(frozen=True)
class Sizes:
    """All shapes and lengths of the benchmark, in tokens unless they say otherwise."""

    name: str
    model: ModelConfig  # with one ratio
    ratios: tuple[int, ...]  # of the model with several, in tokens per latent
    contexts: tuple[int, ...]  # compressed or read as text, in ascending order
    question: int
    answer: int
    document: int  # of questions and of the agent
    questions: int  # number of questions about the document
    encoded_questions: int  # number of those for which it is encoded each time
    chunk: int  # of the agent
    rounds: int  # number of the agent's requests for chunks
    batches: tuple[int, ...]  # numbers of prompts answered at once
    batch_context: int  # compressed context of each of these prompts
    long_texts: tuple[int, ...]
    stores: tuple[int, ...]  # numbers of windows

    @property
    def several_ratios(self) -> ModelConfig:
        """The model, trained for several ratios."""
        compression = replace(self.model.compression, ratios=self.ratios)
        return replace(self.model, compression=compression)


def small() -> Sizes:
    """Return shapes that two cores of a CPU measure in about a quarter of an hour."""
    tower: dict[str, Any] = {
        "vocab": 4096,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 32,
        "initializer_range": 0.02,
    }
    encoder = TransformerConfig(width=128, layers=4, mlp=384, **tower)
    decoder = TransformerConfig(width=256, layers=6, mlp=768, **tower)
    compression = CompressionConfig(ratio=16, window=K)
    return Sizes(
        name="small",
        model=ModelConfig(encoder, decoder, compression, dtype="float32", remat="none"),
        ratios=(4, 8, 16),
        contexts=(4 * K, 16 * K, 32 * K, 64 * K, 128 * K, 256 * K),
        question=62,
        answer=64,
        document=16 * K,
        questions=85,
        encoded_questions=17,
        chunk=512,
        rounds=5,
        batches=(1, 2, 4, 8, 16, 32),
        batch_context=2 * K,
        long_texts=(125 * THOUSAND, 250 * THOUSAND, 500 * THOUSAND, THOUSAND * THOUSAND),
        stores=(THOUSAND, 10 * THOUSAND, 100 * THOUSAND, THOUSAND * THOUSAND),
    )


def published() -> Sizes:
    """Return the shapes of the paper's model, 0.6B and 4B, at the lengths of `small`."""
    return replace(small(), name="published", model=accelerator.published().model)


def tiny() -> Sizes:
    """Return shapes that a test measures in seconds."""
    return Sizes(
        name="tiny",
        model=accelerator.tiny().model,
        ratios=(4, 8, 16),
        contexts=(256, 512),
        question=14,
        answer=8,
        document=256,
        questions=4,
        encoded_questions=2,
        chunk=64,
        rounds=2,
        batches=(1, 2),
        batch_context=256,
        long_texts=(256, 512),
        stores=(50, 100),
    )
