"""Capacity: FLOPs and bytes by source, figures of real programs, and the command.

The command compiles for this machine's devices in place of a TPU slice.
"""

import dataclasses
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from configs.lclm_0p6b_4b_16x import config as published
from launch import capacity as capacity_command
from lclm_jax.batch import Places
from lclm_jax.capacity import measure as measure_module
from lclm_jax.capacity import search as search_module
from lclm_jax.capacity.flops import matmul_flops
from lclm_jax.capacity.jaxpr import CacheRead
from lclm_jax.capacity.programs import Program
from lclm_jax.capacity.search import candidates, rank
from lclm_jax.capacity.topology import TopologyError, slice_devices
from lclm_jax.capacity.traffic import moved_bytes
from lclm_jax.config import MeshConfig
from lclm_jax.costs import chips as chips_module
from lclm_jax.costs.chips import CHIPS, parse_slice
from lclm_jax.distributed.sharding import make_mesh, serving_mesh
from lclm_jax.inference.generation import cache_size
from lclm_jax.inference.prompts import CHUNKS
from lclm_jax.model.attention import gpu, tpu
from lclm_jax.model.attention.tpu import TILE
from lclm_jax.training.state import trained_parts

pytestmark = pytest.mark.newest

PODS = parse_slice("v5p:4x4x4")


def traced(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).trace(*arrays).jaxpr.jaxpr


def products(function, *shapes):
    return matmul_flops(traced(function, *shapes))


def moved(function, *shapes, cached=None):
    return moved_bytes(traced(function, *shapes), cached).total()


def test_products_of_loops_branches_and_gradients():
    w = (8, 8)

    def layers(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=5)[0]

    assert products(layers, (4, 8), w).total() == 5 * 2 * 4 * 8 * 8
    assert (
        products(jax.grad(lambda x, w: layers(x, w).sum(), argnums=(0, 1)), (4, 8), w).total()
        == 3 * 5 * 2 * 4 * 8 * 8
    )
    dearest = products(
        lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w), (4, 8), w
    )
    assert dearest.total() == 2 * 2 * 4 * 8 * 8


def test_products_on_every_device():
    """Under shard_map a jaxpr has the shapes of one device."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    rows, whole = jax.P(("data", "fsdp")), jax.P()
    split = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    assert products(split, (16, 8), (8, 8)).total() == 2 * 16 * 8 * 8


def test_products_by_source():
    def named(x, w):
        with jax.named_scope("encoder"):
            x = x @ w
        with jax.named_scope("decoder"), jax.named_scope("attend"):
            return x @ w @ w

    assert products(named, (4, 8), (8, 8)) == {"encoder": 512, "attend": 1024}


def test_bytes_of_products_in_loops():
    """Elementwise work is part of the products beside it."""

    def layers(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=5)[0]

    assert moved(layers, (4, 8), (8, 8)) == 5 * 4 * (32 + 64 + 32)
    assert moved(lambda x: jnp.tanh(x) + 1, (4, 8)) == 0


def test_bytes_of_gathers_and_updates_are_those_of_the_part():
    assert moved(lambda x: x[jnp.array([3, 4])], (100, 8)) == 2 * 4 * 16
    update = jax.lax.dynamic_update_slice_in_dim
    assert moved(lambda x, y: update(x, y, 7, 0), (100, 8), (2, 8)) == 2 * 4 * 16


def test_a_slice_that_a_product_reads_is_no_copy():
    """A slice that a loop takes as its argument is copied."""
    rows = partial(jax.lax.dynamic_slice_in_dim, slice_size=10)

    def directly(x, w, start=5):
        return jnp.einsum("TD,DF->TF", rows(x, start), w)

    def in_a_loop(x, w, start=5):
        part = rows(x, start)
        return jax.lax.fori_loop(0, 3, lambda _, sums: sums + part @ w, jnp.zeros((10, 8)))

    product = 4 * (80 + 64 + 80)
    assert moved(directly, (100, 8), (8, 8)) == product
    assert moved(in_a_loop, (100, 8), (8, 8)) == 3 * product + 2 * 4 * 80


def test_a_loop_of_unknown_length_covers_what_it_cuts():
    """A cache is read as far as it is in use."""

    def read(q, k, end):
        def step(i, sums):
            return sums + q @ jax.lax.dynamic_slice_in_dim(k, 8 * i, 8).T

        return jax.lax.fori_loop(0, end.astype(int), step, jnp.zeros((4, 8)))

    shapes, block = ((4, 16), (80, 16), ()), 2 * 4 * 16 * 8
    assert products(read, *shapes).total() == 10 * block
    half = CacheRead(frozenset({80}), 40, 3)
    assert matmul_flops(traced(read, *shapes), half).total() == 5 * block


def test_of_a_stacked_cache_one_layer_is_read():
    cached = CacheRead(frozenset({512, 1024}), 600, 3)
    assert cached.read_shape((3, 1, 2, 1024, 128)) == (1, 2, 600, 128)
    assert cached.read_shape((1, 2, 512, 128)) == (1, 2, 512, 128)
    assert cached.read_shape((3, 1, 2, 256, 128)) == (3, 1, 2, 256, 128)


def test_scores_in_memory_cost_more_time_than_their_products():
    """A long sequence on an H100 shows it; a kernel writes no scores to memory."""
    length, heads, width = 16384, 32, 128
    q = jax.ShapeDtypeStruct((1, length, heads, width), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, 8, length, width), jnp.bfloat16)
    row = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def read(way):
        run = jax.jit(lambda q, k, v, *row: way(q, k, v, Places(*row), True, ("batch", "length")))
        return run.trace(q, k, k, row, row).jaxpr.jaxpr

    chip, blocked, kernel = CHIPS["h100"], read(gpu.attend_blocked), read(tpu.attend_splash)
    computing = matmul_flops(blocked).total() / chip.peak_flops
    assert moved_bytes(blocked).total() / chip.memory_bandwidth > 3 * computing
    assert not matmul_flops(kernel)
    assert moved_bytes(kernel).total() / chip.memory_bandwidth < 0.1 * computing


def test_turns_are_those_of_a_real_prompt():
    program = Program(published(), published().stages[2], parse_slice("v6e:1x1"), "prefill", 2**20)
    calls, mesh = program.calls(), make_mesh(MeshConfig())
    assert sum(size.filled for size in calls) == 2**16 + 1024
    assert {size.length for size in calls} == set(CHUNKS)
    assert program.largest_call.length == max(CHUNKS) and program.largest_call.cached == 15 * 4096
    whole = sum(size.flops.attention for size in calls)
    assert whole == pytest.approx(4 * 36 * 32 * 128 * (2**16 + 1024) ** 2 / 2)
    with jax.set_mesh(mesh):
        size = 2**16 + 2048 + 256
        assert program.call(mesh).cache_length == cache_size(1, 2**16 + 2048) == size
        eighth = -(-size // (8 * TILE)) * TILE
        assert program.cache_read(calls[1], size).positions == eighth
        assert program.cache_read(program.largest_call, size).positions == size
    compress = dataclasses.replace(program, job="compress")
    assert len(compress.calls()) == 2**20 // 1024 // 16


def test_the_training_step_multiplies_little_more_than_the_model_asks_for():
    """Trace the published stages at full size; attention is excluded.

    Each layer is computed once more in the backward pass. That is a third of the products where the
    decoder is frozen, else a quarter.
    """
    config = published()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_rows=8))
    mesh = make_mesh(MeshConfig())
    for stage in config.stages:
        program = Program(config, stage, PODS)
        with jax.set_mesh(mesh):
            counted = matmul_flops(program.call(mesh).trace().jaxpr.jaxpr)
        ratio = (counted.total() - counted["attend"]) / program.model_flops().products
        assert 1.0 <= ratio <= (1.24 if "decoder" in trained_parts(config, stage) else 1.34), (
            stage.name,
            ratio,
        )
        assert set(counted) <= {"attend", "encoder", "adapter", "decoder", "loss", "other"}


def test_stages_train_their_parts():
    config = published()
    parts = [trained_parts(config, stage) for stage in config.stages]
    assert parts == [{"adapter"}, {"adapter", "encoder"}, *[{"adapter", "encoder", "decoder"}] * 2]


def test_serving_splits_heads_first():
    model = published().model
    assert serving_mesh(model, 4) == MeshConfig(data=1, fsdp=1, context=1, tensor=4)
    assert serving_mesh(model, 64) == MeshConfig(data=1, fsdp=1, context=8, tensor=8)


def test_choices_divide_evenly_and_are_all_different():
    program = Program(published(), published().stages[2], PODS)
    choices = list(candidates(program))
    assert len(
        {
            (choice.program.config.mesh, choice.program.config.run, choice.program.config.model)
            for choice in choices
        }
    ) == len(choices)
    for choice in choices:
        mesh, run = choice.program.config.mesh, choice.program.config.run
        assert mesh.data * mesh.fsdp * mesh.context * mesh.tensor == 64
        assert 256 % (mesh.data * mesh.fsdp * run.micro_batches) == 0
    assert {choice.program.config.model.remat for choice in choices} == {
        "full",
        "attention",
        "dots",
    }
    serving = list(candidates(dataclasses.replace(program, job="decode")))
    meshes = [choice.program.config.mesh for choice in serving]
    assert {(mesh.context, mesh.tensor) for mesh in meshes} == {(64, 1), (32, 2), (16, 4), (8, 8)}


def test_what_fits_is_ranked_by_time():
    def figures(name, fits, seconds):
        return {
            "name": name,
            "fits": fits,
            "estimate": {"call_seconds": [0, seconds]},
            "peak_bytes": 1,
        }

    tried = [
        figures("slow", True, 3.0),
        figures("too large", False, 1.0),
        figures("fast", True, 2.0),
    ]
    assert [result["name"] for result in rank(tried)] == ["fast", "slow", "too large"]


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (16.34G) exceeds available HBM (15.75G). HLO module: "
        "jit_decode_step.",
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.34G of 15.75G hbm. "
        "Exceeded by 604.16M.",
    ],
)
def test_what_the_compiler_needed(message):
    memory = measure_module._exhausted_memory(message, 2**30)
    assert (
        memory["peak_bytes"] == int(16.34 * 2**30)
        and memory["temp_bytes"] + memory["argument_bytes"] == memory["peak_bytes"]
    )


def test_a_program_that_the_jax_here_cannot_read():
    class Newer:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    with pytest.raises(
        TopologyError,
        match=r"jax 1, libtpu 2 cannot read the result: INTERNAL.*install a newer jax",
    ):
        measure_module._read_hlo(Newer(), "jax 1, libtpu 2")


@pytest.fixture
def here(monkeypatch):
    """Slices of v5e are this machine's eight devices."""
    for module in (measure_module, search_module):
        monkeypatch.setattr(module, "slice_devices", lambda target: jax.devices()[: target.chips])


@pytest.fixture
def small(config_once, tmp_path, monkeypatch):
    """A config file whose config() is the tests' own."""
    monkeypatch.setattr("lclm_jax.config.for_test", config_once, raising=False)
    file = tmp_path / "small.py"
    file.write_text(
        "from lclm_jax import config as module\n\ndef config():\n    return module.for_test\n",
        encoding="utf-8",
    )
    return file


KEYS = {
    "fits", "hbm_bytes", "argument_bytes", "temp_bytes", "peak_bytes", "matmul_flops",
    "model_flops", "moved_bytes", "collective_bytes", "compile_seconds",
}  # fmt: skip


def test_the_command(here, small, tmp_path, command, capsys):
    output, page = tmp_path / "out" / "figures.json", tmp_path / "page.html"
    run = partial(
        command, capacity_command, "--config", small, "--json", output, "--html", page, "--slice"
    )
    assert run("v5e:2x4", "--set", "mesh.fsdp=8") == 0
    figures = json.loads(output.read_text(encoding="utf-8"))
    assert figures.keys() >= KEYS and figures["fits"] and figures["mesh"]["fsdp"] == 8
    assert (
        figures["collective_bytes"]
        == sum(collective["bytes"] for collective in figures["collectives"])
        > 0
    )
    assert (
        "train on v5e:2x4 fits" in capsys.readouterr().out
        and "train on v5e:2x4" in page.read_text(encoding="utf-8")
    )
    for job in ("compress", "prefill", "decode"):
        assert run("v5e:1x2", "--job", job, "--context", 1000) == 0
        figures = json.loads(output.read_text(encoding="utf-8"))
        assert (
            figures["mesh"]["tensor"] == 2 and figures["matmul_flops"] >= figures["model_flops"] > 0
        )
        whole = figures["estimate"].get("whole")
        assert (whole is None) == (job == "decode")
        if whole:
            assert whole["call_seconds"] >= figures["estimate"]["call_seconds"]
            assert "the whole context" in capsys.readouterr().out


def test_another_batch_leaves_the_stage_its_budget(here, small, tmp_path, command):
    output, estimates = tmp_path / "figures.json", []
    for rows in (8, 16):
        assert (
            command(
                capacity_command,
                "--config",
                small,
                "--slice",
                "v5e:1x1",
                "--json",
                output,
                "--set",
                f"data.batch_rows={rows}",
            )
            == 0
        )
        estimates.append(json.loads(output.read_text(encoding="utf-8"))["estimate"])
    assert [estimate["stage_positions"] for estimate in estimates] == [4 * 8 * 96] * 2
    assert [estimate["stage_steps"] for estimate in estimates] == [4, 2]
    assert estimates[0]["stage_chip_hours"] == pytest.approx(
        estimates[1]["stage_chip_hours"], rel=0.01
    )


def test_too_large_is_an_answer(here, small, tmp_path, command, capsys, monkeypatch):
    tiny = dataclasses.replace(chips_module.CHIPS["v5e"], memory_bytes=1e5)
    monkeypatch.setitem(chips_module.CHIPS, "v5e", tiny)
    output = tmp_path / "figures.json"
    assert command(capacity_command, "--config", small, "--slice", "v5e:1x1", "--json", output) == 3
    assert not json.loads(output.read_text(encoding="utf-8"))["fits"]
    printed = capsys.readouterr().out
    assert "does not fit" in printed and "a slice of more chips than 1" in printed


def test_search(here, small, tmp_path, command, capsys):
    output = tmp_path / "figures.json"
    changed = ("--set", "data.row_positions=256", "--search", "--tries", 3)
    assert (
        command(
            capacity_command,
            "--config",
            small,
            "--slice",
            "v5e:2x2",
            "--json",
            output,
            "--html",
            tmp_path / "p.html",
            *changed,
        )
        == 0
    )
    tried = json.loads(output.read_text(encoding="utf-8"))
    assert len(tried) == 3 and tried == rank(tried)
    assert "Choices, the best first" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_search_begins_with_what_is_given(here, small, tmp_path, command):
    """The given mesh fits, and takes the only try."""
    output = tmp_path / "figures.json"
    changed = (
        "--set",
        "mesh.fsdp=2",
        "--set",
        "mesh.context=2",
        "--set",
        "data.row_positions=256",
        "--search",
        "--tries",
        1,
    )
    assert (
        command(
            capacity_command, "--config", small, "--slice", "v5e:2x2", "--json", output, *changed
        )
        == 0
    )
    (result,) = json.loads(output.read_text(encoding="utf-8"))
    assert result["mesh"] == {"data": 1, "fsdp": 2, "context": 2, "tensor": 1} and result["fits"]


@pytest.mark.parametrize(("name", "remedy"), [("v5e:2x2", "'.[capacity]'"), ("h100:8", "'.[gpu]'")])
def test_a_slice_without_its_compiler(name, remedy, monkeypatch):
    def broken(**_):
        raise RuntimeError("no such platform")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", broken)
    with pytest.raises(TopologyError, match=f"no such platform.*{re.escape(remedy)}"):
        slice_devices(parse_slice(name))


def test_search_leaves_out_what_does_not_divide_the_model(here, small, tmp_path, command):
    """A width of 20 has four parts, not eight: copies of the model are left."""
    output = tmp_path / "figures.json"
    changed = ("--set", "model.encoder.width=20", "--search", "--tries", 1)
    assert (
        command(
            capacity_command, "--config", small, "--slice", "v5e:2x4", "--json", output, *changed
        )
        == 0
    )
    assert json.loads(output.read_text(encoding="utf-8"))[0]["mesh"]["data"] == 2


def test_a_stage_that_is_not_there(small, command, capsys):
    assert (
        command(capacity_command, "--config", small, "--slice", "v5e:2x2", "--stage", "nothing")
        == 2
    )
    assert "expected a stage of adapter, all, got --stage nothing" in capsys.readouterr().err
