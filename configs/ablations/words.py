"""Cells that a CPU core trains in minutes: two small towers on random pairs of words.

Contexts are lists of 2 to 8 pairs of words, drawn at random (`lclm_jax.data.synthetic.pairs`).
Answers repeat all pairs in another order, give the values of some keys, or repeat the context, so
that without the context even the best model can only guess among 256 words.
"""

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
from lclm_jax.data.synthetic.pairs import write_corpus
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.progress import track

VOCAB = 1024
CONTEXT_TOKENS = 384  # of a row, whatever the window
STREAMS = (
    Stream("sft", "reorderings_short", 0.6),
    Stream("sft", "lookups_short", 0.2),
    Stream("reconstruction", "pairs_short", 0.2),
)
SOURCES = (
    Source("reorderings_short", "chat"),
    Source("lookups_short", "chat"),
    Source("pairs_short", "text"),
)


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
    """Return the config of a cell: both towers are trained from scratch, as in the paper."""
    groups = (
        ParameterGroup("adapter/.*", 3e-3, 0.01),
        ParameterGroup("(encoder|decoder)/.*", 3e-3, 0.1),
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
        stages=(
            StageConfig(
                "scratch", steps, groups, STREAMS, warmup_steps=100, final_learning_rate=3e-4
            ),
        ),
        data=DataConfig(
            batch_rows=8,
            row_positions=256,
            row_windows=CONTEXT_TOKENS // compression.window,
            packing_lookahead=64,
            reconstruction_length=(8, 48),
            request_wordings=1,
            min_segment_length=8,
        ),
        mesh=MeshConfig(data=-1, fsdp=1),
        run=RunConfig(seed=seed, save_every=500, log_every=50, validate_every=0, loss_chunk=1024),
    )


def prepare(config: Config):
    """Write the pairs and prepare them; existing files are reused."""
    directory = Path(config.data.directory)
    inputs = write_corpus(directory / "input", VOCAB, track)
    chosen = {source.name: inputs[source.name] for source in SOURCES}
    tokenizer = Tokenizer.load(directory / "input" / "tokenizer")
    prepare_sources(Recipe("words", SOURCES, STREAMS), chosen, directory, tokenizer, progress=track)
