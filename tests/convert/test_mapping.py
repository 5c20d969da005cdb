"""The table of tensors on arrays in memory: reading, comparison and refused layouts."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from convert.hf.mapping import (
    NUMPY_DTYPES,
    ConversionError,
    Source,
    Tensor,
    check_layers,
    check_rotary,
    find_sources,
    from_published,
    match_tensors,
    publish_params,
    published_shape,
    published_tensors,
    same_rows,
    split_rotary,
    to_published,
    transpose,
)
from lclm_jax.config import AdapterConfig, CompressionConfig, ModelConfig
from lclm_jax.model.params import parameter_shapes, unflatten
from tests.support.records import TOWER

WIDE = replace(TOWER, width=12, layers=2, heads=6, kv_heads=3, head_dim=4, mlp=10, rope_theta=1e4)
CONFIG = ModelConfig(
    replace(TOWER, layers=1), replace(WIDE, tied=False), CompressionConfig(2, 4), AdapterConfig()
)
SPELLED = {dtype: name for name, dtype in NUMPY_DTYPES.items()}


@dataclass
class Held:
    """A tensor in memory in place of one in a file; `reads` are the rows that were asked for."""

    key: str
    array: np.ndarray
    dtype: str = ""
    file: Path = Path("model.safetensors")
    reads: list[tuple[int, int | None]] = field(default_factory=list)

    def __post_init__(self):
        self.dtype = self.dtype or SPELLED.get(self.array.dtype, "I64")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        self.reads.append((start, stop))
        return self.array[start:stop]


@pytest.fixture(scope="module")
def flat():
    """Every parameter of CONFIG, no two numbers equal."""
    shapes, start, made = parameter_shapes(CONFIG), 0, {}
    for path, shape in shapes.items():
        size = int(np.prod(shape))
        made[path] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
    return made


@pytest.fixture
def stored(flat):
    """The published tensors of these parameters, by part."""
    parts = publish_params(unflatten(flat))
    return {
        part: [Held(key, array) for key, array in tensors.items()]
        for part, tensors in parts.items()
    }


def test_every_parameter_comes_back_from_its_own_tensors(flat, stored):
    sources = find_sources(stored, CONFIG)
    assert sources.keys() == flat.keys()
    for path, source in sources.items():
        np.testing.assert_array_equal(source.read(), flat[path], err_msg=path)
        assert source.shape == flat[path].shape and source.dtype == np.float32
        assert source.stacked == ("/layers/" in path)
        leaf = source.leaf(ml_dtypes.bfloat16)
        assert leaf.dtype == ml_dtypes.bfloat16 and leaf.shape == flat[path].shape
    assert source.leaf().dtype == np.float32


def test_rows_of_a_parameter_are_those_of_the_whole(flat, stored):
    sources = find_sources(stored, CONFIG)
    for path in ("decoder/table", "adapter/fc1", "decoder/layers/attention/o", "head"):
        rows = len(flat[path])
        for start, stop in ((0, 1), (1, 2), (0, 2), (1, rows), (rows - 1, None), (0, None)):
            np.testing.assert_array_equal(
                sources[path].read(start, stop), flat[path][start:stop], err_msg=path
            )


def test_only_what_rows_need_is_read(stored):
    sources = find_sources(stored, CONFIG)
    (_, table), *_ = sources["decoder/table"].tensors
    sources["decoder/table"].read(3, 5)
    assert table.reads == [(3, 5)]
    sources["decoder/layers/attention/q"].read(1, 2)
    first, second = (tensor for _, tensor in sources["decoder/layers/attention/q"].tensors)
    assert not first.reads and len(second.reads) == 1


def test_published_names_and_shapes(flat):
    """Torch's [outputs, inputs], heads joined, layers one by one."""
    tensors = {tensor.key: tensor for tensor in published_tensors(parameter_shapes(CONFIG))}
    q = tensors["model.layers.1.self_attn.q_proj.weight"]
    assert q == Tensor("decoder", q.key, (24, 12), "decoder/layers/attention/q", 1, "split_heads")
    o = tensors["model.layers.0.self_attn.o_proj.weight"]
    assert o == Tensor("decoder", o.key, (12, 24), "decoder/layers/attention/o", 0, "join_heads")
    parts = publish_params(unflatten(flat))
    assert {part: len(tensors) for part, tensors in parts.items()} == {
        "decoder": 2 * 11 + 3,
        "encoder": 11 + 2,
        "adapter": 5,
    }
    decoder = flat["decoder/layers/attention/q"][1]
    np.testing.assert_array_equal(
        parts["decoder"][q.key], np.transpose(decoder, (1, 2, 0)).reshape(24, 12)
    )
    np.testing.assert_array_equal(parts["adapter"]["fc1.weight"], flat["adapter/fc1"].T)
    assert all(
        array.dtype == np.float32 and array.flags.c_contiguous
        for arrays in parts.values()
        for array in arrays.values()
    )


def test_a_large_matrix_is_transposed_whole():
    for shape in ((1, 5), (127, 3), (128, 2), (129, 2), (300, 7)):
        matrix = np.arange(np.prod(shape), dtype=np.float16).reshape(shape)
        turned = transpose(matrix)
        np.testing.assert_array_equal(turned, matrix.T)
        assert turned.flags.c_contiguous and turned.dtype == np.float16


def test_shapes_of_heads():
    assert published_shape((12, 6, 4), "split_heads") == (24, 12)
    assert published_shape((6, 4, 12), "join_heads") == (12, 24)
    assert published_shape((3, 5), "transpose") == (5, 3)
    assert published_shape((3, 5), "none") == (3, 5)
    strided = np.arange(12.0).reshape(3, 4).T
    assert to_published(strided, "none").flags.c_contiguous
    np.testing.assert_array_equal(
        from_published(to_published(strided, "none"), "none", (4, 3)), strided
    )


def test_layers_of_different_dtypes_are_read_as_float32(stored):
    layer = next(
        tensor for tensor in stored["decoder"] if tensor.key.endswith("0.mlp.up_proj.weight")
    )
    layer.array = layer.array.astype(ml_dtypes.bfloat16)
    layer.dtype = "BF16"
    norm = next(tensor for tensor in stored["encoder"] if tensor.key == "norm.weight")
    norm.array, norm.dtype = norm.array.astype(np.float16), "F16"
    sources = find_sources(stored, CONFIG)
    assert sources["decoder/layers/mlp/up"].dtype == np.float32
    assert sources["decoder/layers/mlp/up"].read(0, 1).dtype == np.float32
    assert sources["encoder/norm/scale"].dtype == np.float16
    assert sources["encoder/norm/scale"].read().dtype == np.float16


def test_wrappers_around_a_name_are_taken_off(flat, stored):
    stored["decoder"] = [
        replace(tensor, key=f"module._orig_mod.{tensor.key}") for tensor in stored["decoder"]
    ]
    stored["encoder"] = [replace(tensor, key=f"model.{tensor.key}") for tensor in stored["encoder"]]
    for tensor in stored["decoder"]:
        tensor.key = tensor.key.replace(".model.norm", ".norm").replace(
            ".model.layers.0", ".layers.0"
        )
    sources = find_sources(stored, CONFIG)
    for path in ("decoder/layers/mlp/up", "decoder/norm/scale", "head", "encoder/table"):
        np.testing.assert_array_equal(sources[path].read(), flat[path])


def test_parts_that_are_not_stored_are_not_asked_for(stored):
    del stored["decoder"]
    assert {path.split("/")[0] for path in find_sources(stored, CONFIG)} == {"encoder", "adapter"}


def test_everything_wrong_is_listed_one_line_each(stored):
    decoder = {tensor.key: tensor for tensor in stored["decoder"]}
    gone = decoder.pop("model.layers.1.mlp.down_proj.weight")
    decoder["lm_head.weight"].dtype = "I8"
    decoder["model.norm.weight"].array = np.ones(11, np.float32)
    again = replace(decoder["model.embed_tokens.weight"], key="embed_tokens.weight")
    strange = Held("model.layers.0.bias", np.ones(3, np.float32), file=Path("b.safetensors"))
    with pytest.raises(ConversionError) as refused:
        find_sources(stored | {"decoder": [*decoder.values(), again, strange]}, CONFIG)
    assert gone.shape == (12, 10)
    assert str(refused.value).splitlines() == [
        "5 tensors do not fit config.json and model_config.json:",
        "  decoder model.embed_tokens.weight: stored 2 times, expected once",
        "  decoder model.norm.weight: expected [12], got [11] in model.safetensors",
        "  decoder lm_head.weight: expected dtype F32, BF16, F16, got I8",
        "  decoder model.layers.0.bias: unknown, got [3] in b.safetensors",
        "  decoder model.layers.1.mlp.down_proj.weight: missing, expected [12, 10]",
    ]


def test_a_tied_head_may_be_stored_where_it_is_the_table():
    """A head is accepted from a tied decoder and from any encoder, since these have none."""
    table = Held("model.embed_tokens.weight", np.arange(12, dtype=np.float32).reshape(4, 3))
    wanted = [Tensor("decoder", table.key, (4, 3), "decoder/table", None, "none")]
    head = replace(table, key="lm_head.weight")
    assert match_tensors({"decoder": [table, head]}, wanted)[1] == []
    other = replace(head, array=table.array + np.eye(4, 3, dtype=np.float32) * (np.arange(3) == 2))
    assert match_tensors({"decoder": [table, other]}, wanted)[1] == [
        "decoder lm_head.weight: differs from model.embed_tokens.weight, "
        "but tie_word_embeddings says they are one"
    ]
    small = replace(head, array=table.array[:3])
    assert match_tensors({"decoder": [table, small]}, wanted)[1] == [
        "decoder lm_head.weight: expected [4, 3], got [3, 3] in model.safetensors"
    ]
    assert match_tensors({"decoder": [head]}, wanted)[1] == [
        "decoder lm_head.weight: unknown, got [4, 3] in model.safetensors",
        "decoder model.embed_tokens.weight: missing, expected [4, 3]",
    ]


def test_tensors_are_compared_to_the_last_row_in_any_dtype(monkeypatch):
    monkeypatch.setattr("convert.hf.mapping.CHUNK_BYTES", 4 * 3 * 2)  # two rows of three at a time
    tensor = Held("a", np.arange(15, dtype=np.float32).reshape(5, 3))
    assert same_rows(tensor, replace(tensor, array=tensor.array.astype(np.float16), dtype="F16"))
    assert {stop - start for start, stop in tensor.reads} == {2}
    for row in range(5):
        other = tensor.array.copy()
        other[row, 2] += 1
        assert not same_rows(tensor, replace(tensor, array=other))


def test_more_layers_than_tensors_are_refused_before_they_are_listed():
    check_layers({"decoder": 2, "encoder": 1, "adapter": 0}, CONFIG)
    for part, count, layers in (("decoder", 1, 2), ("encoder", 0, 1)):
        message = f"the settings of the {part} say {layers} layers, its files hold {count} tensors"
        with pytest.raises(ConversionError, match=message):
            check_layers({part: count}, CONFIG)
    attending = replace(CONFIG, adapter=AdapterConfig("attn_mlp", 3))
    check_layers({"adapter": 3}, attending)
    with pytest.raises(ConversionError, match="of the adapter say 3 layers"):
        check_layers({"adapter": 2}, attending)


def test_rotary_frequencies_are_those_of_the_settings():
    """Frequencies agree with their tower to five digits in float32, to two in bfloat16."""
    half = np.array([1.0, 1e-2], np.float32)  # 10000 ** (0, -1 / 2), a head of four
    key = "model.layers.0.self_attn.rotary_emb.inv_freq"
    right = Held(key, half)
    weights, buffers = split_rotary({"decoder": [right, Held("model.norm.weight", half)]})
    assert [tensor.key for tensor in weights["decoder"]] == ["model.norm.weight"]
    assert buffers == {"decoder": [right]}
    assert check_rotary(buffers, CONFIG) == []
    bfloat16 = Held(key, half.astype(ml_dtypes.bfloat16))
    assert check_rotary({"decoder": [bfloat16]}, CONFIG) == []
    wrong = [
        Held(key, half * np.float32(1.001)),
        Held(key, (half * 1.05).astype(ml_dtypes.bfloat16)),
        Held(key, half[:1]),
        Held(key, half.astype(np.int64)),
    ]
    line = f"decoder {key}: differs from the frequencies of rope_theta=10000 and head_dim=4"
    assert check_rotary({"decoder": wrong}, CONFIG) == [line] * 4
    assert "head_dim=8" in check_rotary({"encoder": [right]}, CONFIG)[0]


def test_one_source_of_one_layer_is_stacked():
    tensor = Tensor("encoder", "layers.0.w", (2, 3), "encoder/layers/w", 0, "transpose")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    source = Source((1, 3, 2), np.dtype(np.float32), ((tensor, Held("layers.0.w", array)),))
    assert source.stacked
    np.testing.assert_array_equal(source.read(), array.T[None])
