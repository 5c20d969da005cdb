"""The reader of HLO: texts written by hand, and a compiled program with known collectives."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lclm_jax.capacity.hlo import HloError, collectives
from lclm_jax.config import MeshConfig
from lclm_jax.distributed.sharding import make_mesh

pytestmark = pytest.mark.newest

MESH = {"data": 2, "fsdp": 4}
MODULE = """HloModule step

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (carry: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %carry = (s32[], bf16[8]{0:T(256)(128)(2,1)}) parameter(0)
  %kernel = bf16[8]{0} custom-call(%carry), custom_call_target="tpu_custom_call", \
backend_config={"text": "module {
}} // not the end of anything
"}
  %part = bf16[8]{0:T(256)(128)(2,1)} get-tuple-element(%carry), index=1
  %whole = bf16[4,8]{1,0} all-gather(%part), channel_id=1, replica_groups=GROUPS, \
metadata={op_name="step/gather"}
  %one = s32[]{:T(128)} constant(1)
  %count = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %more = s32[]{:T(128)} add(%count, %one)
  ROOT %next = (s32[], bf16[8]) tuple(%more, %part)
}

%condition (carry: (s32[], bf16[8])) -> pred[] {
  %end = s32[]{:T(128)} constant(36)
  %carry.1 = (s32[], bf16[8]) parameter(0)
  %number = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%number, %end), direction=LT
}

ENTRY %main (input: f32[10]) -> f32[10] {
  %input = f32[10]{0} parameter(0)
  %begin = (s32[], bf16[8]) tuple(%input)
  %loop = (s32[], bf16[8]) while(%begin), condition=%condition, body=%bodyKNOWN
  %started = (f32[10]{0}, f32[40]{0}) all-gather-start(%input), \
replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}
  %done = f32[40]{0} all-gather-done(%started)
  ROOT %total = f32[10]{0} all-reduce(%input), replica_groups={}, to_apply=%add
}
"""


def read(groups="[2,4]<=[8]", known=""):
    return collectives(MODULE.replace("GROUPS", groups).replace("KNOWN", known), MESH)


def test_collectives_of_loops_count_as_often_as_the_loop_runs():
    by_kind = {(collective.kind, collective.axes): collective for collective in read()}
    gathered = by_kind["all-gather", ("fsdp",)]
    assert (gathered.times, gathered.bytes, gathered.total) == (36, {"bf16": 64}, 36 * 64)
    assert gathered.name == "step/gather"
    assert by_kind["all-gather", ("data",)].bytes == {"f32": 160}, (
        "a started operation's result holds its operand, too"
    )
    assert by_kind["all-reduce", ("data", "fsdp")].total == 40
    assert len(by_kind) == 3


def test_a_loop_may_say_how_often_it_runs():
    assert (
        max(
            collective.times
            for collective in read(known=', backend_config={"known_trip_count":{"n":"7"}}')
        )
        == 7
    )


def test_an_unrolled_loop_runs_less_often():
    text = MODULE.replace("GROUPS", "{}").replace("KNOWN", "").replace("constant(1)", "constant(5)")
    assert max(collective.times for collective in collectives(text, MESH)) == 8  # 0, 5, ... 35


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("[2,4]<=[8]", ("fsdp",)),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("[1,8]<=[8]", ("data", "fsdp")),
        ("{{0,1,2,3},{4,5,6,7}}", ("fsdp",)),
        ("mesh['data'=2,'fsdp'=4] {'fsdp'}", ("fsdp",)),
        ("mesh['axis_0'=8] {'axis_0'}", ("data", "fsdp")),
        ("mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", ("fsdp",)),
        ("mesh['axis_0'=8] {'axis_0':(1)2}", ("data",)),
        ("mesh['axis_0'=8] {'axis_0':(2)4}", ("fsdp",)),
    ],
)
def test_groups_in_every_spelling(groups, axes):
    assert axes in {collective.axes for collective in read(groups) if collective.times == 36}


def test_a_collective_that_cannot_be_reached_is_an_error():
    with pytest.raises(
        HloError, match="expected all 3 printed collectives in computations that run, found 2"
    ):
        collectives(
            MODULE.replace("GROUPS", "[1,8]<=[8]").replace("body=%bodyKNOWN", "body=%add"), MESH
        )


def test_a_collective_in_pieces_counts_once():
    """Inside fusions a TPU gathers step by step, and prints the whole at every step."""
    whole = (
        "%whole = bf16[4,8]{1,0} all-gather(%part), channel_id=1, replica_groups={}, "
        'frontend_attributes={chain_id="3"}\n'
    )
    text = (
        MODULE.replace("GROUPS", "{}")
        .replace("KNOWN", "")
        .replace("  %started", f"  {whole}  {whole.replace('whole', 'again')}  %started")
    )
    assert [
        collective.total
        for collective in collectives(text, MESH)
        if collective.times == 1 and collective.bytes.get("bf16")
    ] == [64]


def test_what_goes_to_other_slices():
    """The host sends it: of a tensor of 10, and of nothing else."""
    attributes = (
        'is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    lines = (
        "  %token = token[] after-all()\n"
        f"  %sent = (f32[10], u32[], token[]) send(%input, %token), {attributes}\n"
        f"  %got = (f32[10], u32[], token[]) recv(%token), {attributes}\n  %done"
    )
    exchanges = collectives(
        MODULE.replace("GROUPS", "{}").replace("KNOWN", "").replace("  %done", lines), MESH
    )
    assert [
        (collective.kind, collective.total)
        for collective in exchanges
        if collective.axes == ("data",) and collective.kind == "all-reduce"
    ] == [("all-reduce", 40)]


def test_groups_in_another_spelling():
    with pytest.raises(HloError, match="expected groups of devices"):
        read("everyone")


def test_a_loop_without_an_end_is_an_error():
    with pytest.raises(HloError, match="one constant in the condition"):
        collectives(
            MODULE.replace("constant(36)", "iota()").replace("GROUPS", "{}").replace("KNOWN", ""),
            MESH,
        )


def test_text_that_is_no_module():
    with pytest.raises(HloError, match="expected the text of an HLO module"):
        collectives("nothing", MESH)


def test_a_compiled_program():
    """Weights of five layers are gathered one by one from four devices; a sum is over all eight."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))

    whole = NamedSharding(mesh, PartitionSpec())

    @partial(jax.jit, out_shardings=whole)
    def run(x, weights):
        def layer(x, w):
            return jax.lax.with_sharding_constraint(
                jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), rows.sharding
            ), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0])

    rows = jax.ShapeDtypeStruct(
        (16, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    )
    layers = jax.ShapeDtypeStruct(
        (5, 64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    )
    exchanges = collectives(run.lower(rows, layers).compile().as_text(), dict(mesh.shape))
    gathered = sum(collective.total for collective in exchanges if collective.axes == ("fsdp",))
    assert gathered == 5 * 64 * 64 * 4
    assert sum(collective.total for collective in exchanges if len(collective.axes) == 2) == 4
