"""Settings of a published checkpoint, read into a ModelConfig and written from one.

config.json holds a TransformerConfig; model_config.json and processor_config.json hold a
CompressionConfig and an AdapterConfig.
"""

import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convert.hf.files import Published, read_json
from convert.hf.mapping import ConversionError
from lclm_jax.config import AdapterConfig, CompressionConfig, ModelConfig, TransformerConfig
from lclm_jax.config.settings import field_hints, parse
from lclm_jax.data.chat.stop_tokens import find_turn_end_id
from lclm_jax.data.text.tokenizer import MEMORY_END, MEMORY_SLOT, MEMORY_START, PAD, Tokenizer
from lclm_jax.errors import ConfigError

# Field of config.json -> field of TransformerConfig, but for rope theta, which has two spellings.
TOWER_FIELDS = {
    "vocab_size": "vocab",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "mlp",
    "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "max_positions",
    "tie_word_embeddings": "tied",
    "initializer_range": "initializer_range",
}
# Defaults of transformers for absent fields, by model_type; shapes have none, every file has them.
DEFAULTS = {
    "qwen3": {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "initializer_range": None,
        "rope_theta": 1e4,
    },
    "llama": {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "initializer_range": None,
        "rope_theta": 1e4,
    },
}
# Settings with a single value that TransformerConfig supports.
TOWER_CONSTANTS = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
QK_NORM = {"qwen3": True, "llama": False}  # by model_type
ARCHITECTURES = {  # by part and model_type
    ("decoder", "qwen3"): "Qwen3ForCausalLM",
    ("encoder", "qwen3"): "Qwen3Model",
    ("decoder", "llama"): "LlamaForCausalLM",
    ("encoder", "llama"): "LlamaModel",
}
OLDER_KEYS = {"chunk_size": "compression_ratio"}
OLDER_POOLINGS = {"summary_mean": "mean", "summary_concat": "concat", "summary": "eos"}
MEMORY_SETTINGS = {
    "use_memory_wrapping": True,
    "memory_placeholder": MEMORY_SLOT,
    "memory_start": MEMORY_START,
    "memory_end": MEMORY_END,
}
MASKS = {"causal": True, "bidirectional": False}
ADAPTERS = ("mlp", "mlp_attn", "attn_mlp")


def read_model_config(published: Published, dtype: str) -> ModelConfig:
    """Read the config of a published checkpoint.

    `dtype` is that of the stored weights, in the spelling of safetensors.
    """
    compression, adapter, causal = read_compression(published.settings, published.source.name)
    return ModelConfig(
        encoder=read_tower(published.encoder / "config.json", causal),
        decoder=read_tower(published.decoder / "config.json", causal=True),
        compression=compression,
        adapter=adapter,
        dtype="float32" if dtype == "F32" else "bfloat16",
    )


def read_tower(file: Path, causal: bool) -> TransformerConfig:
    """Read a tower from its config.json, with the defaults of transformers for absent fields.

    Raises ConversionError naming every field that is missing, out of range, or not supported.
    """
    values = read_json(file)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in DEFAULTS:
        raise ConversionError(
            f"{file}: model_type must be one of {', '.join(DEFAULTS)}, got {reprlib.repr(kind)}"
        )
    values = _with_defaults(values, kind)
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}  # transformers' order
    problems = [
        *_check_constants(values, causal),
        *_check_layers(values),
        *_check_rope(rope, values),
    ]
    theta = rope.get("rope_theta", values["rope_theta"]) if isinstance(rope, dict) else None
    parsed, wrong = _parse_fields(
        values | {"rope_theta": theta}, TOWER_FIELDS | {"rope_theta": "rope_theta"}
    )
    if problems := [*wrong, *problems]:
        raise ConversionError(f"{file}: {'; '.join(problems)}")
    try:
        return TransformerConfig(**parsed, qk_norm=QK_NORM[kind], causal=causal)
    except ConfigError as error:
        raise ConversionError(f"{file}: {error}") from error


def _with_defaults(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Complete the settings as transformers does."""
    completed = {**DEFAULTS[kind], **values}
    heads, width = completed.get("num_attention_heads"), completed.get("hidden_size")
    if completed.get("num_key_value_heads") is None:
        completed["num_key_value_heads"] = heads
    if kind == "llama" and completed.get("head_dim") is None and type(heads) is type(width) is int:
        completed["head_dim"] = width // heads if heads else 0
    return completed


def _parse_fields(
    values: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Return values by field of TransformerConfig, and a line for every value that is wrong."""
    parsed, problems, hints = {}, [], field_hints(TransformerConfig)
    for key, field in names.items():
        if key not in values:
            problems.append(f"{key} is missing")
            continue
        try:
            parsed[field] = parse(hints[field], values[key], key)
        except ConfigError as error:
            problems.append(str(error))
    return parsed, problems


def _check_constants(values: Mapping[str, Any], causal: bool) -> Iterator[str]:
    """Yield problems of settings of which a TransformerConfig supports a single value."""
    constants = {"attention_bias": (False,), "mlp_bias": (False,), "hidden_act": ("silu", "swish")}
    if causal:
        constants |= {"is_causal": (True,), "use_bidirectional_attention": (False, None)}
    for key, allowed in constants.items():
        value = values.get(key, allowed[0])
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            yield f"{key} must be {allowed[0]!r}, got {reprlib.repr(value)}"
    if values.get("quantization_config"):
        yield "quantization_config is not supported; convert weights of 16 or 32 bits"


def _check_layers(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield problems of layers that do not attend to everything."""
    kinds, layers = values.get("layer_types"), values.get("num_hidden_layers")
    if kinds is not None:
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            yield f"layer_types must all be 'full_attention', got {reprlib.repr(kinds)}"
        return
    switch = values.get("use_sliding_window", False)
    first = values.get("max_window_layers", 28)
    full = type(first) is type(layers) is int and first >= layers
    if switch is not False and values.get("sliding_window", 4096) is not None and not full:
        yield f"use_sliding_window must be False, got {reprlib.repr(switch)}"


def _check_rope(rope: Any, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield problems of rotary positions that are scaled, partial, or of several kinds."""
    if not isinstance(rope, dict):
        yield f"rope_parameters must be an object, got {reprlib.repr(rope)}"
        return
    if nested := [key for key, value in rope.items() if isinstance(value, dict)]:
        yield f"rotary parameters by kind of layer are not supported, got {', '.join(nested)}"
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling != "default" and not (scaling == "linear" and rope.get("factor") == 1):
        yield f"rotary scaling is not supported, got {reprlib.repr(scaling)}"
    part = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if part is not None and part != 1:
        yield f"partial_rotary_factor must be 1, got {reprlib.repr(part)}"


def write_tower(
    config: TransformerConfig, part: str, dtype: str, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """Return the config.json of a tower for transformers.

    It has both spellings of rope theta, for versions before and after 5.
    """
    kind = next(kind for kind, qk_norm in QK_NORM.items() if qk_norm == config.qk_norm)
    fields = {key: getattr(config, field) for key, field in TOWER_FIELDS.items()}
    return {
        "architectures": [ARCHITECTURES[part, kind]],
        "model_type": kind,
        **TOWER_CONSTANTS,
        **{key: value for key, value in fields.items() if value is not None},
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "torch_dtype": dtype,
        "attention_dropout": 0.0,
        "use_cache": True,
        **(special_ids(tokenizer) if tokenizer else {}),
    }


def write_generation(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return generation_config.json: special tokens, from the model's own file if it had one.

    It has no settings for sampling.
    """
    if not tokenizer.generation:
        return {"_from_model_config": True, **special_ids(tokenizer)}
    pads = {key: ids for key, ids in tokenizer.generation.items() if key == "pad_token_id"}
    return special_ids(tokenizer) | pads


def special_ids(tokenizer: Tokenizer) -> dict[str, int | list[int] | None]:
    """Return the ids of the tokens that begin and end a text; None where there is no such token.

    They are from the model's own generation_config.json or, without one, from its special tokens.
    There is no pad_token_id: torch would not train that row of the embedding table.
    """
    special = (tokenizer.special.get(role, PAD) for role in ("bos_token", "eos_token"))
    bos, eos = (tokenizer.control.get(name) for name in special)
    ends = [end for end in dict.fromkeys([find_turn_end_id(tokenizer), eos]) if end is not None]
    implied = {
        "bos_token_id": bos,
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
    }
    return implied | {key: ids for key, ids in tokenizer.generation.items() if key in implied}


def read_compression(
    directory: Path, name: str = ""
) -> tuple[CompressionConfig, AdapterConfig, bool]:
    """Read compression, adapter and the encoder's causality from model_config.json.

    processor_config.json, if present, must agree. The list `compression_ratios` is an extension of
    the format, which has one ratio. Older keys are read; a window that is missing in the file is
    read from a `bst<W>` in `name`, that of the checkpoint. Raises ConversionError for settings that
    are missing, contradictory or not supported.
    """
    file = directory / "model_config.json"
    values = rename_older_keys(read_json(file))
    if values.get("encoder_window_size") is None and (match := re.search(r"bst(\d+)", name)):
        values["encoder_window_size"] = int(match[1])
    required = ("compression_ratio", "encoder_window_size", "pooling", "encoder_mask_type")
    problems = [f"{key} is missing" for key in required if values.get(key) is None]
    for key, allowed in (
        ("pooling", ("mean", "eos", "concat")),
        ("encoder_mask_type", tuple(MASKS)),
    ):
        if values.get(key) is not None and values[key] not in allowed:
            problems.append(f"{key} must be one of {', '.join(allowed)}, got {values[key]!r}")
    ratios = values.get("compression_ratios", [])
    if not (isinstance(ratios, list) and all(type(ratio) is int for ratio in ratios)):
        problems.append(f"compression_ratios must be a list of whole numbers, got {ratios!r}")
    kind = values.get("adapter_type", "mlp")
    if kind not in ADAPTERS:
        problems.append(f"adapter_type must be one of {', '.join(ADAPTERS)}, got {kind!r}")
    problems += _check_processor(
        directory / "processor_config.json", values.get("compression_ratio")
    )
    if problems:
        raise ConversionError(f"{file}: {'; '.join(problems)}")
    try:
        compression = CompressionConfig(
            ratio=values["compression_ratio"],
            window=values["encoder_window_size"],
            pooling=values["pooling"],
            overlap=values.get("boundary_overlap", 0),
            ratios=tuple(ratios),
        )
        layers = 1 if kind == "mlp" else values.get("num_adapter_layers", 1)
        adapter = AdapterConfig(kind, layers)
    except ConfigError as error:
        raise ConversionError(f"{file}: {error}") from error
    return compression, adapter, MASKS[values["encoder_mask_type"]]


def rename_older_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same settings under their current names."""
    renamed = {OLDER_KEYS.get(key, key): value for key, value in values.items()}
    for older, pooling in OLDER_POOLINGS.items():
        if renamed.get(older) is True or renamed.get("pooling") == older:
            renamed["pooling"] = pooling
    return renamed


def _check_processor(file: Path, ratio: int | None) -> list[str]:
    """Return contradictions of processor_config.json to model_config.json and the prompt layout."""
    if not file.exists():
        return []
    expected = {**MEMORY_SETTINGS, "compression_ratio": ratio}
    values = {OLDER_KEYS.get(key, key): value for key, value in read_json(file).items()}
    return [
        f"{file.name} has {key}={values[key]!r}, expected {value!r}"
        for key, value in expected.items()
        if values.get(key, value) != value
    ]


def write_compression(config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return model_config.json and processor_config.json."""
    compression = config.compression
    model = {
        "compression_ratio": compression.ratio,
        "encoder_window_size": compression.window,
        "pooling": compression.pooling,
        "encoder_mask_type": next(
            name for name, causal in MASKS.items() if causal == config.encoder.causal
        ),
        "boundary_overlap": compression.overlap,
        "adapter_type": config.adapter.kind,
    }
    if compression.ratios:
        model["compression_ratios"] = list(compression.ratios)
    if config.adapter.attention:
        model["num_adapter_layers"] = config.adapter.layers
    # The longest text whose latents the decoder has positions for.
    longest = config.decoder.max_positions * compression.ratio
    return model, {
        "compression_ratio": compression.ratio,
        "max_memory_length": longest,
        **MEMORY_SETTINGS,
    }
