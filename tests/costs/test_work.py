"""FLOPs and bytes of reading and training against figures computed by hand."""

import pytest

from configs.lclm_0p6b_4b_16x import config as published
from lclm_jax.config import CompressionConfig, ModelConfig
from lclm_jax.costs.chips import SliceError, parse_slice
from lclm_jax.costs.work import compressed_cost, training_flops, uncompressed_cost
from tests.support.records import TOWER

pytestmark = pytest.mark.newest


def test_reading_a_context_of_the_smallest_model():
    config = ModelConfig(TOWER, TOWER, CompressionConfig(2, 4), dtype="float32")
    weights = 8 * 8 * 4 + 3 * 8 * 8  # of a layer
    plain = uncompressed_cost(8, config)
    assert (
        plain.decoder_flops == 2 * 8 * weights + 4 * 32 * 8 and plain.cache_bytes == 2 * 8 * 8 * 4
    )
    read = compressed_cost(8, config)
    assert read.positions == 4 + 2 and read.cache_bytes == 2 * 8 * 6 * 4
    assert read.encoder_flops == 2 * (2 * 4 * weights + 4 * 8 * 8)
    assert read.adapter_flops == 2 * 4 * 8 * (8 + 8)
    assert read.flops == read.encoder_flops + read.adapter_flops + read.decoder_flops


def test_training_on_a_row_of_the_smallest_model():
    config = ModelConfig(TOWER, TOWER, CompressionConfig(2, 4))
    layer = 2 * (8 * 8 * 4 + 3 * 8 * 8)
    encoder, decoder = 3 * (4 * layer + 4 * 8 * 8), 10 * layer + 4 * 50 * 8
    adapter, head = 2 * 6 * 8 * 16, 2 * 10 * 8 * 128
    assert training_flops(config, positions=10, windows=3).total == 3 * (
        encoder + adapter + decoder + head
    )


def test_frozen_parts_need_fewer_gradients():
    """Only the adapter is trained: the encoder runs forward, the decoder passes gradients on."""
    config = ModelConfig(TOWER, TOWER, CompressionConfig(2, 4))
    layer, adapter, head = 2 * (8 * 8 * 4 + 3 * 8 * 8), 2 * 6 * 8 * 16, 2 * 10 * 8 * 128
    flops = training_flops(config, positions=10, windows=3, trained=("adapter",))
    assert flops.products == 3 * 4 * layer + 3 * adapter + 2 * (10 * layer + head)
    assert flops.attention == 3 * 4 * 8 * 8 + 3 * 4 * 50 * 8
    assert training_flops(
        config, 10, 3, trained=("decoder",)
    ).products == 3 * 4 * layer + adapter + 3 * (10 * layer + head)


def test_the_published_model_costs_six_flops_a_weight_and_token_and_attention():
    """128 rows of 16,384 positions, half of them latents of 16 tokens."""
    assert 128 * training_flops(published().model, 16384, 128).total == pytest.approx(
        1.313e17, rel=1e-3
    )


def test_slices_by_name():
    slice_ = parse_slice("v5p:4x4x4")
    assert (slice_.chips, slice_.hosts, str(slice_), slice_.chip.kind) == (
        64,
        16,
        "v5p:4x4x4",
        "tpu",
    )
    assert parse_slice("v6e:1x1").hosts == 1
    assert parse_slice("h100:16").hosts == 2


@pytest.mark.parametrize(
    "name", ["v7x:2x2", "v6e-8", "v5p:128", "v5e", "v5e:0x4", "v5e:axb", "h100:2x8", ""]
)
def test_other_names_are_refused(name):
    with pytest.raises(SliceError, match="expected CHIP:SHAPE|has . dimensions"):
        parse_slice(name)
