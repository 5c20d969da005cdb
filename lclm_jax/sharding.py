"""The mesh, and the one table that maps logical axes to mesh axes."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lclm_jax.config import ConfigError, MeshConfig

MESH_AXES = ("data", "fsdp", "context", "tensor")  # the first may cross slices, the last moves most

# Logical axis of a parameter or an activation -> mesh axes that split it.
RULES = (
    ("batch", ("data", "fsdp")),
    ("windows", ("data", "fsdp", "context")),  # the encoder's rows: no chip idles while it reads
    ("length", "context"),
    ("activation", None),
    ("layers", None),
    ("embed", ("fsdp", "context")),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("mlp", "tensor"),
    ("vocab", None),  # of a table, which need not divide; what is split is its width
    ("table", ("fsdp", "context", "tensor")),
    ("logits", "tensor"),  # entries of the vocabulary, padded where they do not divide
)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The device mesh; one axis may be -1 and takes the devices the others leave.

    Raises ConfigError when the axes do not multiply to the number of devices.
    """
    devices = devices or jax.devices()
    shape = [getattr(config, axis) for axis in MESH_AXES]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = max(1, len(devices) // -math.prod(shape))
    if math.prod(shape) != len(devices):
        raise ConfigError(
            f"mesh {dict(zip(MESH_AXES, shape, strict=True))} does not fill {len(devices)} devices; set mesh.<axis>"
        )
    return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def one_device() -> Mesh:
    """The mesh of this process's first device."""
    return make_mesh(MeshConfig(), jax.devices()[:1])


def platform() -> str:
    """What the devices of the mesh in scope are: cpu, tpu, gpu; without a mesh, this process's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def mesh_axes(*axes: str | None) -> tuple[str, ...]:
    """The mesh axes that split any of these logical axes; none without a mesh in scope."""
    if jax.sharding.get_abstract_mesh().empty:
        return ()
    split = (dict(RULES)[axis] for axis in axes if axis)
    return tuple(name for names in split for name in ([names] if isinstance(names, str) else names or ()))


def splits(axis: str | None) -> int:
    """Into how many parts the mesh in scope splits a logical axis."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in mesh_axes(axis))


def to_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Logical axes of one array -> its PartitionSpec, by `RULES`."""
    return nn.logical_to_mesh_axes(axes, RULES) or PartitionSpec()


def constrain(array: jax.Array, *axes: str | None) -> jax.Array:
    """Asks the compiler to lay `array` out by its logical axes; without a mesh in scope it does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, to_spec(axes))


def shardings(boxed, mesh: Mesh):
    """Shardings of a tree of boxed (logically annotated) parameters or their abstract shapes.

    Raises ConfigError where a mesh axis does not divide the dimension it splits.
    """

    def one(path, leaf):
        axes = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
        shape = nn.meta.unbox(leaf).shape
        sharding = NamedSharding(mesh, to_spec(axes))
        try:
            sharding.shard_shape(shape)
        except ValueError as error:
            raise ConfigError(f"{jax.tree_util.keystr(path)} {shape} does not divide over the mesh by {axes}: {error}") from error
        return sharding

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over all batch axes."""
    return NamedSharding(mesh, to_spec(("batch",)))
