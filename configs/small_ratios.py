"""One small LCLM for four ratios: it reconstructs 64 tokens from 32, 16, 8 or 4 latents.

    python -m launch.demo --config configs/small_ratios.py

Documents and decoder are those of configs/small.py, without pairs and questions. Every context
draws its ratio. Mean pooling gives latents of one width at every ratio, and from the first step the
decoder gets averages of the word embeddings it learned in plain text. The encoder has a second
layer to distinguish positions within a group. Training took 69 min in the loop on one of two
cores; the report is in docs/small_ratios.
"""

from dataclasses import replace

from configs.small import config as small_config
from configs.small import language, prepare, prepare_held_out, recipe, together, tower
from lclm_jax.config import CompressionConfig, Config, Stream
from lclm_jax.evaluation.held_out import EvaluationConfig
from lclm_jax.experiment import Experiment

EVALUATION = EvaluationConfig(
    reconstruction_sources=("docs", "jumbles"),
    passage_lengths=((32, 32), (64, 64)),
    continuation_sources=(),
    question_source=None,
)
STREAMS = (
    Stream("reconstruction", "jumbles_short", 0.2),
    Stream("reconstruction", "docs", 0.4),
    Stream("reconstruction", "jumbles", 0.4),
)


def config() -> Config:
    small = small_config()
    compression = CompressionConfig(ratio=4, ratios=(2, 8, 16), window=64, pooling="mean")
    return replace(
        small,
        model=replace(small.model, encoder=tower(2), compression=compression),
        stages=(
            language(500, STREAMS),
            together("joint", 3200, STREAMS, encoder_from_decoder=True),
            together("anneal", 800, STREAMS, final_learning_rate=1e-5),
        ),
        run=replace(small.run, directory="runs/small_ratios"),
    )


def experiment() -> Experiment:
    return Experiment(config(), recipe(), prepare, EVALUATION, prepare_held_out)
