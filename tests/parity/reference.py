"""The reference of the parity tests: random models of transformers, saved as published models are.

Nothing here uses lclm_jax, nor does the restatement of windows, pooling and adapter in
convert/verify/torch_reference.py.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from convert.verify.torch_reference import Adapter, Reference
from tests.support.paths import GOLDEN

KINDS = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, Qwen3Model),
    "llama": (LlamaConfig, LlamaForCausalLM, LlamaModel),
}
SETTINGS = {
    "compression_ratio": 4,
    "encoder_window_size": 16,
    "pooling": "mean",
    "encoder_mask_type": "causal",
    "boundary_overlap": 0,
    "adapter_type": "mlp",
}
torch.set_num_threads(
    1
)  # the models are tiny, and threads that wait for each other cost more than they do


def make_tower(
    seed: int, kind: str = "qwen3", head: bool = True, theta: float = 1e6, **shape
) -> torch.nn.Module:
    """A random transformers model in float32 with eager attention.

    `shape` has fields of its config.
    """
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
    """Random weights: matrices keep the scale of their input, norms and biases are not defaults."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.uniform_(
                *((-0.3, 0.3) if name.endswith("bias") else (0.5, 1.5)), generator=generator
            )
        else:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)


def publish(
    directory: Path,
    decoder: torch.nn.Module,
    encoder: torch.nn.Module,
    settings: dict[str, Any] = SETTINGS,
    **saving,
) -> Reference:
    """Writes the published layout as its owners do, with save_pretrained, and a random adapter."""
    for part, model in (("decoder", decoder), ("encoder", encoder)):
        model.save_pretrained(directory / part, **saving)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(GOLDEN / "base" / part / name, directory / part / name)
    adapter = Adapter(settings, encoder.config, decoder.config)
    randomise(adapter, seed=7)
    (directory / "adapter").mkdir()
    save_file(
        adapter.state_dict(),
        directory / "adapter" / "adapter.safetensors",
        metadata={"format": "pt"},
    )
    (directory / "model_config.json").write_text(json.dumps(settings), encoding="utf-8")
    shutil.copy(GOLDEN / "cases" / "c03_mean_causal_mlp_r4" / "processor_config.json", directory)
    processor = directory / "processor_config.json"
    values = json.loads(processor.read_text(encoding="utf-8")) | {
        "compression_ratio": settings["compression_ratio"]
    }
    processor.write_text(json.dumps(values), encoding="utf-8")
    return Reference(directory)


@torch.no_grad()
def hidden_states(model: torch.nn.Module, **inputs) -> list[np.ndarray]:
    """Hidden states after the embedding, every layer, the final norm and the head, if any."""
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
