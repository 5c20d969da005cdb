"""One device and eight compute the same, and errors name what does not divide."""

import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import jax
import numpy as np
import pytest

from lclm_jax.config import ConfigError, MeshConfig
from lclm_jax.data.loading import PackedBatches, StageData
from lclm_jax.distributed.sharding import (
    batch_sharding,
    check_batches,
    global_batch,
    make_mesh,
    own_rows,
    to_spec,
)
from lclm_jax.model.params import abstract_params, flatten, init_params
from lclm_jax.training.state import abstract_state, begin_stage
from lclm_jax.training.step import train_step
from tests.support.gradients import assert_close, loss_and_gradients
from tests.support.records import with_noise


@pytest.fixture
def batch(config, tokenizer):
    return next(iter(PackedBatches(StageData(config, config.stages[1], tokenizer).mix_streams())))


SHAPES = [shape for shape in product((1, 2, 4, 8), repeat=4) if math.prod(shape) == 8]


@pytest.fixture
def wide(config):
    """Eight heads of every kind, which any mesh of eight devices divides."""
    towers = {
        name: replace(tower, heads=8, kv_heads=8, head_dim=4, layers=2)
        for name, tower in (("encoder", config.model.encoder), ("decoder", config.model.decoder))
    }
    return replace(config, model=replace(config.model, **towers))


def test_every_mesh_of_eight_devices_equals_one(wide, batch, one_device, subtests):
    params = with_noise(init_params(wide.model, one_device, seed=0))
    expected = loss_and_gradients(wide, params, batch, one_device)
    for shape in [*SHAPES, (1, 1, 1, 2)]:  # a mesh that splits no rows is a case of its own
        with subtests.test(mesh=shape):
            mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
            result = loss_and_gradients(wide, params, batch, mesh)
            assert result[1].keys() == flatten(params).keys()
            assert_close(result, expected)


def test_a_whole_step_equals_that_of_one_device(config, noisy, batch, one_device):
    expected = loss_and_gradients(config, noisy, batch, one_device)
    mesh, stage = make_mesh(MeshConfig(fsdp=4, tensor=2)), config.stages[0]
    with jax.set_mesh(mesh):
        state = begin_stage(noisy, config, stage, mesh)
        step = jax.jit(partial(train_step, config=config, stage=stage), donate_argnums=0)
        after, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
    assert int(after.step) == 1 and int(after.skipped) == 0
    means = jax.device_get(
        after.moments["adapter/0"][0].mu
    )  # after one step: the clipped gradient, by 1 - beta1
    scale = (1 - config.optimizer.beta1) * min(
        1.0, config.optimizer.clip / float(metrics["gradient_norm"])
    )
    assert_close((metrics["loss"], {path: mean / scale for path, mean in means.items()}), expected)
    # Where the state lies must not change: the second step would be compiled anew.
    for x, before in zip(
        jax.tree.leaves(after), jax.tree.leaves(abstract_state(config, stage, mesh)), strict=True
    ):
        assert x.sharding.is_equivalent_to(before.sharding, x.ndim)


def test_parameters_are_split_over_the_mesh(model_config):
    """No device holds the whole of a matrix; norms and biases are on all."""
    for path, leaf in flatten(
        abstract_params(model_config, make_mesh(MeshConfig(fsdp=4, tensor=2)))
    ).items():
        matrix = not path.endswith(("scale", "bias"))
        assert leaf.sharding.is_fully_replicated != matrix, path


ROWS = ("fsdp", "context")
SPECS = {
    "table": (None, (*ROWS, "tensor")),
    "layers/attention/q": (None, ROWS, "tensor", None),
    "layers/attention/k": (None, ROWS, "tensor", None),
    "layers/attention/v": (None, ROWS, "tensor", None),
    "layers/attention/o": (None, "tensor", None, ROWS),
    "layers/mlp/gate": (None, ROWS, "tensor"),
    "layers/mlp/up": (None, ROWS, "tensor"),
    "layers/mlp/down": (None, "tensor", ROWS),
}


def test_every_parameter_is_split_along_its_own_axes(model_config):
    """Inputs of a layer over fsdp and context, its heads and inner width over tensor."""
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    untied = replace(model_config, decoder=replace(model_config.decoder, tied=False))
    specs = {
        path: tuple(leaf.sharding.spec)
        for path, leaf in flatten(abstract_params(untied, mesh)).items()
    }
    expected = {
        f"{part}/{path}": spec for part in ("encoder", "decoder") for path, spec in SPECS.items()
    }
    expected |= {"head": SPECS["table"], "adapter/fc1": (None, ROWS), "adapter/fc2": (ROWS, None)}
    split = {path: spec for path, spec in specs.items() if any(spec)}
    assert split == expected


def test_activations_are_split_along_their_own_axes():
    """Windows of the encoder over every chip of a row, logits by the vocabulary."""
    assert tuple(to_spec(("batch", "length", "activation"))) == (("data", "fsdp"), "context", None)
    assert tuple(to_spec(("windows", None))) == (("data", "fsdp", "context"), None)
    assert tuple(to_spec(("logits", None))) == ("tensor", None)
    cache = ("layers", "batch", "kv_heads", "length", "head_dim")
    assert tuple(to_spec(cache)) == (None, ("data", "fsdp"), "tensor", "context", None)


def test_mesh_must_fill_the_devices():
    with pytest.raises(ConfigError, match="does not fill 8 devices; set mesh"):
        make_mesh(MeshConfig(data=3, fsdp=1))


def test_dimension_that_does_not_divide(config):
    odd = replace(config.model.encoder, mlp=33)
    with pytest.raises(ConfigError, match=r"mlp.*does not divide"):
        abstract_params(replace(config.model, encoder=odd), make_mesh(MeshConfig(fsdp=4, tensor=2)))


@dataclass(frozen=True)
class Chip:
    """The attributes of a TPU chip that make_mesh reads."""

    id: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU"
    process_index: int = 0
    coords: tuple[int, ...] = (0, 0, 0)
    core_on_chip: int = 0


def test_only_the_axis_data_crosses_slices():
    # Two slices of 2 x 2 x 2, their chips listed in turn.
    chips = [Chip(i, i % 2, coords=(i // 2 % 2, i // 4 % 2, i // 8)) for i in range(16)]
    mesh = make_mesh(MeshConfig(data=4, fsdp=2, context=1, tensor=2), chips)
    assert mesh.devices.shape == (4, 2, 1, 2)
    slices = [{chip.slice_index for chip in part.flat} for part in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}]


def test_slices_must_divide_the_axis_data():
    with pytest.raises(
        ConfigError,
        match=r"mesh\.data must be a multiple of the number of slices, got data=2 on 4 slices",
    ):
        make_mesh(MeshConfig(data=2), [Chip(i, i // 4) for i in range(16)])


def test_axes_must_be_products_of_sides_of_the_slice():
    chips = [
        Chip(i, 0, coords=(i % 4, i // 4 % 4, i // 16), device_kind="TPU v5") for i in range(64)
    ]
    with pytest.raises(
        ConfigError, match="data=2, fsdp=32.* must be a product of sides of the slice"
    ):
        make_mesh(MeshConfig(data=2, fsdp=32), chips)


def test_nodes_of_gpus_are_no_slices():
    gpus = [Chip(i, i // 8, "gpu", "H100") for i in range(16)]
    assert make_mesh(MeshConfig(fsdp=16), gpus).devices.flatten().tolist() == gpus


def test_rows_of_a_process_and_the_batch_they_make():
    where = batch_sharding(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    assert own_rows(where, 8) == list(range(8))  # one process has them all
    batch = {"x": np.arange(24).reshape(8, 3)}
    whole = global_batch(batch, where, 8)["x"]
    np.testing.assert_array_equal(whole, batch["x"])
    assert whole.sharding == where


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        (
            (8, 1, 1, 1),
            {"batch_rows": 12},
            r"data\.batch_rows must divide over mesh\.data \* mesh\.fsdp.*"
            r"data\.batch_rows=12.*multiple of 8",
        ),
        (
            (1, 1, 8, 1),
            {"row_positions": 100},
            r"data\.row_positions must divide over mesh\.context, got data\.row_positions=100",
        ),
        (
            (1, 2, 4, 1),
            {"batch_rows": 2, "row_windows": 3},
            r"stage adapter reads 2 rows at once of 3 windows .*multiple of 8",
        ),
    ],
)
def test_batches_must_divide_over_the_mesh(config, mesh, changes, message):
    odd = replace(config, data=replace(config.data, **changes))
    with jax.set_mesh(make_mesh(MeshConfig(*mesh))), pytest.raises(ConfigError, match=message):
        check_batches(odd)
