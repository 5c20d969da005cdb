"""The paper's architecture search and size study, to stand beside one's own sweeps.

Source: "End-to-End Context Compression at Scale", arXiv 2606.09659v1. Each point of the search was
trained with one seed, so that its losses have no standard errors. `configs/scratch_0p6b.py` trains
them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lclm_jax.errors import ConfigError
from lclm_jax.sweeps.cells import Expectation, Level, Setting

SEARCH_SOURCE = "arXiv 2606.09659v1, Figure 3: two random Qwen3-0.6B towers, 10,000 steps, 16x"
FULL_SCALE_SOURCE = "arXiv 2606.09659v1, training at full scale"
SIZES_SOURCE = "arXiv 2606.09659v1, size study"

# Tags of the search, at its best point, which is also the paper's model.
DEFAULT: dict[str, Level] = {
    "pooling": "mean",
    "window": 1024,
    "mask": "causal",
    "overlap": 0,
    "adapter": "mlp",
    "ratio": 16,
}


@dataclass(frozen=True)
class Point:
    """A point of the search and its loss, or the range of losses that the point is among."""

    changes: Setting  # tags that differ from DEFAULT
    lowest: float
    highest: float

    @property
    def tags(self) -> dict[str, Level]:
        """All tags, those of DEFAULT included."""
        return DEFAULT | dict(self.changes)


SEARCH = (
    Point({}, 1.169, 1.169),
    Point({"pooling": "concat"}, 1.171, 1.171),
    Point({"window": 256}, 1.172, 1.172),
    Point({"pooling": "eos", "window": 16}, 1.182, 1.182),
    Point({"window": 16}, 1.183, 1.183),
    Point({"mask": "bidirectional"}, 1.191, 1.191),
    Point({"pooling": "eos"}, 1.191, 1.191),
    # The source gives one range for all adapters with attention.
    Point({"adapter": "mlp_attn"}, 1.256, 1.278),
    Point({"adapter": "attn_mlp"}, 1.256, 1.278),
)


@dataclass(frozen=True)
class Finding:
    """A setting that the paper reports to be better than another, without numbers of its own."""

    better: Setting
    worse: Setting
    where: Setting  # tags that both share


# Overlap 256 in the last one reverses the order of the search.
FULL_SCALE = (
    Finding({"pooling": "concat"}, {"pooling": "mean"}, {"ratio": 4}),
    Finding({"pooling": "mean"}, {"pooling": "concat"}, {"ratio": 16}),
    Finding({"adapter": "mlp_attn"}, {"adapter": "mlp"}, {"overlap": 256}),
)
SIZES = (("0.6B", "4B"), ("4B", "4B"), ("0.6B", "8B"))  # encoder and decoder of the models trained


def paper_loss(tags: Mapping[str, Level]) -> tuple[float, float] | None:
    """Return the lowest and the highest loss that the search may have at these tags.

    Both are equal for most points. Tags that are missing are those of DEFAULT, and others, such as
    the seed, are ignored. None for a point that the search does not have.

    >>> paper_loss({"pooling": "concat", "seed": 3})
    (1.171, 1.171)
    """
    chosen = {tag: tags.get(tag, value) for tag, value in DEFAULT.items()}
    for point in SEARCH:
        if point.tags == chosen:
            return point.lowest, point.highest
    return None


def paper_order(tag: str, where: Setting | None = None) -> list[Setting]:
    """Return the values of a tag in the order of the search, from the lowest loss to the highest.

    Points agree with DEFAULT or `where` in all other tags. Each is a setting that `check_order`
    takes. Values whose losses are not told apart from one before are left out.

    >>> paper_order("window", {"pooling": "eos"})
    [{'window': 16}, {'window': 1024}]

    Raises ConfigError for a tag that the search does not have.
    """
    if unknown := {tag, *(where or {})} - DEFAULT.keys():
        raise ConfigError(f"expected tags of {', '.join(DEFAULT)}, got {min(unknown)!r}")
    shared = {name: value for name, value in (DEFAULT | dict(where or {})).items() if name != tag}
    order, highest = [], 0.0
    for point in sorted(SEARCH, key=lambda point: point.lowest):
        if point.lowest > highest and point.tags.items() >= shared.items():
            order.append({tag: point.tags[tag]})
            highest = point.highest
    return order


def paper_expectations() -> tuple[Expectation, ...]:
    """Return the orders of the search, for `Sweep.expectations`."""
    return tuple(
        Expectation(
            order=tuple(paper_order(tag, changes)),
            reason=f"{SEARCH_SOURCE}; losses of one seed",
            where={name: x for name, x in (DEFAULT | changes).items() if name != tag},
        )
        for tag, changes in (
            ("pooling", {}),
            ("window", {}),
            ("mask", {}),
            ("adapter", {}),
            ("window", {"pooling": "eos"}),
            ("pooling", {"window": 16}),
        )
    )
