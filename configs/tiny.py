"""A small LCLM trained through all stages on text of this machine, in minutes on two CPU cores.

    python -m launch.train --config configs/tiny.py

Everything but the sizes follows the published recipe. A published decoder already knows its
language; this one learns it first, without compression, in the stage `language`, and the encoder
starts as a copy of its first layers. docs/results/demo.md has the figures to expect.
"""

from pathlib import Path

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
from lclm_jax.data.synthetic.corpus import write_corpus
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.experiment import Experiment
from lclm_jax.progress import track

VOCAB = 8192
TASKS = 6000


def tower(layers: int) -> TransformerConfig:
    return TransformerConfig(
        VOCAB, width=128, layers=layers, heads=4, kv_heads=2, head_dim=32, mlp=256, rope_theta=1e4
    )


def trained(
    adapter: float, encoder: float | None, decoder: float | None
) -> tuple[ParameterGroup, ...]:
    return (
        ParameterGroup("adapter/.*", adapter),
        ParameterGroup("encoder/.*", encoder),
        ParameterGroup("decoder/.*", decoder, weight_decay=0.0),
    )


PRETRAINING = (
    Stream("reconstruction", "docs", 0.41),
    Stream("reconstruction", "haystacks", 0.35),
    Stream("interleaved", "docs", 0.11),
    Stream("interleaved", "code", 0.11),
    Stream("sft", "tasks", 0.02),
)
FINE_TUNING = (
    Stream("reconstruction", "docs", 0.37),
    Stream("reconstruction", "haystacks", 0.55),
    Stream("sft", "tasks", 0.08),
)


def recipe() -> Recipe:
    sources = (
        Source("code", "code"),
        Source("docs", "text"),
        Source("haystacks", "text"),
        Source("tasks", "chat"),
    )
    return Recipe("tiny", sources, PRETRAINING)


def config() -> Config:
    return Config(
        model=ModelConfig(
            encoder=tower(2),
            decoder=tower(4),
            compression=CompressionConfig(ratio=4, window=32),
            dtype="float32",
            remat="dots",
        ),
        data=DataConfig(
            directory="runs/tiny/data",
            batch_rows=16,
            row_positions=120,
            row_windows=3,
            packing_lookahead=64,
            crop_length=(40, 80),
            reconstruction_length=(32, 32),
            request_wordings=1,
            min_segment_length=8,
        ),
        stages=(
            StageConfig(
                "language",
                steps=120,
                groups=(
                    ParameterGroup("decoder/.*", 4e-3),
                    ParameterGroup("(adapter|encoder)/.*", None),
                ),
                streams=PRETRAINING,
                warmup_steps=20,
                final_learning_rate=1e-3,
                compress=False,
            ),
            StageConfig(
                "adapter",
                25,
                trained(4e-3, None, None),
                PRETRAINING,
                warmup_steps=5,
                final_learning_rate=1e-3,
                encoder_from_decoder=True,
            ),
            StageConfig(
                "encoder",
                50,
                trained(4e-3, 4e-3, None),
                PRETRAINING,
                warmup_steps=10,
                final_learning_rate=1e-3,
            ),
            StageConfig(
                "decoder", 850, trained(2.5e-3, 2.5e-3, 2.5e-3), PRETRAINING, warmup_steps=20
            ),
            StageConfig("sft", 110, trained(1e-3, 1e-3, 1e-3), FINE_TUNING, warmup_steps=10),
        ),
        mesh=MeshConfig(data=-1, fsdp=1),
        run=RunConfig(
            directory="runs/tiny",
            save_every=100,
            validate_every=200,
            validation_examples=32,
            loss_chunk=512,
        ),
    )


def prepare(config: Config):
    """Write text of this machine as input files and prepare them; existing files are reused."""
    directory = Path(config.data.directory)
    inputs = write_corpus(
        directory / "input", config.model.decoder.vocab, TASKS, config.data.request_wordings, track
    )
    prepare_sources(
        recipe(),
        inputs,
        directory,
        Tokenizer.load(directory / "input" / "tokenizer"),
        progress=track,
    )


def experiment() -> Experiment:
    return Experiment(config(), recipe(), prepare)
