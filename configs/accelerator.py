"""A model of 40 million parameters that one accelerator trains in a minute.

    python -m launch.bench.accelerator --sections learning

The sources are the Python modules of this machine and their docstrings. The decoder first learns
the language and to copy, in plain text; then all components learn to reconstruct passages from
their latents, 4 tokens per latent.
"""

import json
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
from lclm_jax.data.synthetic.corpus import (
    documentation,
    split_of,
    standard_library,
    train_tokenizer,
)
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.experiment import Experiment
from lclm_jax.files.atomic import write_whole

VOCAB = 8192
STREAMS = (Stream("reconstruction", "docs", 0.6), Stream("reconstruction", "code", 0.4))


def tower(layers: int) -> TransformerConfig:
    return TransformerConfig(
        VOCAB,
        width=512,
        layers=layers,
        heads=8,
        kv_heads=4,
        head_dim=64,
        mlp=1536,
        rope_theta=1e4,
    )


def recipe() -> Recipe:
    return Recipe("accelerator", (Source("code", "code"), Source("docs", "text")), STREAMS)


def config() -> Config:
    return Config(
        model=ModelConfig(
            encoder=tower(2),
            decoder=tower(8),
            compression=CompressionConfig(ratio=4, window=64, pooling="concat"),
            remat="dots",
        ),
        data=DataConfig(
            directory="runs/accelerator/data",
            batch_rows=64,
            row_positions=512,
            row_windows=6,
            packing_lookahead=128,
            crop_length=(32, 64),
            reconstruction_length=(32, 64),
            request_wordings=1,
            min_segment_length=8,
        ),
        stages=(
            StageConfig(
                "language",
                steps=2000,
                groups=(
                    ParameterGroup("decoder/.*", 1.5e-3, 0.0),
                    ParameterGroup("(adapter|encoder)/.*", None),
                ),
                streams=STREAMS,
                warmup_steps=100,
                final_learning_rate=1.5e-3,
                compress=False,
            ),
            StageConfig(
                "joint",
                steps=4000,
                groups=(
                    ParameterGroup("(adapter|encoder)/.*", 1e-3),
                    ParameterGroup("decoder/.*", 1e-3, 0.0),
                ),
                streams=STREAMS,
                warmup_steps=100,
                final_learning_rate=1e-3,
                encoder_from_decoder=True,
            ),
        ),
        mesh=MeshConfig(data=-1, fsdp=1),
        run=RunConfig(directory="runs/accelerator", validation_examples=64, loss_chunk=1024),
    )


def prepare(config: Config, modules: int | None = None):
    """Write Python's modules and their docstrings as input files and prepare them.

    `modules` limits their number. Data that are already prepared are reused.
    """
    directory = Path(config.data.directory)
    sources = list(standard_library())[:modules]
    rows = {
        "code": [{"text": text, "split_group": path} for path, text in sources],
        "docs": documentation(sources),
    }
    inputs = {}
    for name, texts in rows.items():
        file = directory / "input" / f"{name}.jsonl"
        write_whole(file, "".join(json.dumps(row) + "\n" for row in texts))
        inputs[name] = [str(file)]
    tokenizer = directory / "input" / "tokenizer"
    if not tokenizer.exists():
        texts = [text for path, text in sources if split_of(path) == "train"]
        train_tokenizer(texts, config.model.decoder.vocab).save(tokenizer)
    prepare_sources(recipe(), inputs, directory, Tokenizer.load(tokenizer))


def experiment() -> Experiment:
    return Experiment(config(), recipe(), prepare)
