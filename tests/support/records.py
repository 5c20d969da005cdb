"""A tiny model's config, and random records, for the tests of data."""

import json
from dataclasses import replace

import jax
import numpy as np
from hypothesis import strategies as st

from lclm_jax.config import CompressionConfig, ModelConfig, TransformerConfig
from lclm_jax.data.records import Context, Plain
from lclm_jax.data.rows.raw_examples import tokenize_example
from lclm_jax.data.shards import MANIFEST, SPLITS, ShardWriter, shard_path
from lclm_jax.data.text.tokenizer import MemoryTokens

MARKER = 99
MEMORY = MemoryTokens(start=101, end=102, slot=103, marker=MARKER)
TOWER = TransformerConfig(vocab=128, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp=8)


def model(ratio=2, window=4, pooling="mean", overlap=0, causal=True) -> ModelConfig:
    return ModelConfig(
        replace(TOWER, causal=causal), TOWER, CompressionConfig(ratio, window, pooling, overlap)
    )


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def same(first, second) -> bool:
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def with_noise(params):
    """Parameters with noise, so that residual branches, which start at zero, matter to results."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32), params
    )


SPANS = st.lists(
    st.tuples(st.sampled_from(["context", "plain", "trained"]), st.integers(0, 11)),
    min_size=1,
    max_size=5,
)


def build(spans, first=1000):
    """A record in which every token is another, so that each can be found again."""
    record = []
    for kind, length in spans:
        tokens = np.arange(first, first + length, dtype=np.int32)
        record.append(Context(tokens) if kind == "context" else Plain(tokens, kind == "trained"))
        first += length
    return record


def write_sources(directory, tokenizer, rows, splits=SPLITS):
    """A prepared directory of `{source: (kind, raw examples)}`, the same ones in every split."""
    tokenizer.save(directory / "tokenizer")
    sources = {}
    for name, (kind, raws) in rows.items():
        shards = []
        for split in splits:
            writer = ShardWriter(shard_path(directory, name, split))
            for raw in raws:
                writer.add(raw, tokenize_example(raw, tokenizer))
            shards.append({"split": split} | writer.close())
        sources[name] = {"kind": kind, "shards": shards}
    manifest = {"sources": sources, "tokenizer": {"fingerprint": tokenizer.fingerprint}}
    (directory / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
