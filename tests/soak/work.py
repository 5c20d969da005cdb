"""The training job of a soak: a small corpus, a tiny model and two stages."""

import json
from collections.abc import Sequence
from itertools import islice
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
from lclm_jax.data.prepare import prepare
from lclm_jax.data.synthetic.corpus import documentation, standard_library, train_tokenizer
from lclm_jax.data.text.tokenizer import Tokenizer

VOCAB = 512
MODULES = 60  # of the standard library
STREAMS = (
    Stream("reconstruction", "docs", 0.5),
    Stream("interleaved", "docs", 0.3),
    Stream("sft", "tasks", 0.2),
)
ADAPTER = (
    ParameterGroup("adapter/.*", 1e-3),
    ParameterGroup("encoder/.*", None),
    ParameterGroup("decoder/.*", None),
)
EVERYTHING = (ParameterGroup("adapter/.*", 1e-3), ParameterGroup("(encoder|decoder)/.*", 1e-3))


def soak_config(data: Path, directory: Path, steps: int, save_every: int = 7) -> Config:
    """Return the config of a run of two stages of `steps` steps each, which logs every step."""
    encoder = TransformerConfig(
        vocab=VOCAB, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=32
    )
    decoder = TransformerConfig(
        vocab=VOCAB, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=64
    )
    return Config(
        model=ModelConfig(
            encoder, decoder, CompressionConfig(ratio=4, window=16), dtype="float32", remat="none"
        ),
        stages=(
            StageConfig("adapter", steps, ADAPTER, STREAMS, warmup_steps=2),
            StageConfig(
                "all", steps, EVERYTHING, STREAMS, warmup_steps=2, final_learning_rate=1e-4
            ),
        ),
        data=DataConfig(
            directory=str(data),
            batch_rows=4,
            row_positions=96,
            row_windows=4,
            packing_lookahead=24,
            request_wordings=1,
            crop_length=(24, 60),
            reconstruction_length=(8, 24),
            min_segment_length=8,
        ),
        mesh=MeshConfig(data=1, fsdp=1, tensor=1),
        run=RunConfig(
            str(directory),
            save_every=save_every,
            keep=3,
            log_every=1,
            validate_every=0,
            loss_chunk=256,
        ),
    )


def write_work(directory: Path, modules: int = MODULES):
    """Prepare docstrings of the standard library as documents and as chats.

    The chats ask for the first line of a docstring.
    """
    texts = [row["text"] for row in documentation(list(islice(standard_library(), modules)))]
    half = len(texts) // 2
    rows = {
        "docs-0": [{"text": text} for text in texts[:half]],
        "docs-1": [{"text": text} for text in texts[half:]],
        "tasks": [_task(text) for text in texts if len(text.splitlines()[0]) < 60],
    }
    files = {
        name: _write_rows(directory / "input" / f"{name}.jsonl", lines)
        for name, lines in rows.items()
    }
    tokenizer: Tokenizer = train_tokenizer(texts, VOCAB)
    recipe = Recipe("soak", (Source("docs", "text"), Source("tasks", "chat")), STREAMS)
    prepare(
        recipe,
        {"docs": [files["docs-0"], files["docs-1"]], "tasks": [files["tasks"]]},
        directory,
        tokenizer,
        workers=1,
    )


def _task(text: str) -> dict[str, Any]:
    content = [{"context": text[:160]}, {"text": " What is its first line?"}]
    return {
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": text.splitlines()[0]},
        ]
    }


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
