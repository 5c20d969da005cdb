"""Both towers against transformers' Qwen3 and Llama, layer by layer, on random models."""

import pytest

torch = pytest.importorskip("torch")

import json
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from reference import Reference, hidden_states, make_tower, publish
from transformers.models.qwen3.modeling_qwen3 import Qwen3Config, Qwen3RotaryEmbedding

from convert.from_hf import from_hf, read_hf
from convert.hf.mapping import ConversionError
from lclm_jax.batch import Places
from lclm_jax.config import ModelConfig, TransformerConfig
from lclm_jax.inference.language_model import load
from lclm_jax.model.layers import RMSNorm, rotate
from lclm_jax.model.lclm import LCLM, apply, cast
from lclm_jax.model.transformer import Block, Transformer
from lclm_jax.typing import Params

ATOL = 2e-5
LENGTH = 24


def shape(
    width: int,
    layers: int,
    heads: tuple[int, int],
    head_dim: int,
    mlp: int,
    vocab: int = 390,
    **other,
) -> dict:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": head_dim,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
        **other,
    }


# Decoder and encoder of each model; head_dim is mostly not width / heads.
MODELS = {
    "tied": (shape(48, 2, (4, 2), 16, 80), shape(40, 3, (4, 2), 12, 64)),
    "untied": (
        shape(40, 1, (6, 6), 8, 72, theta=1e4, rms_norm_eps=1e-3, tie_word_embeddings=False),
        shape(24, 1, (3, 1), 8, 40, theta=5e6, rms_norm_eps=1e-2),
    ),
    "deep": (
        shape(40, 4, (5, 1), 10, 96, vocab=417, theta=5e6),
        shape(32, 4, (2, 2), 16, 48, theta=1e5),
    ),
    "llama": (
        shape(48, 3, (4, 2), 12, 80, kind="llama", theta=1e5, rms_norm_eps=1e-5),
        shape(40, 2, (5, 5), 16, 64, kind="llama", theta=1e4),
    ),
    "mixed": (
        shape(32, 2, (4, 1), 16, 64, kind="llama", theta=5e5, tie_word_embeddings=False),
        shape(24, 2, (2, 1), 16, 48),
    ),
}


def make_towers(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    decoder, encoder = MODELS[name]
    return make_tower(1, **decoder), make_tower(2, head=False, **encoder)


@dataclass(frozen=True)
class Pair:
    """One published model as transformers and as we read it."""

    reference: Reference
    config: ModelConfig
    params: Params


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory) -> Pair:
    reference = publish(
        tmp_path_factory.mktemp(request.param) / "published", *make_towers(request.param)
    )
    config, params = read_hf(reference.directory)
    return Pair(reference, config, params)


# --- Our tower, one public module after the other ---


@partial(jax.jit, static_argnames="config")
def run_layer(config: TransformerConfig, params: Params, x, places: Places):
    return Block(config).apply({"params": params}, x, places, None, None)[0]


def our_states(
    config: TransformerConfig, params: Params, tokens: np.ndarray, places: Places
) -> list[np.ndarray]:
    """Return the states after the embedding, after every layer, and after the final norm."""
    states = [Transformer(config).apply({"params": params}, tokens, method=Transformer.embed)]
    for i in range(config.layers):
        layer = jax.tree.map(lambda stacked, i=i: stacked[i], params["layers"])
        states.append(run_layer(config, layer, states[-1], places))
    states.append(RMSNorm(config.norm_eps).apply({"params": params["norm"]}, states[-1]))
    return [np.asarray(state, np.float32) for state in states]


def decoder_states(
    config: ModelConfig, params: Params, tokens: np.ndarray, places: Places
) -> list[np.ndarray]:
    """Return `our_states` of the decoder and the logits, and the same from the model as a whole."""
    states = our_states(config.decoder, params["decoder"], tokens, places)
    hidden = jnp.asarray(states[-1], params["decoder"]["table"].dtype)
    logits = np.asarray(apply(config, params, hidden, method=LCLM.logits))
    nothing = np.zeros((len(tokens), 1, config.decoder.width), hidden.dtype)
    whole, _ = apply(
        config, params, tokens, np.full_like(tokens, -1), nothing, places, method=LCLM.decode
    )
    real = np.asarray(places.segments) > 0
    np.testing.assert_allclose(
        np.asarray(whole, np.float32)[real],
        states[-1][real],
        atol=1e-5 if hidden.dtype == "float32" else 0.1,
    )
    return [*states, logits]


def encoder_states(
    config: ModelConfig, params: Params, tokens: np.ndarray, places: Places
) -> list[np.ndarray]:
    return our_states(config.encoder, params["encoder"], tokens, places)


# --- One batch in three layouts, as each side takes it ---


@dataclass(frozen=True)
class Layout:
    """Three rows of tokens: their places for us, positions and mask for torch."""

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    mask: str  # what torch is given: nothing, a row of zeros and ones, or the whole matrix

    @property
    def places(self) -> Places:
        return Places(self.segments, self.positions)

    def torch_inputs(self, causal: bool = True) -> dict[str, torch.Tensor]:
        inputs = {
            "input_ids": torch.from_numpy(self.tokens).long(),
            "position_ids": torch.from_numpy(self.positions).long(),
        }
        if not causal or self.mask == "matrix":
            inputs["attention_mask"] = self._matrix(causal)
        elif self.mask == "row":
            inputs["attention_mask"] = torch.from_numpy(self.segments).long()
        return inputs

    def _matrix(self, causal: bool) -> torch.Tensor:
        """Zero where a token may look, else the lowest number; a pad looks at pads."""
        allowed = self.segments[:, :, None] == self.segments[:, None, :]
        if causal:
            allowed = allowed & np.tri(LENGTH, dtype=bool)
        return torch.where(torch.from_numpy(allowed)[:, None], 0.0, torch.finfo(torch.float32).min)


def make_layout(name: str) -> Layout:
    tokens = np.random.default_rng(3).integers(0, 380, (3, LENGTH), dtype=np.int32)
    columns = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    if name == "plain":
        return Layout(tokens, np.ones_like(tokens), columns.copy(), "none")
    if name == "left_padded":
        pads = np.array([[0], [7], [LENGTH - 1]], np.int32)
        return Layout(
            tokens, (columns >= pads).astype(np.int32), np.maximum(columns - pads, 0), "row"
        )
    documents = [
        [LENGTH],
        [5, 12, LENGTH - 17],
        [1, 1, 9, 10, 3],
    ]  # lengths; what is left of a row is pads
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, lengths in enumerate(documents):
        joined = np.concatenate([np.arange(length) for length in lengths])
        positions[row, : len(joined)] = joined
        segments[row, : len(joined)] = np.repeat(np.arange(len(lengths)) + 1, lengths)
    segments[2, -3:] = 0
    return Layout(
        tokens, segments, positions, {"packed": "none", "packed_by_matrix": "matrix"}[name]
    )


LAYOUTS = ("plain", "left_padded", "packed", "packed_by_matrix")


def assert_states_equal(
    states: list[np.ndarray], expected: list[np.ndarray], layout: Layout, atol: float = ATOL
):
    assert len(states) == len(expected)
    real = layout.segments > 0
    for depth, (mine, yours) in enumerate(zip(states, expected, strict=True)):
        np.testing.assert_allclose(
            mine[real], yours[real], atol=atol, rtol=0, err_msg=f"state {depth} of {len(states)}"
        )


# --- Float32 ---


@pytest.mark.parametrize("name", LAYOUTS)
def test_decoder_layer_by_layer(pair, name):
    layout = make_layout(name)
    expected = hidden_states(pair.reference.decoder, **layout.torch_inputs())
    assert_states_equal(
        decoder_states(pair.config, pair.params, layout.tokens, layout.places), expected, layout
    )


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_encoder_layer_by_layer(pair, name, causal):
    layout = make_layout(name)
    layout = replace(layout, tokens=layout.tokens % 380)
    config = replace(pair.config, encoder=replace(pair.config.encoder, causal=causal))
    expected = hidden_states(pair.reference.encoder, **layout.torch_inputs(causal))
    assert_states_equal(
        encoder_states(config, pair.params, layout.tokens, layout.places), expected, layout
    )


def test_checkpoint_holds_what_the_converter_reads(tmp_path):
    """`from_hf` and `load` give the parameters of `read_hf`, from shards and through Orbax."""
    reference = publish(tmp_path / "published", *make_towers("untied"), max_shard_size="20KB")
    assert (reference.directory / "decoder" / "model.safetensors.index.json").exists()
    config, params = read_hf(reference.directory)
    from_hf(reference.directory, tmp_path / "ours")
    model = load(tmp_path / "ours")
    assert model.config == config
    jax.tree.map(np.testing.assert_array_equal, model.params, cast(params, config.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_published_in_half_precision(tmp_path, dtype):
    """Computed in float32 on both sides from the same rounded weights."""
    reference = publish(tmp_path / "published", *(tower.to(dtype) for tower in make_towers("tied")))
    config, params = read_hf(reference.directory)
    layout = make_layout("plain")
    expected = hidden_states(reference.decoder, **layout.torch_inputs())
    assert_states_equal(
        decoder_states(config, params, layout.tokens, layout.places), expected, layout
    )


SCALED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# Changes to a decoder's config.json that alter what transformers computes from the same weights.
CHANGES = {
    "eps": {"rms_norm_eps": 1e-2},
    "theta": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
    "theta-at-the-top": {"rope_parameters": None, "rope_theta": 1e4},
    "theta-in-both": {"rope_theta": 1e4},
    "activation": {"hidden_act": "gelu"},
    "scaled": {"rope_parameters": {"rope_theta": 1e6, **SCALED}},
    "scaled-older-key": {"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": SCALED},
    "scaled-in-both": {"rope_scaling": SCALED},
    "scaled-older-name": {"rope_parameters": {"rope_theta": 1e6, "type": "linear", "factor": 4.0}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_config_is_honoured_or_refused(name, tmp_path):
    """Never a model that silently computes something else than transformers would."""
    reference = publish(tmp_path / "published", *make_towers("tied"))
    file = reference.directory / "decoder" / "config.json"
    values = {**json.loads(file.read_text(encoding="utf-8")), **CHANGES[name]}
    file.write_text(
        json.dumps({key: value for key, value in values.items() if value is not None}),
        encoding="utf-8",
    )
    layout = make_layout("plain")
    expected = hidden_states(reference.decoder, **layout.torch_inputs())
    try:
        config, params = read_hf(reference.directory)
    except ConversionError:
        return
    assert_states_equal(
        decoder_states(config, params, layout.tokens, layout.places), expected, layout
    )


# --- Rotary positions ---


def torch_rotary(config: Qwen3Config, rounded: bool = False) -> Qwen3RotaryEmbedding:
    rotary = Qwen3RotaryEmbedding(config)
    if rounded:
        rotary.inv_freq = rotary.inv_freq.bfloat16().float()
    return rotary


def rotary_error(
    config: Qwen3Config, positions: np.ndarray, torch_rounds: bool, jax_rounds: bool
) -> float:
    """Largest difference of any cosine or sine; the arguments name the side that rounds."""
    half = config.head_dim // 2
    cos, sin = torch_rotary(config, torch_rounds)(
        torch.zeros(1), torch.from_numpy(positions)[None].long()
    )
    turned = jnp.concatenate(
        [jnp.ones((1, len(positions), 1, half)), jnp.zeros((1, len(positions), 1, half))], axis=-1
    )
    mine = rotate(turned, positions[None], config.rope_parameters["rope_theta"], jax_rounds)[
        0, :, 0
    ]
    expected = np.concatenate([cos[0, :, :half].numpy(), sin[0, :, :half].numpy()], axis=-1)
    return float(np.abs(np.asarray(mine) - expected).max())


@pytest.mark.parametrize("rounded", [False, True], ids=["fp32", "rounded"])
@pytest.mark.parametrize("theta", [1e4, 1e6, 5e6])
def test_rotary_angles_of_published_shapes(theta, rounded):
    """Every angle up to 32,768 at the published head_dim, where the two kinds differ most."""
    config = Qwen3Config(
        head_dim=128, rope_parameters={"rope_theta": theta, "rope_type": "default"}
    )
    positions = np.arange(32768, dtype=np.int32)
    assert rotary_error(config, positions, rounded, rounded) < 4e-3
    assert rotary_error(config, positions, rounded, not rounded) > 1.0


def with_frequencies(model: torch.nn.Module, rounded: bool) -> torch.nn.Module:
    """A copy of the model with float32 rotary frequencies, optionally rounded to bfloat16."""
    copied = deepcopy(model)
    exact = model.model.rotary_emb.inv_freq
    copied.model.rotary_emb.inv_freq = exact.bfloat16().float() if rounded else exact.clone()
    return copied


@pytest.mark.parametrize("rounded", [False, True], ids=["fp32", "rounded"])
def test_rounded_rope_layer_by_layer(pair, rounded):
    """Tokens far apart, where the original's bfloat16 frequencies show."""
    far = np.tile(np.arange(LENGTH, dtype=np.int32) * 97, (3, 1))
    layout = replace(make_layout("plain"), positions=far, mask="row")
    expected = hidden_states(
        with_frequencies(pair.reference.decoder, rounded), **layout.torch_inputs()
    )
    same, other = (
        replace(pair.config, decoder=replace(pair.config.decoder, rounded_rope=switch))
        for switch in (rounded, not rounded)
    )
    assert_states_equal(
        decoder_states(same, pair.params, layout.tokens, layout.places), expected, layout, atol=2e-4
    )
    wrong = decoder_states(other, pair.params, layout.tokens, layout.places)
    assert np.abs(wrong[-1] - expected[-1]).max() > 1e-2


# --- bfloat16 ---


@pytest.mark.parametrize("name", ["left_padded", "packed"])
def test_bfloat16_layer_by_layer(pair, name):
    """Norms round in other places than transformers': as close to it as it is to float32."""
    layout = make_layout(name)
    real = layout.segments > 0
    exact = hidden_states(pair.reference.decoder, **layout.torch_inputs())
    model = deepcopy(pair.reference.decoder).bfloat16()  # rounds the rotary frequencies too
    model.model.rotary_emb.inv_freq = pair.reference.decoder.model.rotary_emb.inv_freq
    expected = hidden_states(model, **layout.torch_inputs())
    states = decoder_states(
        pair.config, cast(pair.params, "bfloat16"), layout.tokens, layout.places
    )
    assert_states_equal(states, expected, layout, atol=0.25)
    for mine, yours, true in zip(states, expected, exact, strict=True):
        assert np.abs(mine - true)[real].mean() <= 1.2 * np.abs(yours - true)[real].mean()
