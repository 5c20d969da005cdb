"""A published checkpoint in torch: the reference of `convert.verify --torch` and `make parity`.

Towers are the models of transformers. Windows, pooling and adapter are written anew from the
description of the checkpoint format, one window at a time, and share no code with lclm_jax. All
is in float32.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    Qwen3Config,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

from convert.hf.config import rename_older_keys
from convert.hf.files import Published, find_published, read_json
from convert.verify.golden import Check, Subject, Tolerance, check, forward
from lclm_jax.data.loading import RowBudget, assemble, fill_row
from lclm_jax.data.records import Context, Plain, lay_out
from lclm_jax.data.text.tokenizer import MemoryTokens

ADAPTER_EPS = 1e-6
TOLERANCE = Tolerance(1e-3, 1e-3)  # of activations of a full-size model in float32


def compare_logits(source: str | Path, subject: Subject) -> list[Check]:
    """Compare latents and logits of a random prompt with three contexts with those of torch."""
    reference, config, rng = Reference(Path(source)), subject.config, np.random.default_rng(0)
    window, vocab = config.compression.window, min(config.encoder.vocab, config.decoder.vocab)

    def tokens(n: int) -> np.ndarray:
        return rng.integers(0, vocab, n).astype(np.int32)

    contexts = [tokens(n) for n in (1, window // 2 + 1, window + 3)]
    record = [span for context in contexts for span in (Plain(tokens(5)), Context(context))]
    example = lay_out([*record, Plain(tokens(5))], config, MemoryTokens(0, 1, 2, subject.marker))
    batch = assemble(
        [fill_row(RowBudget.for_model(config, len(example), len(example.pieces)), [example])]
    )
    _, latents, _, logits = jax.device_get(forward(subject.params, batch, config))
    expected_latents = [reference.compress(context)[1] for context in contexts]
    slots = torch.from_numpy(example.slots >= 0)
    embedded = reference.place(
        torch.from_numpy(example.tokens.astype(np.int64)), slots, expected_latents
    )
    with torch.no_grad():
        expected = reference.decoder(inputs_embeds=embedded[None]).logits[0].numpy()
    order = batch.slots[0][batch.slots[0] >= 0]
    return [
        check("latents", latents[order], torch.cat(expected_latents).numpy(), TOLERANCE),
        check("logits", logits, expected, TOLERANCE),
    ]


def layer_config(tower: PretrainedConfig, width: int) -> Qwen3Config:
    """Return the config of the adapter's attention layers: Qwen3 layers of a tower's sizes."""
    values = {**tower.to_dict(), "hidden_size": width, "head_dim": tower.head_dim}
    values = {
        key: value
        for key, value in values.items()
        if key not in ("model_type", "architectures", "layer_types")
    }
    config = Qwen3Config(**values)
    config._attn_implementation = "eager"
    return config


class Adapter(torch.nn.Module):
    """RMSNorm -> Linear -> exact GELU -> Linear, with bidirectional layers after or before."""

    def __init__(self, settings: dict[str, Any], encoder: Qwen3Config, decoder: Qwen3Config):
        super().__init__()
        self.kind = settings["adapter_type"]
        inputs = encoder.hidden_size * (
            settings["compression_ratio"] if settings["pooling"] == "concat" else 1
        )
        self.norm = torch.nn.RMSNorm(inputs, eps=ADAPTER_EPS)
        self.fc1 = torch.nn.Linear(inputs, decoder.hidden_size)
        self.fc2 = torch.nn.Linear(decoder.hidden_size, decoder.hidden_size)
        if self.kind == "mlp":
            return
        tower, width = (
            (decoder, decoder.hidden_size) if self.kind == "mlp_attn" else (encoder, inputs)
        )
        tower = layer_config(tower, width)
        layers = [
            Qwen3DecoderLayer(tower, layer_idx=0)
            for _ in range(settings.get("num_adapter_layers", 1))
        ]
        self.attention_layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({"decoder_layer": layer}) for layer in layers
        )
        self.rotary = [Qwen3RotaryEmbedding(tower)]  # in a list: it has no weights to load

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map all latents of one context [n, .] to the decoder's width."""
        x = self._attend(pooled) if self.kind == "attn_mlp" else pooled
        x = self.fc2(torch.nn.functional.gelu(self.fc1(self.norm(x)), approximate="none"))
        return self._attend(x) if self.kind == "mlp_attn" else x

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        x, n = x[None], len(x)
        rotary = self.rotary[0](x, torch.arange(n)[None])
        for layer in self.attention_layers:
            x = layer["decoder_layer"](
                x, attention_mask=torch.zeros(1, 1, n, n), position_embeddings=rotary
            )
        return x[0]


@dataclass(frozen=True)
class Reference:
    """A published checkpoint as transformers and torch read it."""

    directory: Path

    @cached_property
    def published(self) -> Published:
        return find_published(self.directory)

    @cached_property
    def settings(self) -> dict[str, Any]:
        values = read_json(self.published.settings / "model_config.json")
        return {"boundary_overlap": 0, "adapter_type": "mlp", **rename_older_keys(values)}

    @cached_property
    def decoder(self) -> torch.nn.Module:
        return _read(AutoModelForCausalLM, self.published.decoder)

    @cached_property
    def encoder(self) -> torch.nn.Module:
        return _read(AutoModel, self.published.encoder)

    @cached_property
    def adapter(self) -> Adapter:
        adapter = Adapter(self.settings, self.encoder.config, self.decoder.config)
        weights = {key: tensor.float() for key, tensor in load_file(self.published.adapter).items()}
        adapter.load_state_dict(weights)
        return adapter

    @cached_property
    def tokenizer(self):
        return AutoTokenizer.from_pretrained(self.published.decoder)

    @cached_property
    def marker(self) -> int:
        return AutoTokenizer.from_pretrained(self.published.encoder).pad_token_id

    @torch.no_grad()
    def compress(
        self, tokens: np.ndarray, ratio: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pooled encoder states and latents of a context at `ratio` or the default."""
        window, width = self.settings["encoder_window_size"], self.adapter.norm.weight.shape[0]
        tokens_per_latent: int = ratio or self.settings["compression_ratio"]
        starts = range(0, len(tokens), window)
        pooled = [
            self._pool_window(tokens, start, min(start + window, len(tokens)), tokens_per_latent)
            for start in starts
        ]
        together = torch.cat(pooled) if pooled else torch.zeros(1, width)
        return together, self.adapter(together)

    def _pool_window(self, tokens: np.ndarray, start: int, end: int, ratio: int) -> torch.Tensor:
        causal, overlap = (
            self.settings["encoder_mask_type"] == "causal",
            self.settings["boundary_overlap"],
        )
        pooling = self.settings["pooling"]
        left, right = max(0, start - overlap), end if causal else min(len(tokens), end + overlap)
        count = math.ceil((end - start) / ratio)
        markers = count if pooling == "eos" else 0
        read = torch.tensor([*tokens[left:right].tolist(), *[self.marker] * markers])
        mask = None if causal else torch.zeros(1, 1, len(read), len(read))
        hidden = self.encoder(
            input_ids=read[None], attention_mask=mask, use_cache=False
        ).last_hidden_state[0]
        if pooling == "eos":
            return hidden[right - left :]
        groups = hidden[start - left : end - left].split(ratio)
        if pooling == "mean":
            return torch.stack([group.mean(dim=0) for group in groups])
        return torch.stack(
            [
                torch.nn.functional.pad(
                    group.flatten(), (0, ratio * hidden.shape[1] - group.numel())
                )
                for group in groups
            ]
        )

    @torch.no_grad()
    def embed(self, tokens: np.ndarray, latents: list[np.ndarray]) -> torch.Tensor:
        """Return the decoder's input [T, D]: embeddings, with all latents in the placeholders."""
        ids = torch.tensor(np.asarray(tokens, np.int64))
        return self.place(ids, ids == self.tokenizer.convert_tokens_to_ids("<|memory|>"), latents)

    @torch.no_grad()
    def place(self, ids: torch.Tensor, slots: torch.Tensor, latents: list[Any]) -> torch.Tensor:
        """Return embeddings [T, D] of `ids`, with latents in order at `slots`."""
        embedded = self.decoder.get_input_embeddings()(ids)
        if latents:
            embedded[slots] = torch.cat([torch.as_tensor(array) for array in latents])
        return embedded


def _read(auto: type, directory: Path) -> torch.nn.Module:
    return auto.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
