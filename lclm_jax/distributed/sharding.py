"""The device mesh, and the one table that maps logical axes to mesh axes."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lclm_jax.config import Config, ConfigError, MeshConfig, ModelConfig

Tree = TypeVar("Tree")

# The first may cross slices; the last communicates most.
MESH_AXES = ("data", "fsdp", "context", "tensor")
# Chips with a torus of two dimensions, which must be split to carry more than two mesh axes.
SPLIT_AXES = ("TPU v5 lite", "TPU v5e")

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
    ("vocab", None),  # need not divide over the mesh: a table is split by width
    ("table", ("fsdp", "context", "tensor")),
    ("logits", "tensor"),  # entries of the vocabulary, padded where they do not divide
)


# Settings of JAX with which the programs cannot be compiled or run -> the values they need.
FLAGS = {
    "jax_enable_x64": (False,),
    "jax_disable_jit": (False,),
    "jax_no_tracing": (False,),
    "jax_numpy_dtype_promotion": ("standard",),
    "jax_numpy_rank_promotion": ("allow", "warn"),
    "jax_transfer_guard_host_to_device": (None, "allow", "log"),
    "jax_transfer_guard_device_to_host": (None, "allow", "log"),
    "jax_transfer_guard_device_to_device": (None, "allow", "log"),
}


def check_flags():
    """Raise ConfigError for a setting of JAX that the programs cannot run with."""
    for name, allowed in FLAGS.items():
        value = getattr(jax.config, name, allowed[0])
        if value not in allowed:
            raise ConfigError(
                f"{name} must be {' or '.join(map(str, allowed))}, got {value}; "
                f"unset {name.upper()} or jax.config.update({name!r}, {allowed[-1]!r})"
            )


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the device mesh; one axis may be -1 and takes the devices that the others leave.

    Of several slices, each has its own part of the axis data, and every other axis stays within a
    slice. Raises ConfigError when the axes do not multiply to the number of devices, when slices do
    not divide data, and for settings of JAX that the programs cannot run with.
    """
    check_flags()
    devices = devices or jax.devices()
    shape = [getattr(config, axis) for axis in MESH_AXES]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = max(1, len(devices) // -math.prod(shape))
    if math.prod(shape) != len(devices):
        raise ConfigError(
            f"mesh {dict(zip(MESH_AXES, shape, strict=True))} does not fill {len(devices)} "
            "devices; set mesh.<axis>"
        )
    slices = 1
    if devices[0].platform == "tpu":
        slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise ConfigError(
            "mesh.data must be a multiple of the number of slices, "
            f"got data={shape[0]} on {slices} slices"
        )
    # Not jax.make_mesh: it refuses several slices, and takes the hosts of a GPU cluster for slices.
    split = devices[0].device_kind in SPLIT_AXES
    try:
        if slices == 1:
            arranged = mesh_utils.create_device_mesh(
                shape, devices, allow_split_physical_axes=split
            )
        else:
            within, across = [shape[0] // slices, *shape[1:]], [slices, 1, 1, 1]
            arranged = mesh_utils.create_hybrid_device_mesh(
                within, across, devices, allow_split_physical_axes=split
            )
    except NotImplementedError as error:
        sizes = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))
        raise ConfigError(
            f"each of mesh {sizes} must be a product of sides of the slice; "
            f"set mesh.<axis>: {error}"
        ) from error
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def serving_mesh(config: ModelConfig, chips: int) -> MeshConfig:
    """Return the mesh for generation on a number of chips.

    The axis `tensor` splits heads as far as the kv heads of both towers allow; `context` splits
    the positions of the cache over the rest.
    """
    tensor = math.gcd(chips, config.decoder.kv_heads, config.encoder.kv_heads)
    return MeshConfig(data=1, fsdp=1, context=chips // tensor, tensor=tensor)


def one_device() -> Mesh:
    """Return the mesh of this process's first device."""
    return make_mesh(MeshConfig(), jax.local_devices()[:1])


def platform() -> str:
    """Return the platform of the devices of the mesh in scope: cpu, tpu or gpu.

    Without a mesh in scope it is the platform of this process's own devices.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def device_kind() -> str:
    """Return the model of the devices of the mesh in scope, such as "NVIDIA H100 80GB HBM3".

    Without a mesh in scope it is the model of this process's own devices.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device is not None else jax.devices()[0].device_kind


def mesh_axes(*axes: str | None) -> tuple[str, ...]:
    """Return the mesh axes that split any of these logical axes; none without a mesh in scope."""
    if jax.sharding.get_abstract_mesh().empty:
        return ()
    split = (dict(RULES)[axis] for axis in axes if axis)
    return tuple(
        name for names in split for name in ([names] if isinstance(names, str) else names or ())
    )


def splits(axis: str | None) -> int:
    """Return the number of parts into which the mesh in scope splits a logical axis."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in mesh_axes(axis))


def to_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Return the PartitionSpec of an array with these logical axes, by `RULES`."""
    return nn.logical_to_mesh_axes(axes, RULES) or PartitionSpec()


def constrain(array: jax.Array, *axes: str | None) -> jax.Array:
    """Ask the compiler to lay `array` out by its logical axes.

    Without a mesh in scope it returns the array as it is.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, to_spec(axes))


def shardings(boxed, mesh: Mesh):
    """Return the shardings of a tree of boxed (logically annotated) parameters or shapes.

    Raises ConfigError where a mesh axis does not divide the dimension it splits.
    """

    def leaf_sharding(path, leaf):
        axes = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
        shape = nn.meta.unbox(leaf).shape
        sharding = NamedSharding(mesh, to_spec(axes))
        try:
            sharding.shard_shape(shape)
        except ValueError as error:
            raise ConfigError(
                f"{jax.tree_util.keystr(path)} {shape} does not divide over the mesh by {axes}; "
                "set mesh.data to keep copies of the model on parts of the devices, or other "
                f"axes: {error}"
            ) from error
        return sharding

    return jax.tree_util.tree_map_with_path(
        leaf_sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch, by rows over all batch axes."""
    return NamedSharding(mesh, to_spec(("batch",)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts a whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(array: Any) -> Any:
    """Put a whole host array on every device of the mesh in scope.

    Without a mesh in scope it returns the array as it is.
    """
    mesh = jax.sharding.get_mesh()
    return array if mesh.empty else jax.device_put(array, replicated(mesh))


def own_rows(sharding: NamedSharding, rows: int) -> list[int]:
    """Return the rows of a global batch that this process's devices hold, in ascending order.

    Processes that split a row among them all hold it.
    """
    indices = sharding.addressable_devices_indices_map((rows,)).values()
    return sorted({row for index in indices if index for row in range(*index[0].indices(rows))})


def global_batch(own: Tree, sharding: NamedSharding, rows: int) -> Tree:
    """Return a tree of global arrays of `rows` rows, each process giving its `own_rows`."""
    where = own_rows(sharding, rows)

    def global_array(x):
        def part(index: tuple[slice, ...] | None):
            assert index is not None  # JAX asks for the parts of this process's devices only
            start, stop, _ = index[0].indices(rows)
            begin = where.index(start)
            return x[begin : begin + stop - start]

        return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, part)

    return jax.tree.map(global_array, own)


def check_batches(config: Config):
    """Raise ConfigError unless the mesh in scope divides the batches of every stage.

    The message names the settings to change.
    """
    data, parts = config.data, config.run.micro_batches
    rows = data.batch_rows // parts
    mesh = ", ".join(
        f"{axis}={size}" for axis, size in jax.sharding.get_abstract_mesh().shape.items()
    )
    if data.batch_rows % (parts * splits("batch")):
        raise ConfigError(
            "data.batch_rows must divide over mesh.data * mesh.fsdp, in each of run.micro_batches; "
            f"got data.batch_rows={data.batch_rows}, run.micro_batches={parts} on the mesh {mesh}; "
            f"set data.batch_rows to a multiple of {parts * splits('batch')}"
        )
    if data.row_positions % splits("length"):
        raise ConfigError(
            "data.row_positions must divide over mesh.context, "
            f"got data.row_positions={data.row_positions} on the mesh {mesh}"
        )
    for stage in config.stages:
        windows = stage.row_windows or data.row_windows
        if rows * windows % splits("windows"):
            owner = "data" if stage.row_windows is None else f"stages.{stage.name}"
            name = f"{owner}.row_windows"
            raise ConfigError(
                "windows must divide over mesh.data * mesh.fsdp * mesh.context; "
                f"stage {stage.name} reads {rows} rows at once of {windows} windows on the mesh "
                f"{mesh}; set data.batch_rows or {name} so that their product is a multiple of "
                f"{splits('windows') * parts}"
            )
