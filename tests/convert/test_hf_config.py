"""Meaning of published config.json files, and the settings that are refused by name."""

import json
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig, Qwen3Config

from convert.from_hf import open_hf
from convert.hf.config import read_compression, read_tower
from convert.hf.files import list_file
from convert.hf.mapping import ConversionError
from lclm_jax.config import TransformerConfig

QWEN3 = {
    "model_type": "qwen3",
    "hidden_act": "silu",
    "attention_bias": False,
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
    "use_sliding_window": False,
    "sliding_window": None,
}
LLAMA = {key: QWEN3[key] for key in QWEN3 if key != "head_dim"} | {"model_type": "llama"}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}


@pytest.fixture
def read(tmp_path):
    """`read(values, causal=True)` is the tower of a config.json that holds these values."""

    def tower(values, causal=True) -> TransformerConfig:
        (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
        return read_tower(tmp_path / "config.json", causal)

    return tower


def as_transformers(values) -> dict:
    """The fields of our config as transformers fills them."""
    kind = {"qwen3": Qwen3Config, "llama": LlamaConfig}[values["model_type"]]
    config = kind.from_dict(json.loads(json.dumps(values)))
    return {
        "vocab": config.vocab_size,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "mlp": config.intermediate_size,
        "rope_theta": config.rope_parameters["rope_theta"],
        "norm_eps": config.rms_norm_eps,
        "tied": config.tie_word_embeddings,
        "max_positions": config.max_position_embeddings,
    }


OPTIONAL = (
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "tie_word_embeddings",
    "rope_theta",
    "hidden_act",
    "attention_bias",
    "use_sliding_window",
)
CHANGES = {
    "rope_parameters and theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}},
    "rope_scaling before rope_parameters": {
        "rope_scaling": {"rope_type": "default"},
        "rope_parameters": YARN,
    },
    "linear scaling by 1": {"rope_scaling": {"type": "linear", "factor": 1.0}},
    "no scaling": {"rope_scaling": None, "rope_parameters": {}},
    "kv heads of null": {"num_key_value_heads": None},
    "swish": {"hidden_act": "swish"},
    "dropout in training": {"attention_dropout": 0.1, "pretraining_tp": 2},
    "a window of no layer": {"use_sliding_window": True, "sliding_window": None},
    "a window of later layers": {"use_sliding_window": True, "max_window_layers": 1},
    "layers of one kind": {"layer_types": ["full_attention"]},
}


@pytest.mark.parametrize("base", [QWEN3, LLAMA], ids=["qwen3", "llama"])
@pytest.mark.parametrize("absent", OPTIONAL)
def test_an_absent_key_is_what_transformers_takes_for_it(base, absent, read):
    values = {key: value for key, value in base.items() if key != absent}
    expected = as_transformers(values)
    if expected["heads"] % expected["kv_heads"]:
        with pytest.raises(ConversionError, match="heads must be a multiple of kv_heads"):
            read(values)
        return
    tower = read(values)
    assert {name: getattr(tower, name) for name in expected} == expected


@pytest.mark.parametrize("base", [QWEN3, LLAMA], ids=["qwen3", "llama"])
@pytest.mark.parametrize("changed", CHANGES)
def test_settings_mean_what_they_mean_to_transformers(base, changed, read):
    values = base | CHANGES[changed]
    expected = as_transformers(values)
    tower = read(values)
    assert {name: getattr(tower, name) for name in expected} == expected


@pytest.mark.parametrize("kind", [Qwen3Config, LlamaConfig])
@pytest.mark.parametrize("tied", [True, False])
def test_what_transformers_saves_is_read(kind, tied, read):
    sizes = {key: QWEN3[key] for key in ("vocab_size", "hidden_size", "intermediate_size")}
    config = kind(**sizes, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=tied)
    values = json.loads(config.to_json_string(use_diff=False))
    values |= {"num_key_value_heads": 2}
    assert read(values).tied is tied


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number, above 0, got nan"),
        ({"rms_norm_eps": None}, "rms_norm_eps must be a finite number, above 0, got None"),
        ({"rope_theta": 0}, "rope_theta must be a finite number, above 0, got 0"),
        ({"rope_theta": "1e6"}, "rope_theta must be a finite number, above 0, got '1e6'"),
        ({"max_position_embeddings": -5}, "max_position_embeddings must be .* from 1 .* got -5"),
        ({"num_attention_heads": 2.0}, "num_attention_heads must be an integer.*got 2.0"),
        ({"vocab_size": True}, "vocab_size must be an integer.*got True"),
        ({"head_dim": None}, "head_dim must be an integer.*got None"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "heads=3, kv_heads=2"),
        ({"num_attention_heads": 0, "num_key_value_heads": 0}, "num_attention_heads must be"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, got 1"),
        ({"rope_parameters": YARN}, "rotary scaling is not supported, got 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 1.0}}, "scaling is not supported"),
        ({"rope_scaling": 4}, "rope_parameters must be an object, got 4"),
        ({"rope_parameters": {"full_attention": YARN}}, "by kind of layer.*got full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1, got 0.5"),
        ({"layer_types": ["sliding_attention"]}, "layer_types must all be 'full_attention'"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "use_sliding"),
        ({"attention_bias": True}, "attention_bias must be False, got True"),
        ({"mlp_bias": True}, "mlp_bias must be False, got True"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"is_causal": False}, "is_causal must be True, got False"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is not supported"),
        ({"model_type": "qwen3_vl"}, "model_type must be one of qwen3, llama, got 'qwen3_vl'"),
        ({"model_type": ["qwen3"]}, "model_type must be one of"),
    ],
)
def test_a_setting_we_cannot_convert_is_named(changes, message, read):
    with pytest.raises(ConversionError, match=rf"config.json: .*{message}"):
        read(QWEN3 | changes)


def test_a_bidirectional_encoder_need_not_call_itself_causal(read):
    assert not read(QWEN3 | {"is_causal": False}, causal=False).causal


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = (*QWEN3, "rope_scaling", "rope_parameters", "layer_types", "max_window_layers", "is_causal")
FUZZ = settings(max_examples=int(os.environ.get("LCLM_FUZZ", "50")), deadline=None)


@pytest.mark.fuzz
@FUZZ
@given(st.sampled_from([QWEN3, LLAMA]), st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3))
def test_any_config_json_is_a_tower_or_a_conversion_error(tmp_path_factory, base, changes):
    file = tmp_path_factory.mktemp("tower") / "config.json"
    file.write_text(json.dumps(base | changes), encoding="utf-8")
    try:
        assert isinstance(read_tower(file, causal=True), TransformerConfig)
    except ConversionError as error:
        assert "config.json: " in str(error)


@pytest.mark.fuzz
@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(
            ["compression_ratio", "encoder_window_size", "pooling", "encoder_mask_type"]
            + ["boundary_overlap", "adapter_type", "num_adapter_layers", "compression_ratios"]
        ),
        JSON,
        max_size=3,
    )
)
def test_any_model_config_json_is_a_compression_or_a_conversion_error(tmp_path_factory, changes):
    directory = tmp_path_factory.mktemp("model")
    values = {"compression_ratio": 4, "encoder_window_size": 32, "pooling": "mean"}
    values |= {"encoder_mask_type": "causal", **changes}
    (directory / "model_config.json").write_text(json.dumps(values), encoding="utf-8")
    try:
        read_compression(directory)
    except ConversionError as error:
        assert "model_config.json" in str(error)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\udcff", "[]", ""])
def test_a_file_that_is_not_json_is_named(text, tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConversionError, match="config.json"):
        read_tower(file, causal=True)


# --- Weights ---


def change_tensors(file, change):
    tensors = load_file(file)
    save_file(change(tensors), file)


def frequencies(config, theta=None, dtype=np.float32):
    half = config.head_dim // 2
    return ((theta or config.rope_theta) ** (-np.arange(half) / half)).astype(dtype)


ROTARY = "model.layers.0.self_attn.rotary_emb.inv_freq"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("key", [ROTARY, "model.rotary_emb.inv_freq"])
def test_rotary_frequencies_of_older_releases_are_read_over(key, dtype, published):
    source = published()
    expected = open_hf(source)
    stored = {key: frequencies(expected.config.decoder, dtype=dtype)}
    change_tensors(source / "decoder" / "model.safetensors", lambda tensors: tensors | stored)
    assert open_hf(source).sources.keys() == expected.sources.keys()


def test_rotary_frequencies_of_another_base_are_refused(published):
    source = published()
    decoder = open_hf(source).config.decoder
    stored = {ROTARY: frequencies(decoder, theta=2 * decoder.rope_theta)}
    change_tensors(source / "decoder" / "model.safetensors", lambda tensors: tensors | stored)
    with pytest.raises(ConversionError, match=r"inv_freq: differs from the frequencies of rope_th"):
        open_hf(source)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module.", "model."])
def test_names_of_wrappers_are_taken_off(wrapper, published):
    source = published()
    expected = open_hf(source).sources

    def wrapped(tensors):
        return {f"{wrapper}{key}": tensor for key, tensor in tensors.items()}

    for part in ("decoder", "encoder"):
        change_tensors(source / part / "model.safetensors", wrapped)
    assert open_hf(source).sources.keys() == expected.keys()


def test_a_decoder_may_be_saved_without_its_head_around_it(published):
    source = published()
    expected = open_hf(source).sources
    change_tensors(
        source / "decoder" / "model.safetensors",
        lambda tensors: {key.removeprefix("model."): tensor for key, tensor in tensors.items()},
    )
    assert open_hf(source).sources.keys() == expected.keys()


def test_one_tensor_under_two_names_is_refused(published):
    source = published()
    change_tensors(
        source / "decoder" / "model.safetensors",
        lambda tensors: tensors | {"module.model.norm.weight": tensors["model.norm.weight"]},
    )
    with pytest.raises(ConversionError, match=r"decoder model.norm.weight: stored 2 times"):
        open_hf(source)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.int8, np.uint16, np.bool_])
def test_a_dtype_that_holds_no_weights_is_named(dtype, published):
    source = published()

    def cast(tensors):
        return tensors | {"model.norm.weight": tensors["model.norm.weight"].astype(dtype)}

    change_tensors(source / "decoder" / "model.safetensors", cast)
    with pytest.raises(ConversionError, match=r"model.norm.weight: expected dtype F32, BF16, F16"):
        open_hf(source)


@pytest.mark.parametrize("layers", [10**6, 2**31 - 1])
def test_more_layers_than_tensors_are_refused_at_once(layers, published):
    source = published()
    file = source / "encoder" / "config.json"
    values = json.loads(file.read_text(encoding="utf-8")) | {"num_hidden_layers": layers}
    values.pop("layer_types", None)
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ConversionError, match=rf"the encoder say {layers} layers, its files hold"):
        open_hf(source)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.fuzz
@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__"]),
        JSON | st.dictionaries(st.sampled_from(list(ENTRY)), JSON, max_size=3).map(ENTRY.__or__),
        max_size=3,
    ),
    st.binary(max_size=16),
    st.integers(-8, 8),
)
def test_any_header_of_weights_is_a_list_of_tensors_or_a_conversion_error(
    tmp_path_factory, header, body, difference
):
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", max(0, len(text) + difference)) + text + body)
    try:
        assert all(tensor.file == file for tensor in list_file(file))
    except ConversionError as error:
        assert "model.safetensors" in str(error)
