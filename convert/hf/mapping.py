"""Published tensors and our parameters: one table, read in both directions, and the strict check of a file against it."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from lclm_jax.checkpoint.streaming import CHUNK, Streamed
from lclm_jax.config import ModelConfig
from lclm_jax.errors import UserError
from lclm_jax.model.params import flatten, init_boxed
from lclm_jax.typing import Params

# A torch Linear stores [outputs, inputs]; ours is [inputs, outputs] with heads on an axis of their own.
# Transform -> how many of our leading axes are inputs; None leaves the tensor as it is.
TRANSFORMS = {
    "none": None,
    "transpose": 1,  # [out, in] <-> [in, out]
    "split_heads": 1,  # [N*H, D] <-> [D, N, H]
    "join_heads": 2,  # [D, N*H] <-> [N, H, D]
}
# Dtype as safetensors spells it -> numpy's.
NUMPY = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}


class ConversionError(UserError):
    """A checkpoint that cannot be converted, with everything that is wrong with it."""


@dataclass(frozen=True)
class Rule:
    """One row of the table. `{layer}` in a published key numbers what is the leading axis of our parameter."""

    part: str  # decoder, encoder or adapter: the file the tensor lies in
    published: str
    ours: str
    transform: str = "none"


def layer_rules(part: str, published: str, ours: str) -> tuple[Rule, ...]:
    """The tensors of a Qwen3 layer, wherever such layers lie."""
    return tuple(
        Rule(part, published + key, f"{ours}/{path}", transform)
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
OPTIONAL_PREFIX = {
    "encoder": "model."
}  # files saved with a head's wrapper around the model carry it
# Wrappers of torch.compile and of data parallelism, whose names a saved model may carry.
WRAPPERS = ("_orig_mod.", "module.")
BASE_KEYS = ("embed_tokens.", "layers.", "norm.")  # of a decoder saved without its head's wrapper
ROTARY = re.compile(r"(?:model\.)?(?:layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
# A key that may repeat another tensor where no rule for it applies: the head of a tied tower.
COPIES = {
    ("decoder", "lm_head.weight"): "model.embed_tokens.weight",
    ("encoder", "lm_head.weight"): "embed_tokens.weight",
}


@dataclass(frozen=True)
class Tensor:
    """One published tensor a config asks for, and the parameter, or layer of it, that it holds."""

    part: str
    key: str
    shape: tuple[int, ...]  # as published
    path: str
    layer: int | None
    transform: str


class Stored(Protocol):
    """What the mapping needs to know of a tensor in a file; `convert.hf.files` has them."""

    @property
    def key(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    @property
    def file(self) -> Path: ...

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) in the stored dtype."""
        ...


StoredT = TypeVar("StoredT", bound=Stored)


@dataclass(frozen=True)
class Source:
    """A parameter of ours and the published tensors that hold it: all of it, or its layers in order."""

    shape: tuple[int, ...]
    dtype: np.dtype  # holds the stored dtypes exactly
    tensors: tuple[tuple[Tensor, Stored], ...]

    @property
    def stacked(self) -> bool:
        return self.tensors[0][0].layer is not None

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of the parameter's first axis, layers where it is stacked; only what they need is read."""
        rows = range(self.shape[0])[start:stop]
        if not self.stacked and self.tensors[0][0].transform == "none":
            return self.tensors[0][1].read(rows.start, rows.stop).astype(self.dtype, copy=False)
        if not self.stacked:
            return self._convert(0, self.shape)[rows.start : rows.stop]
        if len(rows) == 1:
            return self._convert(rows[0], self.shape[1:])[None]
        return np.stack([self._convert(layer, self.shape[1:]) for layer in rows])

    def leaf(self, dtype: DTypeLike = None) -> Streamed:
        """The parameter as a leaf that is read block by block, in the stored dtype unless another is named."""
        target = self.dtype if dtype is None else np.dtype(dtype)
        return Streamed(
            self.shape,
            target,
            lambda start, stop: self.read(start, stop).astype(target, copy=False),
        )

    def _convert(self, i: int, shape: tuple[int, ...]) -> np.ndarray:
        tensor, stored = self.tensors[i]
        return to_ours(stored.read(), tensor.transform, shape).astype(self.dtype, copy=False)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its flat path; nothing is allocated."""
    boxed = jax.eval_shape(partial(init_boxed, config), jax.random.key(0))
    return {path: tuple(leaf.shape) for path, leaf in flatten(nn.meta.unbox(boxed)).items()}


def published_tensors(
    shapes: Mapping[str, tuple[int, ...]], table: Sequence[Rule] = TABLE
) -> list[Tensor]:
    """Every tensor of a published checkpoint whose parameters have these shapes, in the order of the table.

    >>> shapes {"decoder/layers/attention/q": (2, 96, 6, 16)}: two tensors [96, 96], model.layers.0... and model.layers.1...
    Raises ConversionError for a parameter without a rule: the table is behind the model.
    """
    without = sorted(set(shapes) - {rule.ours for rule in table})
    if without:
        raise ConversionError(
            f"no rule in convert/hf/mapping.py publishes the parameters {', '.join(without)}; add rows to TABLE"
        )
    return [
        tensor
        for rule in table
        if rule.ours in shapes
        for tensor in _expand(rule, shapes[rule.ours])
    ]


def _expand(rule: Rule, shape: tuple[int, ...]) -> Iterator[Tensor]:
    if "{layer}" not in rule.published:
        yield Tensor(
            rule.part,
            rule.published,
            published_shape(shape, rule.transform),
            rule.ours,
            None,
            rule.transform,
        )
        return
    for layer in range(shape[0]):
        key, published = (
            rule.published.format(layer=layer),
            published_shape(shape[1:], rule.transform),
        )
        yield Tensor(rule.part, key, published, rule.ours, layer, rule.transform)


def published_shape(shape: tuple[int, ...], transform: str) -> tuple[int, ...]:
    """Shape of the published tensor from that of our array, the layer axis taken off."""
    inputs = TRANSFORMS[transform]
    return shape if inputs is None else (math.prod(shape[inputs:]), math.prod(shape[:inputs]))


def to_published(array: np.ndarray, transform: str) -> np.ndarray:
    """Our array, without layer axis, as the published tensor, contiguous."""
    inputs = TRANSFORMS[transform]
    if inputs is None:
        return np.ascontiguousarray(array)
    return transpose(array.reshape(math.prod(array.shape[:inputs]), -1))


def to_ours(tensor: np.ndarray, transform: str, shape: tuple[int, ...]) -> np.ndarray:
    """A published tensor as our array of `shape`, without layer axis; the inverse of `to_published`."""
    return tensor if TRANSFORMS[transform] is None else transpose(tensor).reshape(shape)


def transpose(matrix: np.ndarray) -> np.ndarray:
    """A contiguous copy, made a band of rows at a time: three times as fast as all at once on large matrices."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for i in range(0, len(matrix), 128):
        result[:, i : i + 128] = matrix[i : i + 128].T
    return result


def find_sources(stored: Mapping[str, Sequence[Stored]], config: ModelConfig) -> dict[str, Source]:
    """Where every parameter of the stored parts comes from, by flat path. Only headers are read, and repeated tensors.

    Raises ConversionError that names every tensor that is unknown, missing, there twice, of another shape or of a dtype
    that holds no weights.
    """
    check_layers({part: len(tensors) for part, tensors in stored.items()}, config)
    shapes = parameter_shapes(config)
    wanted = [tensor for tensor in published_tensors(shapes) if tensor.part in stored]
    stored, buffers = split_rotary(stored)
    found, problems = match(stored, wanted)
    problems += check_rotary(buffers, config)
    if problems:
        listed = "\n  ".join(problems)
        raise ConversionError(
            f"{len(problems)} tensors do not fit config.json and model_config.json:\n  {listed}"
        )
    members: dict[str, list[tuple[Tensor, Stored]]] = {}
    for tensor in wanted:
        members.setdefault(tensor.path, []).append((tensor, found[tensor.part, tensor.key]))
    return {
        path: Source(shapes[path], _common_dtype(some), tuple(some))
        for path, some in members.items()
    }


def check_layers(counts: Mapping[str, int], config: ModelConfig):
    """Raises ConversionError for more layers than tensors, before the layers are listed."""
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
    """Splits tensors into weights and rotary frequencies, by part.

    Checkpoints of older releases hold the frequencies of every layer.
    """
    weights, buffers = {}, {}
    for part, tensors in stored.items():
        rotary = [one for one in tensors if ROTARY.fullmatch(_unwrapped(one.key))]
        weights[part] = [one for one in tensors if one not in rotary]
        buffers[part] = rotary
    return weights, buffers


def check_rotary(buffers: Mapping[str, Sequence[Stored]], config: ModelConfig) -> list[str]:
    """Rotary frequencies that are not those of rope_theta and head_dim, a line each."""
    problems = []
    for part, tensors in buffers.items():
        tower = config.encoder if part == "encoder" else config.decoder
        half = tower.head_dim // 2
        expected = tower.rope_theta ** (-np.arange(half) / half)
        for one in tensors:
            if one.dtype not in NUMPY or one.shape != (half,):
                same = False
            else:
                error = 1e-5 if one.dtype == "F32" else 1e-2
                same = np.allclose(one.read().astype(np.float64), expected, rtol=error, atol=1e-7)
            if not same:
                problems.append(
                    f"{part} {one.key}: differs from the frequencies of "
                    f"rope_theta={tower.rope_theta:g} and head_dim={tower.head_dim}"
                )
    return problems


def _common_dtype(members: Sequence[tuple[Tensor, Stored]]) -> np.dtype:
    """The stored dtype or, for layers of different ones, float32, which holds them all."""
    dtypes = {stored.dtype for _, stored in members}
    return NUMPY[dtypes.pop() if len(dtypes) == 1 else "F32"]


def match(
    stored: Mapping[str, Sequence[Stored]], wanted: Sequence[Tensor]
) -> tuple[dict[tuple[str, str], Stored], list[str]]:
    """Stored tensors by (part, table's key), and what is wrong, one line a tensor."""
    expected = {(tensor.part, tensor.key): tensor for tensor in wanted}
    named = [
        ((part, _bare(part, tensor.key)), tensor)
        for part, tensors in stored.items()
        for tensor in tensors
    ]
    found = dict(named)
    problems = [
        f"{_name(name)}: stored {times} times, expected once"
        for name, times in Counter(name for name, _ in named).items()
        if times > 1
    ]
    for name, tensor in found.items():
        problems += _judge(name, tensor, expected, found)
    problems += [
        f"{_name(name)}: missing, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name not in found
    ]
    return found, problems


def _judge(
    name: tuple[str, str],
    tensor: Stored,
    expected: Mapping[tuple[str, str], Tensor],
    found: Mapping[tuple[str, str], Stored],
) -> list[str]:
    original = found.get((name[0], COPIES.get(name, "")))
    wanted = expected.get(name) or original
    if wanted is None:
        return [f"{_name(name)}: unknown, got {list(tensor.shape)} in {tensor.file}"]
    if tensor.dtype not in NUMPY:
        return [f"{_name(name)}: expected dtype {', '.join(NUMPY)}, got {tensor.dtype}"]
    if tensor.shape != wanted.shape:
        return [
            f"{_name(name)}: expected {list(wanted.shape)}, got {list(tensor.shape)} in {tensor.file}"
        ]
    if (
        original is not None
        and wanted is original
        and original.dtype in NUMPY
        and not same_rows(tensor, original)
    ):
        return [
            f"{_name(name)}: differs from {original.key}, but tie_word_embeddings says they are one"
        ]
    return []


def _bare(part: str, key: str) -> str:
    """The table's key for a stored one."""
    key = _unwrapped(key)
    if part == "decoder" and key.startswith(BASE_KEYS):
        return f"model.{key}"
    return key.removeprefix(OPTIONAL_PREFIX.get(part, ""))


def _unwrapped(key: str) -> str:
    while key.startswith((*WRAPPERS, "model.model.", "model.lm_head.")):
        key = key.partition(".")[2]
    return key


def _name(name: tuple[str, str]) -> str:
    return f"{name[0]} {name[1]}"


def same_rows(first: Stored, second: Stored) -> bool:
    """Whether two tensors of one shape hold the same numbers, a few rows at a time."""
    step = max(1, CHUNK // max(1, 4 * math.prod(first.shape[1:])))
    pairs = (
        (first.read(i, i + step), second.read(i, i + step)) for i in range(0, first.shape[0], step)
    )
    return all(
        np.array_equal(one.astype(np.float32), other.astype(np.float32)) for one, other in pairs
    )


def publish_params(params: Params) -> dict[str, dict[str, np.ndarray]]:
    """Float32 tensors of each part by published key, of parameters that are in memory."""
    flat = flatten(params)
    parts: dict[str, dict[str, np.ndarray]] = {"decoder": {}, "encoder": {}, "adapter": {}}
    for tensor in published_tensors({path: tuple(array.shape) for path, array in flat.items()}):
        array = np.asarray(
            flat[tensor.path] if tensor.layer is None else flat[tensor.path][tensor.layer],
            np.float32,
        )
        parts[tensor.part][tensor.key] = to_published(array, tensor.transform)
    return parts
