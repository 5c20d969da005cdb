"""Cells that a CPU core trains in minutes: two small towers on random pairs of words.

Contexts are lists of 1 to 8 pairs of 64 words, drawn at random. Answers repeat all pairs in another
order, give the values of some keys, or repeat the context, so that without the context even the
best model can only guess.

The decoder first learns to read contexts as text. Trained together from random weights, as in the
paper's search, towers of this size did not use latents within 800 steps. Nor did they where the
decoder could read text and all contexts were compressed afterwards, so a part of them stays text.
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path

from lclm_jax.config import (
    AdapterConfig,
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
from lclm_jax.data.rows.raw_examples import example_text
from lclm_jax.data.synthetic.corpus import train_tokenizer
from lclm_jax.data.synthetic.pairs import lookups, pair_documents, reorderings
from lclm_jax.files.atomic import write_whole
from lclm_jax.progress import track

VOCAB = 384
WORDS = tuple(
    a + b
    for a, b in itertools.product(
        "bdfgklmn", ["ado", "emi", "ilo", "ona", "ura", "ety", "ipo", "asu"]
    )
)
PAIRS = (1, 8)  # least and most in a context
DOCUMENTS = 40_000  # of each source
CONTEXT_TOKENS = 256  # of a row, whatever the window
PLAIN_CONTEXTS = 0.3  # in the second stage
STREAMS = (
    Stream("sft", "reorderings", 0.6),
    Stream("sft", "lookups", 0.2),
    Stream("reconstruction", "pairs", 0.2),
)
SOURCES = (Source("reorderings", "chat"), Source("lookups", "chat"), Source("pairs", "text"))


def tower(width: int, layers: int) -> TransformerConfig:
    """Return a tower with heads of 16 numbers."""
    return TransformerConfig(
        VOCAB,
        width=width,
        layers=layers,
        heads=width // 16,
        kv_heads=width // 16,
        head_dim=16,
        mlp=2 * width,
        rope_theta=1e4,
    )


def config(
    encoder: TransformerConfig,
    decoder: TransformerConfig,
    compression: CompressionConfig,
    adapter: AdapterConfig,
    steps: int,
    seed: int,
) -> Config:
    """Return the config of a cell, with `steps` in each of its two stages."""
    decay = ParameterGroup("decoder/.*", 3e-3, 0.1)
    language = StageConfig(
        "language",
        steps,
        (decay, ParameterGroup("(adapter|encoder)/.*", None)),
        with_plain_contexts(1.0),
        warmup_steps=100,
        final_learning_rate=3e-3,
    )
    joint = StageConfig(
        "joint",
        steps,
        (decay, ParameterGroup("(adapter|encoder)/.*", 3e-3, 0.0)),
        with_plain_contexts(PLAIN_CONTEXTS),
        warmup_steps=100,
        final_learning_rate=3e-4,
    )
    return Config(
        model=ModelConfig(
            encoder=encoder,
            decoder=decoder,
            compression=compression,
            adapter=adapter,
            dtype="float32",
            remat="none",
        ),
        stages=(language, joint),
        data=DataConfig(
            batch_rows=8,
            row_positions=256,
            row_windows=CONTEXT_TOKENS // compression.window,
            packing_lookahead=64,
            reconstruction_length=(4, 32),
            request_wordings=1,
            min_segment_length=8,
        ),
        mesh=MeshConfig(data=-1, fsdp=1),
        run=RunConfig(seed=seed, save_every=500, log_every=50, validate_every=0, loss_chunk=1024),
    )


def with_plain_contexts(share: float) -> tuple[Stream, ...]:
    """Return the streams, with a share of their contexts as text."""
    return tuple(replace(stream, plain_contexts=share) for stream in STREAMS)


def prepare(config: Config):
    """Write the pairs and prepare them; existing files are reused."""
    directory = Path(config.data.directory)
    rows = {
        "reorderings": list(reorderings(WORDS, DOCUMENTS, *PAIRS, seed=1)),
        "lookups": list(lookups(WORDS, DOCUMENTS, *PAIRS, questions=4, seed=2)),
        "pairs": list(pair_documents(WORDS, DOCUMENTS, *PAIRS, seed=3)),
    }
    inputs = {}
    for name, written in track(rows.items(), "writing text"):
        file = directory / "input" / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, "".join(json.dumps(row) + "\n" for row in written))
        inputs[name] = [str(file)]
    texts = [example_text(row) for written in rows.values() for row in written[:2000]]
    tokenizer = train_tokenizer(texts, VOCAB)
    prepare_sources(Recipe("words", SOURCES, STREAMS), inputs, directory, tokenizer, progress=track)
