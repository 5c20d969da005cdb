"""The other side of every parity test: transformers' own models, and the behaviour of a published checkpoint restated in torch.

Nothing here uses lclm_jax. Windows, pooling and adapter follow the description of the checkpoint format, one window at a time.
"""

import json
import math
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
KINDS = {"qwen3": (Qwen3Config, Qwen3ForCausalLM, Qwen3Model), "llama": (LlamaConfig, LlamaForCausalLM, LlamaModel)}
SETTINGS = {
    "compression_ratio": 4,
    "encoder_window_size": 16,
    "pooling": "mean",
    "encoder_mask_type": "causal",
    "boundary_overlap": 0,
    "adapter_type": "mlp",
}
ADAPTER_EPS = 1e-6
torch.set_num_threads(1)  # the models are tiny, and threads that wait for each other cost more than they do


def make_tower(seed: int, kind: str = "qwen3", head: bool = True, theta: float = 1e6, **shape) -> torch.nn.Module:
    """A random transformers model in float32 with eager attention; `shape` holds fields of its config."""
    config_class, with_head, without_head = KINDS[kind]
    config = config_class(
        rope_parameters={"rope_theta": theta, "rope_type": "default"},
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
        **shape,
    )
    model = (with_head if head else without_head)(config).eval()
    randomise(model, seed)
    return model


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int):
    """Matrices that keep the scale of what they read, norm weights and biases that are not their defaults."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.uniform_(*((-0.3, 0.3) if name.endswith("bias") else (0.5, 1.5)), generator=generator)
        else:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)


class Adapter(torch.nn.Module):
    """RMSNorm -> Linear -> exact GELU -> Linear, with whole bidirectional Qwen3 layers after or before it."""

    def __init__(self, settings: dict[str, Any], encoder: Qwen3Config, decoder: Qwen3Config):
        super().__init__()
        self.kind = settings["adapter_type"]
        inputs = encoder.hidden_size * (settings["compression_ratio"] if settings["pooling"] == "concat" else 1)
        self.norm = torch.nn.RMSNorm(inputs, eps=ADAPTER_EPS)
        self.fc1 = torch.nn.Linear(inputs, decoder.hidden_size)
        self.fc2 = torch.nn.Linear(decoder.hidden_size, decoder.hidden_size)
        if self.kind == "mlp":
            return
        tower = decoder if self.kind == "mlp_attn" else encoder
        tower._attn_implementation = "eager"
        layers = [Qwen3DecoderLayer(tower, layer_idx=0) for _ in range(settings.get("num_adapter_layers", 1))]
        self.attention_layers = torch.nn.ModuleList(torch.nn.ModuleDict({"decoder_layer": layer}) for layer in layers)
        self.rotary = [Qwen3RotaryEmbedding(tower)]  # in a list: it has no weights to load

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """All latents of one context [n, .] to the decoder's width."""
        x = self._attend(pooled) if self.kind == "attn_mlp" else pooled
        x = self.fc2(torch.nn.functional.gelu(self.fc1(self.norm(x)), approximate="none"))
        return self._attend(x) if self.kind == "mlp_attn" else x

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        x, n = x[None], len(x)
        rotary = self.rotary[0](x, torch.arange(n)[None])
        for layer in self.attention_layers:
            x = layer["decoder_layer"](x, attention_mask=torch.zeros(1, 1, n, n), position_embeddings=rotary)
        return x[0]


@dataclass(frozen=True)
class Reference:
    """A published checkpoint as transformers and torch read it."""

    directory: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        return {**SETTINGS, **json.loads((self.directory / "model_config.json").read_text())}

    @cached_property
    def decoder(self) -> torch.nn.Module:
        return _read(AutoModelForCausalLM, self.directory / "decoder")

    @cached_property
    def encoder(self) -> torch.nn.Module:
        return _read(AutoModel, self.directory / "encoder")

    @cached_property
    def adapter(self) -> Adapter:
        adapter = Adapter(self.settings, self.encoder.config, self.decoder.config)
        adapter.load_state_dict(load_file(self.directory / "adapter" / "adapter.safetensors"))
        return adapter

    @cached_property
    def tokenizer(self):
        return AutoTokenizer.from_pretrained(self.directory / "decoder")

    @cached_property
    def marker(self) -> int:
        return AutoTokenizer.from_pretrained(self.directory / "encoder").pad_token_id

    @torch.no_grad()
    def compress(self, tokens: np.ndarray, ratio: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled encoder states and latents of one context, at the checkpoint's ratio or another."""
        window, width = self.settings["encoder_window_size"], self.adapter.norm.weight.shape[0]
        ratio = ratio or self.settings["compression_ratio"]
        starts = range(0, len(tokens), window)
        pooled = [self._pool_window(tokens, start, min(start + window, len(tokens)), ratio) for start in starts]
        together = torch.cat(pooled) if pooled else torch.zeros(1, width)
        return together, self.adapter(together)

    def _pool_window(self, tokens: np.ndarray, start: int, end: int, ratio: int) -> torch.Tensor:
        causal, overlap = self.settings["encoder_mask_type"] == "causal", self.settings["boundary_overlap"]
        pooling = self.settings["pooling"]
        left, right = max(0, start - overlap), end if causal else min(len(tokens), end + overlap)
        count = math.ceil((end - start) / ratio)
        markers = count if pooling == "eos" else 0
        read = torch.tensor([*tokens[left:right].tolist(), *[self.marker] * markers])
        mask = None if causal else torch.zeros(1, 1, len(read), len(read))
        hidden = self.encoder(input_ids=read[None], attention_mask=mask, use_cache=False).last_hidden_state[0]
        if pooling == "eos":
            return hidden[right - left :]
        groups = hidden[start - left : end - left].split(ratio)
        if pooling == "mean":
            return torch.stack([group.mean(dim=0) for group in groups])
        return torch.stack(
            [torch.nn.functional.pad(group.flatten(), (0, ratio * hidden.shape[1] - group.numel())) for group in groups]
        )

    @torch.no_grad()
    def embed(self, tokens: np.ndarray, latents: list[np.ndarray]) -> torch.Tensor:
        """What the decoder reads [T, D]: token embeddings, with the latents of all contexts in the placeholders, in order."""
        ids = torch.tensor(np.asarray(tokens, np.int64))
        embedded = self.decoder.get_input_embeddings()(ids)
        slots = ids == self.tokenizer.convert_tokens_to_ids("<|memory|>")
        if latents:
            embedded[slots] = torch.from_numpy(np.concatenate(latents))
        return embedded


def _read(auto: type, directory: Path) -> torch.nn.Module:
    return auto.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def publish(
    directory: Path, decoder: torch.nn.Module, encoder: torch.nn.Module, settings: dict[str, Any] = SETTINGS, **saving
) -> Reference:
    """Writes the published layout as its owners do, with save_pretrained, and a random adapter."""
    for part, model in (("decoder", decoder), ("encoder", encoder)):
        model.save_pretrained(directory / part, **saving)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(GOLDEN / "base" / part / name, directory / part / name)
    adapter = Adapter(settings, encoder.config, decoder.config)
    randomise(adapter, seed=7)
    (directory / "adapter").mkdir()
    save_file(adapter.state_dict(), directory / "adapter" / "adapter.safetensors", metadata={"format": "pt"})
    (directory / "model_config.json").write_text(json.dumps(settings))
    shutil.copy(GOLDEN / "cases" / "c03_mean_causal_mlp_r4" / "processor_config.json", directory)
    processor = directory / "processor_config.json"
    values = json.loads(processor.read_text()) | {"compression_ratio": settings["compression_ratio"]}
    processor.write_text(json.dumps(values))
    return Reference(directory)


@torch.no_grad()
def hidden_states(model: torch.nn.Module, **inputs) -> list[np.ndarray]:
    """What goes from part to part: after the embedding, every layer, the final norm and, where there is one, the head."""
    tower, head = getattr(model, "model", model), getattr(model, "lm_head", None)
    states: list[np.ndarray] = []

    def record(_module, _inputs, output):
        states.append((output[0] if isinstance(output, tuple) else output).float().numpy())

    parts = [tower.embed_tokens, *tower.layers, tower.norm, *([] if head is None else [head])]
    hooks = [part.register_forward_hook(record) for part in parts]
    model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return states
