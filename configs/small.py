"""A small LCLM that trains on two CPU cores to copy from latents and to look up values.

    python -m launch.demo --config configs/small.py

It reconstructs 64 tokens from 16 latents and answers questions about lists of 16 to 20 pairs.

The data:
- Documents are short and most are drawn at random, so only the context tells what they contain.
- Documents are short (2 to 8 pairs) and long from the start, cropped at any token and preceded by
  titles, so that pairs begin at every position within a latent.
- Reordered pairs ask for every pair of a context in few tokens.

The training: in the stage `language` the decoder learns to copy and to look up in plain text. The
encoder then starts as a copy of the decoder's first layer. Latents are concatenated, so the model
need not learn where in its group a token stands. Learning rates are constant until the last stage,
so a stage can be made longer without a new schedule.

Milestones of the run whose report is in docs/small (107 min in the training loop, mostly on one of
two cores beside another run):
- Plain text: copying works after 900 steps, pairs and lookups between 1,000 and 1,500 steps, with
  99 % of the trained tokens of lookups correct.
- From latents: 80 % of them are correct after 1,000 steps of `joint`, 88 % after 4,000, 93 % at its
  end, and 98 % after 1,000 steps of `questions`.
- At step 4,200 of `joint`, keys that are the third token of their latent were not found yet (18 of
  65 correct; 179 of 191 for other keys). An earlier run without titles and crops never found them.

Steps and shares of `questions` and `anneal` were chosen while `joint` ran; no stage was repeated.
docs/results/small.md has the results on held-out documents. The decoder no longer reads plain text.
"""

from pathlib import Path
from typing import Any

from lclm_jax.config import (
    CompressionConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    ParameterGroup,
    Recipe,
    RunConfig,
    Source,
    StageConfig,
    Stream,
    TransformerConfig,
)
from lclm_jax.data.prepare import prepare as prepare_sources
from lclm_jax.data.synthetic.pairs import NAMES, write_corpus, write_held_out
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.evaluation.held_out import EvaluationConfig
from lclm_jax.experiment import Experiment
from lclm_jax.progress import track

VOCAB = 1024  # small, so that most parameters are in the layers
EVALUATION = EvaluationConfig(
    reconstruction_sources=("docs", "jumbles", "pairs"),
    passage_lengths=((32, 32), (64, 64)),
    continuation_sources=(),
    question_source="lookups",
    question_count=768,
)


def tower(layers: int) -> TransformerConfig:
    return TransformerConfig(
        VOCAB, width=192, layers=layers, heads=8, kv_heads=4, head_dim=32, mlp=256, rope_theta=1e4
    )


def language(steps: int, streams: tuple[Stream, ...]) -> StageConfig:
    """Return a stage in which the decoder learns to copy in plain text."""
    groups = (
        ParameterGroup("decoder/.*", 2.5e-3, weight_decay=0.0),
        ParameterGroup("(adapter|encoder)/.*", None),
    )
    return StageConfig(
        "language",
        steps,
        groups,
        streams,
        warmup_steps=50,
        final_learning_rate=2.5e-3,
        compress=False,
    )


def together(
    name: str,
    steps: int,
    streams: tuple[Stream, ...],
    final_learning_rate: float = 2e-3,
    **more: Any,
) -> StageConfig:
    """Return a stage that trains all components.

    By default the learning rate is constant, so the stage can be made longer without a new
    schedule; another `final_learning_rate` makes it decay.
    """
    groups = (
        ParameterGroup("adapter/.*", 2e-3),
        ParameterGroup("encoder/.*", 2e-3),
        ParameterGroup("decoder/.*", 2e-3, weight_decay=0.0),
    )
    return StageConfig(
        name,
        steps,
        groups,
        streams,
        warmup_steps=50,
        final_learning_rate=final_learning_rate,
        row_windows=4,
        **more,
    )


CHATS = ("reorderings", "lookups")
# Shares of the trained tokens by source: in plain text, from latents, and from latents with more
# questions.
SHARES = {
    "jumbles_short": (0.2, 0.12, 0.04),
    "pairs_short": (0.1, 0.06, 0.04),
    "reorderings_short": (0.125, 0.08, 0.08),
    "lookups_short": (0.075, 0.06, 0.08),
    "docs": (0.2, 0.18, 0.16),
    "jumbles": (0.25, 0.18, 0.12),
    "pairs": (0.2, 0.1, 0.1),
    "reorderings": (0.25, 0.18, 0.24),
    "lookups": (0.1, 0.12, 0.2),
}


def is_chat(source: str) -> bool:
    return source.removesuffix("_short") in CHATS


LANGUAGE, COMPRESSED, QUESTIONED = (
    tuple(
        Stream("sft" if is_chat(name) else "reconstruction", name, shares[mix])
        for name, shares in SHARES.items()
    )
    for mix in range(3)
)


def recipe() -> Recipe:
    return Recipe(
        "small",
        tuple(Source(name, "chat" if is_chat(name) else "text") for name in NAMES),
        COMPRESSED,
    )


def config() -> Config:
    return Config(
        model=ModelConfig(
            encoder=tower(1),
            decoder=tower(3),
            compression=CompressionConfig(ratio=4, window=64, pooling="concat"),
            dtype="float32",
            remat="dots",
        ),
        data=DataConfig(
            directory="runs/small/data",
            batch_rows=8,
            row_positions=256,
            row_windows=3,
            packing_lookahead=64,
            reconstruction_length=(32, 64),
            request_wordings=1,
            min_segment_length=8,
        ),
        stages=(
            language(1500, LANGUAGE),
            StageConfig(
                "adapter",
                steps=120,
                groups=(
                    ParameterGroup("(adapter|encoder)/.*", 3e-3),
                    ParameterGroup("decoder/.*", None),
                ),
                streams=COMPRESSED,
                warmup_steps=20,
                final_learning_rate=3e-3,
                encoder_from_decoder=True,
                row_windows=4,
            ),
            together("joint", 4500, COMPRESSED),
            together("questions", 1500, QUESTIONED),
            together("anneal", 1000, QUESTIONED, final_learning_rate=1e-5),
        ),
        mesh=MeshConfig(data=-1, fsdp=1),
        run=RunConfig(directory="runs/small", save_every=200, loss_chunk=1024),
    )


def prepare(config: Config):
    """Write documents as input files and prepare them; existing files are reused."""
    directory = Path(config.data.directory)
    inputs = write_corpus(directory / "input", config.model.decoder.vocab, track)
    prepare_sources(
        recipe(),
        inputs,
        directory,
        Tokenizer.load(directory / "input" / "tokenizer"),
        progress=track,
    )


def prepare_held_out(config: Config, tokenizer: Tokenizer):
    """Prepare only the held-out documents, with the tokenizer of a trained model."""
    directory = Path(config.data.directory)
    prepare_sources(
        recipe(), write_held_out(directory / "input", track), directory, tokenizer, progress=track
    )


def experiment() -> Experiment:
    return Experiment(config(), recipe(), prepare, EVALUATION, prepare_held_out)
