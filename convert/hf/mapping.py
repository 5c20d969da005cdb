"""Table of published tensors and parameters of the model, and the check of files against it.

The table is read in both directions.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from lclm_jax.checkpoint.streaming import CHUNK_BYTES, Streamed
from lclm_jax.config import ModelConfig
from lclm_jax.errors import UserError
from lclm_jax.model.params import flatten, parameter_shapes
from lclm_jax.typing import Params

# A torch Linear stores [outputs, inputs]; a parameter is [inputs, outputs], with an axis for heads.
# Transform -> number of leading axes of the parameter that are inputs; None keeps the tensor.
TRANSFORMS = {
    "none": None,
    "transpose": 1,  # [out, in] <-> [in, out]
    "split_heads": 1,  # [N*H, D] <-> [D, N, H]
    "join_heads": 2,  # [D, N*H] <-> [N, H, D]
}
# Name of a dtype in safetensors -> numpy dtype.
NUMPY_DTYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}


class ConversionError(UserError):
    """A checkpoint that cannot be converted, with a list of its problems."""


@dataclass(frozen=True)
class Rule:
    """A row of the table; `{layer}` in a published key indexes the parameter's first axis."""

    part: str  # decoder, encoder or adapter: the file the tensor lies in
    published: str  # key of the tensor
    parameter: str  # its path
    transform: str = "none"


def layer_rules(part: str, published: str, parameter: str) -> tuple[Rule, ...]:
    """Return the rules of a Qwen3 layer below these prefixes."""
    return tuple(
        Rule(part, published + key, f"{parameter}/{path}", transform)
        for key, path, transform in (
            ("input_layernorm.weight", "attention_norm/scale", "none"),
            ("self_attn.q_proj.weight", "attention/q", "split_heads"),
            ("self_attn.k_proj.weight", "attention/k", "split_heads"),
            ("self_attn.v_proj.weight", "attention/v", "split_heads"),
            ("self_attn.o_proj.weight", "attention/o", "join_heads"),
            ("self_attn.q_norm.weight", "attention/q_norm/scale", "none"),
            ("self_attn.k_norm.weight", "attention/k_norm/scale", "none"),
            ("post_attention_layernorm.weight", "mlp_norm/scale", "none"),
            ("mlp.gate_proj.weight", "mlp/gate", "transpose"),
            ("mlp.up_proj.weight", "mlp/up", "transpose"),
            ("mlp.down_proj.weight", "mlp/down", "transpose"),
        )
    )


# A rule whose parameter the model does not have (the head of a tied decoder) does not apply.
TABLE = (
    Rule("decoder", "model.embed_tokens.weight", "decoder/table"),
    *layer_rules("decoder", "model.layers.{layer}.", "decoder/layers"),
    Rule("decoder", "model.norm.weight", "decoder/norm/scale"),
    Rule("decoder", "lm_head.weight", "head"),
    Rule("encoder", "embed_tokens.weight", "encoder/table"),
    *layer_rules("encoder", "layers.{layer}.", "encoder/layers"),
    Rule("encoder", "norm.weight", "encoder/norm/scale"),
    Rule("adapter", "norm.weight", "adapter/norm/scale"),
    Rule("adapter", "fc1.weight", "adapter/fc1", "transpose"),
    Rule("adapter", "fc1.bias", "adapter/fc1_bias"),
    Rule("adapter", "fc2.weight", "adapter/fc2", "transpose"),
    Rule("adapter", "fc2.bias", "adapter/fc2_bias"),
    *layer_rules("adapter", "attention_layers.{layer}.decoder_layer.", "adapter/layers"),
)
# Prefix of keys in files that were saved with the wrapper of a language model.
OPTIONAL_PREFIX = {"encoder": "model."}
# Prefixes that torch.compile and data parallelism add to the keys of a saved model.
WRAPPER_PREFIXES = ("_orig_mod.", "module.")
# Prefixes in a decoder that was saved without the wrapper of a language model.
BASE_PREFIXES = ("embed_tokens.", "layers.", "norm.")
ROTARY_KEY = re.compile(r"(?:model\.)?(?:layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
# A key that may repeat another tensor where no rule for it applies: the head of a tied tower.
COPIES = {
    ("decoder", "lm_head.weight"): "model.embed_tokens.weight",
    ("encoder", "lm_head.weight"): "embed_tokens.weight",
}


@dataclass(frozen=True)
class Tensor:
    """A published tensor that a config requires, with its parameter or a layer of it."""

    part: str
    key: str
    shape: tuple[int, ...]  # as published
    path: str
    layer: int | None
    transform: str


class Stored(Protocol):
    """A tensor in a file, as `convert.hf.files.FileTensor` is."""

    @property
    def key(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    @property
    def file(self) -> Path: ...

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows [start, stop) in the stored dtype."""
        ...


StoredT = TypeVar("StoredT", bound=Stored)


@dataclass(frozen=True)
class Source:
    """A parameter and the published tensors it consists of: one, or its layers in order."""

    shape: tuple[int, ...]
    dtype: np.dtype  # holds the stored dtypes exactly
    tensors: tuple[tuple[Tensor, Stored], ...]

    @property
    def stacked(self) -> bool:
        """True if the tensors are layers of the parameter."""
        return self.tensors[0][0].layer is not None

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows [start, stop) of the first axis, which is layers if parameters are stacked."""
        rows = range(self.shape[0])[start:stop]
        if not self.stacked and self.tensors[0][0].transform == "none":
            return self.tensors[0][1].read(rows.start, rows.stop).astype(self.dtype, copy=False)
        if not self.stacked:
            return self._convert(0, self.shape)[rows.start : rows.stop]
        if len(rows) == 1:
            return self._convert(rows[0], self.shape[1:])[None]
        return np.stack([self._convert(layer, self.shape[1:]) for layer in rows])

    def leaf(self, dtype: DTypeLike | None = None) -> Streamed:
        """Return a leaf that reads the parameter in blocks, by default in the stored dtype."""
        target = self.dtype if dtype is None else np.dtype(dtype)
        return Streamed(
            self.shape,
            target,
            lambda start, stop: self.read(start, stop).astype(target, copy=False),
        )

    def _convert(self, index: int, shape: tuple[int, ...]) -> np.ndarray:
        tensor, stored = self.tensors[index]
        return from_published(stored.read(), tensor.transform, shape).astype(self.dtype, copy=False)


def published_tensors(
    shapes: Mapping[str, tuple[int, ...]], table: Sequence[Rule] = TABLE
) -> list[Tensor]:
    """Return the tensors of a checkpoint whose parameters have these shapes, in table order.

    A stacked parameter gives a tensor per layer: "decoder/layers/attention/q" of shape (2, 96, 6,
    16) is model.layers.0.self_attn.q_proj.weight and that of layer 1, both [96, 96]. Raises
    ConversionError for a parameter without a rule.
    """
    unmapped = sorted(set(shapes) - {rule.parameter for rule in table})
    if unmapped:
        raise ConversionError(
            f"no rule in convert/hf/mapping.py publishes the parameters "
            f"{', '.join(unmapped)}; "
            "add rows to TABLE"
        )
    return [
        tensor
        for rule in table
        if rule.parameter in shapes
        for tensor in _expand(rule, shapes[rule.parameter])
    ]


def _expand(rule: Rule, shape: tuple[int, ...]) -> Iterator[Tensor]:
    if "{layer}" not in rule.published:
        yield Tensor(
            rule.part,
            rule.published,
            published_shape(shape, rule.transform),
            rule.parameter,
            None,
            rule.transform,
        )
        return
    for layer in range(shape[0]):
        key, published = (
            rule.published.format(layer=layer),
            published_shape(shape[1:], rule.transform),
        )
        yield Tensor(rule.part, key, published, rule.parameter, layer, rule.transform)


def published_shape(shape: tuple[int, ...], transform: str) -> tuple[int, ...]:
    """Return the shape of the published tensor for a parameter, without its layer axis."""
    inputs = TRANSFORMS[transform]
    return shape if inputs is None else (math.prod(shape[inputs:]), math.prod(shape[:inputs]))


def to_published(array: np.ndarray, transform: str) -> np.ndarray:
    """Convert a parameter, without its layer axis, to the published tensor, contiguous."""
    inputs = TRANSFORMS[transform]
    if inputs is None:
        return np.ascontiguousarray(array)
    return transpose(array.reshape(math.prod(array.shape[:inputs]), -1))


def from_published(tensor: np.ndarray, transform: str, shape: tuple[int, ...]) -> np.ndarray:
    """Convert a published tensor to a parameter of `shape`, without its layer axis.

    The inverse of `to_published`.
    """
    return tensor if TRANSFORMS[transform] is None else transpose(tensor).reshape(shape)


def transpose(matrix: np.ndarray) -> np.ndarray:
    """Return a contiguous transpose, made in bands of rows: three times faster than at once."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for i in range(0, len(matrix), 128):
        result[:, i : i + 128] = matrix[i : i + 128].T
    return result


def find_sources(stored: Mapping[str, Sequence[Stored]], config: ModelConfig) -> dict[str, Source]:
    """Return the source of every parameter of the stored parts, by path.

    Only headers are read, and tensors that repeat others. Raises ConversionError with every tensor
    that is unknown, missing, duplicate, or of another shape or an unsupported dtype.
    """
    check_layers({part: len(tensors) for part, tensors in stored.items()}, config)
    shapes = parameter_shapes(config)
    wanted = [tensor for tensor in published_tensors(shapes) if tensor.part in stored]
    stored, buffers = split_rotary(stored)
    by_key, problems = match_tensors(stored, wanted)
    problems += check_rotary(buffers, config)
    if problems:
        listed = "\n  ".join(problems)
        raise ConversionError(
            f"{len(problems)} tensors do not fit config.json and model_config.json:\n  {listed}"
        )
    members: dict[str, list[tuple[Tensor, Stored]]] = {}
    for tensor in wanted:
        members.setdefault(tensor.path, []).append((tensor, by_key[tensor.part, tensor.key]))
    return {
        path: Source(shapes[path], _common_dtype(parts), tuple(parts))
        for path, parts in members.items()
    }


def check_layers(counts: Mapping[str, int], config: ModelConfig):
    """Raise ConversionError for more layers than tensors, before the layers are listed."""
    adapter = config.adapter.layers if config.adapter.attention else 0
    layers = {
        "decoder": config.decoder.layers,
        "encoder": config.encoder.layers,
        "adapter": adapter,
    }
    for part, count in counts.items():
        if layers[part] > count:
            raise ConversionError(
                f"the settings of the {part} say {layers[part]} layers, "
                f"its files hold {count} tensors"
            )


def split_rotary(
    stored: Mapping[str, Sequence[StoredT]],
) -> tuple[dict[str, list[StoredT]], dict[str, list[StoredT]]]:
    """Split tensors into weights and rotary frequencies, by part.

    Checkpoints of older releases hold the frequencies of every layer.
    """
    weights, buffers = {}, {}
    for part, tensors in stored.items():
        rotary = [item for item in tensors if ROTARY_KEY.fullmatch(_unwrap(item.key))]
        weights[part] = [item for item in tensors if item not in rotary]
        buffers[part] = rotary
    return weights, buffers


def check_rotary(buffers: Mapping[str, Sequence[Stored]], config: ModelConfig) -> list[str]:
    """Return a line for every rotary frequency that differs from rope_theta and head_dim."""
    problems = []
    for part, tensors in buffers.items():
        tower = config.encoder if part == "encoder" else config.decoder
        half = tower.head_dim // 2
        expected = tower.rope_theta ** (-np.arange(half) / half)
        for tensor in tensors:
            if tensor.dtype not in NUMPY_DTYPES or tensor.shape != (half,):
                same = False
            else:
                error = 1e-5 if tensor.dtype == "F32" else 1e-2
                same = np.allclose(
                    tensor.read().astype(np.float64), expected, rtol=error, atol=1e-7
                )
            if not same:
                problems.append(
                    f"{part} {tensor.key}: differs from the frequencies of "
                    f"rope_theta={tower.rope_theta:g} and head_dim={tower.head_dim}"
                )
    return problems


def _common_dtype(members: Sequence[tuple[Tensor, Stored]]) -> np.dtype:
    """Return the dtype of all members or, if they differ, float32."""
    dtypes = {stored.dtype for _, stored in members}
    return NUMPY_DTYPES[dtypes.pop() if len(dtypes) == 1 else "F32"]


def match_tensors(
    stored: Mapping[str, Sequence[Stored]], wanted: Sequence[Tensor]
) -> tuple[dict[tuple[str, str], Stored], list[str]]:
    """Return stored tensors by part and key of the table, and a line for every problem."""
    expected = {(tensor.part, tensor.key): tensor for tensor in wanted}
    named = [
        ((part, _table_key(part, tensor.key)), tensor)
        for part, tensors in stored.items()
        for tensor in tensors
    ]
    stored_by_key = dict(named)
    problems = [
        f"{_name(name)}: stored {times} times, expected once"
        for name, times in Counter(name for name, _ in named).items()
        if times > 1
    ]
    for name, tensor in stored_by_key.items():
        problems += _check_tensor(name, tensor, expected, stored_by_key)
    problems += [
        f"{_name(name)}: missing, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name not in stored_by_key
    ]
    return stored_by_key, problems


def _check_tensor(
    name: tuple[str, str],
    tensor: Stored,
    expected: Mapping[tuple[str, str], Tensor],
    stored: Mapping[tuple[str, str], Stored],
) -> list[str]:
    """Return the problem of one stored tensor, if any."""
    original = stored.get((name[0], COPIES.get(name, "")))
    wanted = expected.get(name) or original
    if wanted is None:
        return [f"{_name(name)}: unknown, got {list(tensor.shape)} in {tensor.file}"]
    if tensor.dtype not in NUMPY_DTYPES:
        return [f"{_name(name)}: expected dtype {', '.join(NUMPY_DTYPES)}, got {tensor.dtype}"]
    if tensor.shape != wanted.shape:
        return [
            f"{_name(name)}: expected {list(wanted.shape)}, got {list(tensor.shape)} "
            f"in {tensor.file}"
        ]
    if (
        original is not None
        and wanted is original
        and original.dtype in NUMPY_DTYPES
        and not same_rows(tensor, original)
    ):
        return [
            f"{_name(name)}: differs from {original.key}, but tie_word_embeddings says they are one"
        ]
    return []


def _table_key(part: str, key: str) -> str:
    """Return the key in the table for a stored one."""
    key = _unwrap(key)
    if part == "decoder" and key.startswith(BASE_PREFIXES):
        return f"model.{key}"
    return key.removeprefix(OPTIONAL_PREFIX.get(part, ""))


def _unwrap(key: str) -> str:
    while key.startswith((*WRAPPER_PREFIXES, "model.model.", "model.lm_head.")):
        key = key.partition(".")[2]
    return key


def _name(name: tuple[str, str]) -> str:
    return f"{name[0]} {name[1]}"


def same_rows(first: Stored, second: Stored) -> bool:
    """Return True if two tensors of one shape have the same values; reads a few rows at a time."""
    step = max(1, CHUNK_BYTES // max(1, 4 * math.prod(first.shape[1:])))
    pairs = (
        (first.read(i, i + step), second.read(i, i + step)) for i in range(0, first.shape[0], step)
    )
    return all(np.array_equal(x.astype(np.float32), y.astype(np.float32)) for x, y in pairs)


def publish_params(params: Params) -> dict[str, dict[str, np.ndarray]]:
    """Return the float32 tensors of each part by published key, from parameters in memory."""
    flat = flatten(params)
    parts: dict[str, dict[str, np.ndarray]] = {"decoder": {}, "encoder": {}, "adapter": {}}
    for tensor in published_tensors({path: tuple(array.shape) for path, array in flat.items()}):
        array = np.asarray(
            flat[tensor.path] if tensor.layer is None else flat[tensor.path][tensor.layer],
            np.float32,
        )
        parts[tensor.part][tensor.key] = to_published(array, tensor.transform)
    return parts
