"""Conversion in both directions: exact round trips, refused inputs, settings."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import convert.from_hf
import convert.to_hf
from convert.from_hf import from_hf, read_hf
from convert.hf.config import read_compression, read_tower
from convert.hf.files import find_published, list_tower
from convert.hf.mapping import (
    TABLE,
    TRANSFORMS,
    ConversionError,
    from_published,
    published_tensors,
    to_published,
)
from convert.to_hf import to_hf
from convert.verify.golden import forward
from lclm_jax.checkpoint.model_files import read_model_files, save_model
from lclm_jax.checkpoint.steps import load_params
from lclm_jax.config import AdapterConfig, CompressionConfig, ModelConfig, TransformerConfig
from lclm_jax.data.loading import RowBudget, assemble, fill_row
from lclm_jax.data.records import Context, Example, Plain, lay_out
from lclm_jax.data.text.tokenizer import MEMORY_SLOT, Tokenizer
from lclm_jax.distributed.sharding import one_device
from lclm_jax.files.directories import new_directory
from lclm_jax.inference.language_model import load
from lclm_jax.model.params import abstract_params, flatten, parameter_shapes, unflatten
from lclm_jax.typing import Params
from tests.support.paths import GOLDEN

BF16, SHARDED = GOLDEN / "layouts" / "bf16_config457", GOLDEN / "layouts" / "untied_sharded"
# --- Round trips ---


def tensors_of(source: Path) -> dict[str, np.ndarray]:
    """Every stored tensor of a published checkpoint, in its stored dtype."""
    return {
        f"{file.parent.name}/{key}": tensor
        for file in source.rglob("*.safetensors")
        for key, tensor in load_file(file).items()
    }


def test_published_round_trip_is_byte_equal(published, tmp_path):
    source = published()
    assert from_hf(source, tmp_path / "ours") == tmp_path / "ours"
    to_hf(tmp_path / "ours", tmp_path / "back")
    before, after = tensors_of(source), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype and after[key].shape == tensor.shape, key
        assert after[key].tobytes() == tensor.tobytes(), key
    for part in ("decoder", "encoder"):
        old, new = (
            json.loads((root / part / "config.json").read_text(encoding="utf-8"))
            for root in (source, tmp_path / "back")
        )
        shared = set(old) & set(new)
        assert {
            "architectures",
            "model_type",
            "rope_parameters",
            "head_dim",
            "tie_word_embeddings",
        } <= shared
        assert {key: old[key] for key in shared} == {key: new[key] for key in shared}
        old, new = (
            json.loads((root / part / "tokenizer.json").read_text(encoding="utf-8"))
            for root in (source, tmp_path / "back")
        )
        assert old == new
    assert read_compression(source) == read_compression(tmp_path / "back")


def random_model(tied: bool) -> tuple[ModelConfig, Params]:
    encoder = TransformerConfig(
        383, 16, 2, 4, 1, 6, 24, rope_theta=1e4, norm_eps=1e-5, causal=False, max_positions=128
    )
    decoder = TransformerConfig(
        390, 20, 3, 4, 2, 8, 28, rope_theta=5e6, tied=tied, max_positions=256
    )
    compression = CompressionConfig(ratio=4, window=16, pooling="concat", overlap=2)
    config = ModelConfig(encoder, decoder, compression, dtype="float32")
    random = np.random.default_rng(3)
    return config, unflatten(
        {
            path: random.normal(size=shape).astype(np.float32)
            for path, shape in parameter_shapes(config).items()
        }
    )


def logits(params: Params, config: ModelConfig, example: Example) -> np.ndarray:
    return np.asarray(
        forward(
            params, assemble([fill_row(RowBudget.for_model(config, 64, 4), [example])]), config
        )[3]
    )


@pytest.mark.parametrize("tied", [True, False])
def test_our_round_trip_keeps_params_and_logits(tied, tmp_path):
    config, params = random_model(tied)
    tokenizer = Tokenizer.load(GOLDEN / "base" / "decoder")
    save_model(tmp_path / "ours", config, tokenizer, params)
    to_hf(tmp_path / "ours", tmp_path / "published")
    from_hf(tmp_path / "published", tmp_path / "back")
    assert read_model_files(tmp_path / "back")[0] == config
    assert read_model_files(tmp_path / "back")[1].definition == tokenizer.definition
    back = load_params(tmp_path / "back", abstract_params(config, one_device()))
    assert flatten(back).keys() == flatten(params).keys()
    assert all(
        jnp.array_equal(before, flatten(back)[path]) for path, before in flatten(params).items()
    )
    record = [Plain(np.array([5, 6])), Context(np.arange(21)), Plain(np.array([7]))]
    before, after = (
        logits(tree, config, lay_out(record, config, tokenizer.memory)) for tree in (params, back)
    )
    assert np.array_equal(before, after)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "ours", "published"]


def test_converted_checkpoint_loads_and_generates(published, tmp_path):
    from_hf(published(), tmp_path / "ours")
    model = load(tmp_path / "ours")
    assert isinstance(
        model.complete([model.compress("a brown fox"), "The number"], max_tokens=2), str
    )


def test_transformers_reads_what_we_write(tmp_path):
    transformers = pytest.importorskip("transformers")
    config, params = random_model(tied=False)
    save_model(tmp_path / "ours", config, Tokenizer.load(GOLDEN / "base" / "decoder"), params)
    to_hf(tmp_path / "ours", tmp_path / "published")
    read = transformers.AutoConfig.from_pretrained(tmp_path / "published" / "decoder")
    assert isinstance(read, transformers.Qwen3Config)
    assert (read.head_dim, read.rope_parameters["rope_theta"], read.tie_word_embeddings) == (
        8,
        5e6,
        False,
    )
    encoder = transformers.AutoTokenizer.from_pretrained(tmp_path / "published" / "encoder")
    decoder = transformers.AutoTokenizer.from_pretrained(tmp_path / "published" / "decoder")
    assert len(decoder) - len(encoder) == 3
    assert MEMORY_SLOT in decoder.get_vocab() and MEMORY_SLOT not in encoder.get_vocab()


# --- The table ---


def test_table_covers_every_parameter():
    config = replace(random_model(tied=False)[0], adapter=AdapterConfig("attn_mlp", 2))
    shapes = parameter_shapes(config)
    assert (
        {tensor.path for tensor in published_tensors(shapes)}
        == set(shapes)
        == {rule.parameter for rule in TABLE}
    )
    with pytest.raises(ConversionError, match=r"no rule .* decoder/bias; add rows to TABLE"):
        published_tensors({**shapes, "decoder/bias": (3,)})


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_are_inverse(transform):
    array = np.arange(2 * 3 * 4.0).reshape(
        {"none": (24,), "transpose": (6, 4)}.get(transform, (2, 3, 4))
    )
    assert np.array_equal(
        from_published(to_published(array, transform), transform, array.shape), array
    )


def test_transforms_of_heads():
    """Row n * H + h of torch's output is head n, dimension h.

    Our einsums give what `x @ weight.T` gives.
    """
    weight, x = np.arange(24.0).reshape(6, 4), np.arange(4.0)
    np.testing.assert_array_equal(
        np.einsum("D,DNH->NH", x, from_published(weight, "split_heads", (4, 2, 3))).ravel(),
        weight @ x,
    )
    weight, x = weight.T, np.arange(6.0)
    array = from_published(weight, "join_heads", (2, 3, 4))
    np.testing.assert_array_equal(np.einsum("NH,NHD->D", x.reshape(2, 3), array), weight @ x)


# --- What is refused ---


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of a tiny checkpoint to damage."""
    return Path(shutil.copytree(BF16, tmp_path / "in" / "source"))


def edit_tensors(file: Path, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit_json(file: Path, **changes):
    values = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(
        json.dumps({key: value for key, value in values.items() if value is not None}),
        encoding="utf-8",
    )


def test_every_wrong_tensor_is_named_and_nothing_written(source, tmp_path):
    def decoder(tensors):
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
        tensors["model.layers.2.input_layernorm.weight"] = np.ones(32, np.float32)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.norm.weight"] = np.ones(31, np.float32)
        tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.int64)

    def encoder(tensors):
        tensors["model.norm.weight"] = tensors["norm.weight"]

    def adapter(tensors):
        tensors["fc1.weight"] = np.ascontiguousarray(tensors["fc1.weight"].T)
        del tensors["fc2.bias"]

    edit_tensors(source / "decoder" / "model.safetensors", decoder)
    edit_tensors(source / "encoder" / "model.safetensors", encoder)
    edit_tensors(source / "adapter" / "adapter.safetensors", adapter)
    with pytest.raises(ConversionError) as caught:
        from_hf(source, tmp_path / "out" / "ours")
    message = str(caught.value)
    for line in (
        "8 tensors do not fit",
        "decoder model.layers.0.self_attn.q_proj.bias: unknown, got [32]",
        "decoder model.layers.2.input_layernorm.weight: unknown, got [32]",
        "decoder model.layers.1.mlp.up_proj.weight: missing, expected [40, 32]",
        "decoder model.norm.weight: expected [32], got [31]",
        "decoder model.layers.0.self_attn.q_norm.weight: expected dtype F32, BF16, F16, got I64",
        "encoder norm.weight: stored 2 times, expected once",
        "adapter fc1.weight: expected [32, 16], got [16, 32]",
        "adapter fc2.bias: missing, expected [32]",
    ):
        assert line in message
    assert not list((tmp_path / "out").iterdir())


def test_a_tensor_in_two_shards_is_a_duplicate(tmp_path):
    source = Path(shutil.copytree(SHARDED, tmp_path / "source"))
    edit_tensors(
        source / "decoder" / "model-00005-of-00005.safetensors",
        lambda tensors: tensors.update({"model.norm.weight": np.ones(32, np.float32)}),
    )
    with pytest.raises(
        ConversionError, match=r"decoder model.norm.weight: stored 2 times, expected once"
    ):
        read_hf(source)


def test_a_missing_shard_is_named(tmp_path):
    source = Path(shutil.copytree(SHARDED, tmp_path / "source"))
    (source / "decoder" / "model-00002-of-00005.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"names shards that are not there: model-00002-of-00005.safetensors",
    ):
        read_hf(source)


def test_a_truncated_file_is_named(source):
    file = source / "decoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConversionError, match=r"model.safetensors is not a whole safetensors file"):
        read_hf(source)


def test_a_tied_head_may_be_stored_if_it_is_equal(source):
    file = source / "decoder" / "model.safetensors"
    edit_tensors(
        file,
        lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}),
    )
    _, params = read_hf(source)
    assert "head" not in params
    edit_tensors(
        file, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] + 1})
    )
    with pytest.raises(
        ConversionError,
        match=r"lm_head.weight: differs from model.embed_tokens.weight, but tie_word_embeddings",
    ):
        read_hf(source)


def test_an_existing_destination_is_left_alone(tmp_path):
    (tmp_path / "ours").mkdir()
    with pytest.raises(
        FileExistsError, match="ours exists; name a new directory or remove it first"
    ):
        from_hf(BF16, tmp_path / "ours")
    with pytest.raises(FileExistsError, match="ours exists"):
        to_hf(tmp_path / "absent", tmp_path / "ours")
    assert not list((tmp_path / "ours").iterdir())


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "ours") as directory:
        (directory / "half").write_text("written", encoding="utf-8")
        assert not (tmp_path / "ours").exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_missing_parts_are_named(source):
    shutil.rmtree(source / "adapter")
    (source / "model_config.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no adapter/adapter.safetensors, no model_config.json"
    ):
        read_hf(source)


def test_a_checkpoint_without_tokenizer_computes_but_does_not_load(tmp_path, caplog):
    from_hf(BF16, tmp_path / "ours")
    assert "has no tokenizer: the checkpoint computes but cannot read text" in caplog.text
    with pytest.raises(FileNotFoundError, match="no tokenizer here"):
        load(tmp_path / "ours")
    to_hf(tmp_path / "ours", tmp_path / "back")
    before, after = tensors_of(BF16), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(after[key].tobytes() == tensor.tobytes() for key, tensor in before.items())


def test_a_tokenizer_must_serve_both_towers(published, tmp_path):
    source = published()
    shutil.copy(source / "encoder" / "tokenizer.json", source / "decoder" / "tokenizer.json")
    with pytest.raises(ConversionError, match=r"has no <\|memory_start\|>"):
        from_hf(source, tmp_path / "ours")
    shutil.copy(
        GOLDEN / "base" / "decoder" / "tokenizer.json", source / "decoder" / "tokenizer.json"
    )
    definition = json.loads((source / "encoder" / "tokenizer.json").read_text(encoding="utf-8"))
    definition["added_tokens"].pop(0)
    (source / "encoder" / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    with pytest.raises(ConversionError, match="is not the decoder's without its memory tokens"):
        from_hf(source, tmp_path / "ours")


# --- Settings ---


def test_settings_that_would_change_the_model_are_refused(source):
    edit_json(
        source / "decoder" / "config.json",
        hidden_act="gelu",
        attention_bias=True,
        head_dim=0,
        rope_scaling={"type": "yarn"},
    )
    with pytest.raises(
        ConversionError,
        match=r"head_dim must be an integer.*got 0.*attention_bias"
        r".*hidden_act must be 'silu'.*rotary scaling",
    ):
        read_tower(source / "decoder" / "config.json", causal=True)
    edit_json(source / "model_config.json", pooling="max", encoder_mask_type=None)
    with pytest.raises(
        ConversionError,
        match="encoder_mask_type is missing; pooling must be one of mean, eos, concat, got 'max'",
    ):
        read_compression(source)


def test_a_processor_of_another_ratio_is_refused(source):
    (source / "processor_config.json").write_text(
        json.dumps({"compression_ratio": 16, "use_memory_wrapping": False}), encoding="utf-8"
    )
    with pytest.raises(
        ConversionError,
        match=r"use_memory_wrapping=False, expected True.*compression_ratio=16, expected 4",
    ):
        read_compression(source)


def test_older_names(source, tmp_path):
    older = tmp_path / "model-bst16-r4" / "checkpoint_200"
    older.mkdir(parents=True)
    shutil.copytree(source / "decoder", older / "llm")
    shutil.copytree(source / "encoder", older / "embedder")
    (older / "projectors").mkdir()
    shutil.copy(
        source / "adapter" / "adapter.safetensors",
        older / "projectors" / "code_adapter.safetensors",
    )
    settings = {"chunk_size": 4, "pooling": "summary_mean", "encoder_mask_type": "causal"}
    (older.parent / "model_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (older.parent / "checkpoint_30" / "llm").mkdir(parents=True)
    (older.parent / "checkpoint_last").mkdir()
    config, params = read_hf(older.parent)
    expected, same = read_hf(source)
    assert find_published(older.parent).decoder == older / "llm"
    assert config == expected
    assert all(
        np.array_equal(array, flatten(same)[path]) for path, array in flatten(params).items()
    )


def test_a_model_of_several_ratios_keeps_them(source, tmp_path):
    edit_json(source / "model_config.json", compression_ratios=[2, 8])
    from_hf(source, tmp_path / "ours")
    to_hf(tmp_path / "ours", tmp_path / "back")
    for place in (source, tmp_path / "back"):
        assert read_compression(place)[0].all_ratios == (4, 2, 8)
    edit_json(source / "model_config.json", compression_ratios=["2"])
    with pytest.raises(
        ConversionError, match=r"compression_ratios must be a list of whole numbers, got \['2'\]"
    ):
        read_compression(source)


@pytest.mark.parametrize(
    "older, pooling", [("summary_mean", "mean"), ("summary_concat", "concat"), ("summary", "eos")]
)
def test_older_poolings(older, pooling, source):
    edit_json(source / "model_config.json", pooling=older)
    assert read_compression(source)[0].pooling == pooling
    edit_json(source / "model_config.json", pooling=None, **{older: True})
    assert read_compression(source)[0].pooling == pooling


def test_encoder_keys_with_prefix(source):
    _, expected = read_hf(source)
    file = source / "encoder" / "model.safetensors"
    save_file({f"model.{key}": tensor for key, tensor in load_file(file).items()}, file)
    _, params = read_hf(source)
    assert all(
        np.array_equal(array, flatten(expected)[path]) for path, array in flatten(params).items()
    )


def test_dtypes_may_differ_from_tensor_to_tensor(source):
    _, expected = read_hf(source)

    def change(tensors):
        for key, dtype in zip(
            sorted(tensors), ["float16", "float32", "bfloat16"] * len(tensors), strict=False
        ):
            tensors[key] = tensors[key].astype(dtype)

    edit_tensors(source / "decoder" / "model.safetensors", change)
    assert {tensor.dtype for tensor in list_tower(source / "decoder")} == {"F16", "F32", "BF16"}
    config, params = read_hf(source)
    assert config.dtype == "bfloat16"
    for path, array in flatten(params).items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, flatten(expected)[path], rtol=1e-3, atol=1e-7)


# --- Commands ---


def test_commands_say_where_the_result_lies(published, tmp_path, capsys, command):
    source = published()
    assert command(convert.from_hf, source, tmp_path / "ours") == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'ours'}\n"
    assert command(convert.to_hf, tmp_path / "ours", tmp_path / "back") == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'back'}\n"


@pytest.mark.parametrize("module", [convert.from_hf, convert.to_hf])
def test_commands_report_errors_in_one_line(module, tmp_path, capsys, command):
    assert command(module, tmp_path / "absent", tmp_path / "new") == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert (
        output.err.startswith("error: ") and output.err.count("\n") == 1 and "absent" in output.err
    )
    assert not list(tmp_path.iterdir())
