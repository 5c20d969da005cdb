"""The commands that verify, build and time a conversion, on good and damaged checkpoints."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import convert.from_towers
import convert.verify.round_trip
from convert.from_hf import from_hf
from convert.from_towers import build_from_towers, build_random
from convert.to_hf import to_hf
from convert.verify.round_trip import compare_tensors
from launch.bench.convert import bench
from lclm_jax.checkpoint.model_files import read_model
from lclm_jax.data.text.tokenizer import MEMORY_END, MEMORY_SLOT, MEMORY_START, Tokenizer
from lclm_jax.inference.language_model import load
from tests.support.paths import GOLDEN, ROOT

CASE = "c10_mean_bi_attnmlp_o16_r16"


def test_a_conversion_is_the_same_byte_by_byte(published, tmp_path, command, capsys):
    source = published(CASE)
    from_hf(source, tmp_path / "ours")
    assert command(convert.verify.round_trip, source, tmp_path / "ours") == 0
    assert "all 108 tensors are the same, byte by byte" in capsys.readouterr().out
    file = source / "adapter" / "adapter.safetensors"
    tensors = load_file(file)
    tensors["fc1.bias"] = tensors["fc1.bias"] + np.float32(1e-7)
    save_file(tensors, file)
    assert command(convert.verify.round_trip, source, tmp_path / "ours") == 2
    assert "1 of 108 lines differ: adapter fc1.bias" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bf16_config457", "untied_sharded"])
def test_layouts_are_replayed_through_the_command(name, tmp_path, command, capsys):
    source = GOLDEN / "layouts" / name
    from_hf(source, tmp_path / "ours")
    assert all(line.passed for line in compare_tensors(source, tmp_path / "ours"))
    assert command(convert.verify.round_trip, source, tmp_path / "ours", "--golden", source) == 0
    assert "all 2 quantities are within the tolerance" in capsys.readouterr().out
    assert (
        command(
            convert.verify.round_trip,
            source,
            tmp_path / "ours",
            "--golden",
            source,
            "--tolerance",
            "1e-9",
        )
        == 2
    )


def test_other_settings_are_a_difference(published, tmp_path):
    source = published(CASE)
    from_hf(source, tmp_path / "ours")
    file = tmp_path / "ours" / "model.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["compression"]["ratio"] = 8
    file.write_text(json.dumps(values), encoding="utf-8")
    wrong = [line.name for line in compare_tensors(source, tmp_path / "ours") if not line.passed]
    assert len(wrong) == 1 and wrong[0].startswith("model.json compression: expected {'ratio': 16,")


def test_rounded_rotary_frequencies_are_a_choice(published, tmp_path):
    source = published(CASE)
    from_hf(source, tmp_path / "ours", rounded_rope=True)
    assert (
        read_model(tmp_path / "ours").encoder.rounded_rope
        and read_model(tmp_path / "ours").decoder.rounded_rope
    )
    assert all(line.passed for line in compare_tensors(source, tmp_path / "ours"))


def test_provenance_names_files_and_dtypes(tmp_path):
    from_hf(GOLDEN / "layouts" / "untied_sharded", tmp_path / "ours")
    provenance = json.loads((tmp_path / "ours" / "provenance.json").read_text(encoding="utf-8"))
    names = {
        str(file.relative_to(GOLDEN / "layouts" / "untied_sharded"))
        for file in provenance_files("untied_sharded")
    }
    assert provenance["files"].keys() == names
    assert all(len(file["sha256"]) == 64 for file in provenance["files"].values())
    assert provenance["tensors"]["decoder"]["lm_head.weight"] == "F32"


def provenance_files(name: str) -> list[Path]:
    return list((GOLDEN / "layouts" / name).rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_export_in_another_dtype_rounds_to_nearest(dtype, published, tmp_path):
    source = published(CASE)
    from_hf(source, tmp_path / "ours")
    to_hf(tmp_path / "ours", tmp_path / "back", dtype=dtype)
    before, after = (
        load_file(root / "decoder" / "model.safetensors") for root in (source, tmp_path / "back")
    )
    assert all(
        np.array_equal(after[key], tensor.astype(after[key].dtype))
        for key, tensor in before.items()
    )
    assert {tensor.dtype.name for tensor in after.values()} == {dtype}
    assert (
        dtype
        in json.loads(
            (tmp_path / "back" / "decoder" / "config.json").read_text(encoding="utf-8")
        ).values()
    )


@pytest.fixture
def bases(tmp_path) -> tuple[Path, Path]:
    """Two base models: the decoder's tokenizer and table lack the memory tokens."""
    encoder, decoder = (
        Path(shutil.copytree(GOLDEN / "base" / part, tmp_path / part))
        for part in ("encoder", "decoder")
    )
    shutil.copy(encoder / "tokenizer.json", decoder / "tokenizer.json")
    file = decoder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"] = np.ascontiguousarray(
        tensors["model.embed_tokens.weight"][:383]
    )
    save_file(tensors, file)
    config = json.loads((decoder / "config.json").read_text(encoding="utf-8"))
    (decoder / "config.json").write_text(
        json.dumps({**config, "vocab_size": 383}), encoding="utf-8"
    )
    return encoder, decoder


def test_init_joins_two_base_models(bases, tmp_path):
    encoder, decoder = bases
    build_from_towers(
        encoder,
        decoder,
        tmp_path / "ours",
        ["compression.ratio=4", "compression.window=16", "adapter.kind=mlp_attn"],
    )
    model = load(tmp_path / "ours")
    assert (
        model.config.decoder.vocab,
        model.config.compression.ratio,
        model.config.adapter.kind,
    ) == (386, 4, "mlp_attn")
    assert [model.tokenizer.id(name) for name in (MEMORY_START, MEMORY_END, MEMORY_SLOT)] == [
        383,
        384,
        385,
    ]
    table, base = (
        np.asarray(model.params["decoder"]["table"]),
        load_file(decoder / "model.safetensors"),
    )
    assert np.array_equal(table[:383], base["model.embed_tokens.weight"])
    np.testing.assert_allclose(
        table[383:], np.tile(base["model.embed_tokens.weight"].mean(axis=0), (3, 1)), atol=1e-6
    )
    assert isinstance(
        model.generate([model.compress("a brown fox"), "The number"], max_tokens=2), str
    )
    to_hf(tmp_path / "ours", tmp_path / "published")
    from_hf(tmp_path / "published", tmp_path / "back")
    assert read_model(tmp_path / "back") == model.config


def test_init_of_models_with_other_tokenizers_is_refused(bases, tmp_path, command, capsys):
    encoder, decoder = bases
    definition = json.loads((encoder / "tokenizer.json").read_text(encoding="utf-8"))
    definition["added_tokens"].pop()
    (encoder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    arguments = ("--encoder", encoder, "--decoder", decoder, "--out", tmp_path / "ours")
    assert command(convert.from_towers, *arguments) == 2
    assert "one tokenizer must serve both towers" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_random_init_takes_shapes_only(tmp_path):
    base = GOLDEN / "base"
    build_random(str(base / "encoder"), str(base / "decoder"), tmp_path / "ours", base / "decoder")
    assert Tokenizer.load(tmp_path / "ours" / "tokenizer").memory.slot == 385
    config = read_model(tmp_path / "ours")
    assert (config.encoder.vocab, config.decoder.vocab, config.decoder.layers) == (383, 386, 4)
    with pytest.raises(
        FileNotFoundError,
        match=r"neither a directory with config.json nor one of the shapes qwen3-0.6b",
    ):
        build_random("qwen9", "qwen3-0.6b", tmp_path / "other", base / "decoder")


def test_the_benchmark_measures_a_round_trip(model_config, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = bench(tmp_path / "bench", replace(model_config, dtype="bfloat16"), rounds=1)
    assert [pair.name for pair in result.pairs] == ["from_hf", "to_hf"]
    assert all(
        figure.peak > 0 and figure.seconds > 0
        for pair in result.pairs
        for figure in (pair.copy, pair.conversion)
    )
    assert result.size > result.largest == 512 * 32 * 2
    assert not (tmp_path / "bench").exists()
