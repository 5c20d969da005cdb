"""The paper's search is that of the configs, and its orders follow from its losses."""

from dataclasses import replace

import pytest

from configs import scratch_0p6b
from lclm_jax.errors import ConfigError
from lclm_jax.sweeps.analysis import paper
from lclm_jax.sweeps.analysis.paper import (
    DEFAULT,
    SEARCH,
    paper_expectations,
    paper_loss,
    paper_order,
)


def test_the_default_is_the_config_of_the_search():
    config = scratch_0p6b.config()
    model, compression = config.model, config.model.compression
    assert {
        "pooling": compression.pooling,
        "window": compression.window,
        "mask": "causal" if model.encoder.causal else "bidirectional",
        "overlap": compression.overlap,
        "adapter": model.adapter.kind,
        "ratio": compression.ratio,
    } == DEFAULT
    assert min(SEARCH, key=lambda point: point.highest).tags == DEFAULT


@pytest.mark.parametrize("point", SEARCH)
def test_every_point_can_be_trained(point):
    model = scratch_0p6b.config().model
    tags = point.tags
    names = ("pooling", "window", "overlap")
    replace(model.compression, **{name: tags[name] for name in names})
    replace(model.adapter, kind=tags["adapter"])
    assert tags.keys() == DEFAULT.keys()


def test_losses_are_those_of_the_paper():
    assert paper_loss({}) == (1.169, 1.169)
    assert paper_loss({"pooling": "eos", "window": 16, "seed": 1}) == (1.182, 1.182)
    assert paper_loss({"adapter": "attn_mlp"}) == (1.256, 1.278)
    assert paper_loss({"ratio": 4}) is None
    assert paper_loss({"pooling": "eos", "window": 256}) is None


@pytest.mark.parametrize(
    ("tag", "where", "order"),
    [
        ("pooling", {}, ["mean", "concat", "eos"]),
        ("pooling", {"window": 16}, ["eos", "mean"]),
        ("window", {}, [1024, 256, 16]),
        ("mask", {}, ["causal", "bidirectional"]),
        ("adapter", {}, ["mlp", "mlp_attn"]),  # the paper gives one range for both with attention
        ("overlap", {}, [0]),
    ],
)
def test_orders_go_from_the_lowest_loss_to_the_highest(tag, where, order):
    assert paper_order(tag, where) == [{tag: value} for value in order]


def test_tags_that_the_search_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="expected tags of pooling.*got 'depth'"):
        paper_order("depth")


def test_findings_at_full_scale_contrast_settings_of_the_same_tags():
    for finding in paper.FULL_SCALE:
        assert finding.better.keys() == finding.worse.keys()
        assert {*finding.better, *finding.where} <= DEFAULT.keys()


def test_the_orders_of_the_search_are_expected_where_its_points_agree():
    expectations = paper_expectations()
    assert [len(x.order) for x in expectations] == [3, 3, 2, 2, 2, 2]
    assert expectations[-1].order == ({"pooling": "eos"}, {"pooling": "mean"})
    for expectation in expectations:
        for setting in expectation.order:
            assert paper_loss({**expectation.where, **setting}) is not None
