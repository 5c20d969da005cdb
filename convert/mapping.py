"""Published tensors and our parameters: one table, read in both directions, and the strict check of a file against it."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import flax.linen as nn
import jax
import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.errors import UserError
from lclm_jax.optim import Flat, flatten, unflatten
from lclm_jax.progress import track
from lclm_jax.state import init_boxed
from lclm_jax.typing import Params

# A torch Linear stores [outputs, inputs]; ours is [inputs, outputs] with heads on an axis of their own.
# Transform -> how many of our leading axes are inputs; None leaves the tensor as it is.
TRANSFORMS = {
    "none": None,
    "transpose": 1,  # [out, in] <-> [in, out]
    "split_heads": 1,  # [N*H, D] <-> [D, N, H]
    "join_heads": 2,  # [D, N*H] <-> [N, H, D]
}
DTYPES = ("F32", "BF16", "F16")


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
)
OPTIONAL_PREFIX = {"encoder": "model."}  # files saved with a head's wrapper around the model carry it
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
    """What the mapping needs to know of a tensor in a file; `convert.hf_files` has them."""

    @property
    def key(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    @property
    def file(self) -> Path: ...

    def load(self) -> np.ndarray:
        """The weights in float32."""
        ...


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its flat path; nothing is allocated."""
    boxed = jax.eval_shape(partial(init_boxed, config), jax.random.key(0))
    return {path: tuple(leaf.shape) for path, leaf in flatten(nn.meta.unbox(boxed)).items()}


def published_tensors(shapes: Mapping[str, tuple[int, ...]], table: Sequence[Rule] = TABLE) -> list[Tensor]:
    """Every tensor of a published checkpoint whose parameters have these shapes, in the order of the table.

    >>> shapes {"decoder/layers/attention/q": (2, 96, 6, 16)}: two tensors [96, 96], model.layers.0... and model.layers.1...
    Raises ConversionError for a parameter without a rule: the table is behind the model.
    """
    without = sorted(set(shapes) - {rule.ours for rule in table})
    if without:
        raise ConversionError(f"no rule in convert/mapping.py publishes the parameters {', '.join(without)}; add rows to TABLE")
    return [tensor for rule in table if rule.ours in shapes for tensor in _expand(rule, shapes[rule.ours])]


def _expand(rule: Rule, shape: tuple[int, ...]) -> Iterator[Tensor]:
    if "{layer}" not in rule.published:
        yield Tensor(rule.part, rule.published, published_shape(shape, rule.transform), rule.ours, None, rule.transform)
        return
    for layer in range(shape[0]):
        key, published = rule.published.format(layer=layer), published_shape(shape[1:], rule.transform)
        yield Tensor(rule.part, key, published, rule.ours, layer, rule.transform)


def published_shape(shape: tuple[int, ...], transform: str) -> tuple[int, ...]:
    """Shape of the published tensor from that of our array, the layer axis taken off."""
    inputs = TRANSFORMS[transform]
    return shape if inputs is None else (math.prod(shape[inputs:]), math.prod(shape[:inputs]))


def to_published(array: np.ndarray, transform: str) -> np.ndarray:
    """Our array, without layer axis, as the published tensor, contiguous."""
    inputs = TRANSFORMS[transform]
    if inputs is not None:
        array = array.reshape(math.prod(array.shape[:inputs]), -1).T
    return np.ascontiguousarray(array)  # safetensors writes the buffer, whatever the strides say


def to_ours(tensor: np.ndarray, transform: str, shape: tuple[int, ...]) -> np.ndarray:
    """A published tensor as our array of `shape`, without layer axis; the inverse of `to_published`."""
    return tensor if TRANSFORMS[transform] is None else tensor.T.reshape(shape)


def read_params(stored: Mapping[str, Sequence[Stored]], config: ModelConfig) -> Params:
    """Float32 parameters from the stored tensors of each part.

    Raises ConversionError that names every tensor that is unknown, missing, there twice, of another shape or of a dtype
    that holds no weights; all headers are checked before any weight is read.
    """
    shapes = parameter_shapes(config)
    wanted = published_tensors(shapes)
    found, problems = match(stored, wanted)
    if problems:
        listed = "\n  ".join(problems)
        raise ConversionError(f"{len(problems)} tensors do not fit config.json and model_config.json:\n  {listed}")
    flat: Flat = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    for tensor in track(wanted, "reading tensors"):
        target = flat[tensor.path] if tensor.layer is None else flat[tensor.path][tensor.layer]
        target[...] = to_ours(found[tensor.part, tensor.key].load(), tensor.transform, target.shape)
    return unflatten(flat)


def match(stored: Mapping[str, Sequence[Stored]], wanted: Sequence[Tensor]) -> tuple[dict[tuple[str, str], Stored], list[str]]:
    """Stored tensors by (part, table's key), and what is wrong, one line a tensor."""
    expected = {(tensor.part, tensor.key): tensor for tensor in wanted}
    named = [((part, _bare(part, tensor.key)), tensor) for part, tensors in stored.items() for tensor in tensors]
    found = dict(named)
    problems = [
        f"{_name(name)}: stored {times} times, expected once"
        for name, times in Counter(name for name, _ in named).items()
        if times > 1
    ]
    for name, tensor in found.items():
        problems += _judge(name, tensor, expected, found)
    problems += [
        f"{_name(name)}: missing, expected {list(tensor.shape)}" for name, tensor in expected.items() if name not in found
    ]
    return found, problems


def _judge(
    name: tuple[str, str], tensor: Stored, expected: Mapping[tuple[str, str], Tensor], found: Mapping[tuple[str, str], Stored]
) -> list[str]:
    original = found.get((name[0], COPIES.get(name, "")))
    wanted = expected.get(name) or original
    if wanted is None:
        return [f"{_name(name)}: unknown, got {list(tensor.shape)} in {tensor.file}"]
    if tensor.dtype not in DTYPES:
        return [f"{_name(name)}: expected dtype {', '.join(DTYPES)}, got {tensor.dtype}"]
    if tensor.shape != wanted.shape:
        return [f"{_name(name)}: expected {list(wanted.shape)}, got {list(tensor.shape)} in {tensor.file}"]
    if (
        original is not None
        and wanted is original
        and original.dtype in DTYPES
        and not np.array_equal(tensor.load(), original.load())
    ):
        return [f"{_name(name)}: differs from {original.key}, but tie_word_embeddings says they are one"]
    return []


def _bare(part: str, key: str) -> str:
    return key.removeprefix(OPTIONAL_PREFIX.get(part, ""))


def _name(name: tuple[str, str]) -> str:
    return f"{name[0]} {name[1]}"


def publish_params(params: Params) -> dict[str, dict[str, np.ndarray]]:
    """Float32 tensors of each part by published key; the inverse of `read_params`."""
    flat = flatten(params)
    parts: dict[str, dict[str, np.ndarray]] = {"decoder": {}, "encoder": {}, "adapter": {}}
    for tensor in published_tensors({path: tuple(array.shape) for path, array in flat.items()}):
        array = np.asarray(flat[tensor.path] if tensor.layer is None else flat[tensor.path][tensor.layer], np.float32)
        parts[tensor.part][tensor.key] = to_published(array, tensor.transform)
    return parts
