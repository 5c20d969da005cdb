"""Study of sizes: a scaling law of the cells, its predictions, and the best encoder by budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lclm_jax.errors import ConfigError
from lclm_jax.sweeps.analysis.best_encoder import Optimum, best_encoder
from lclm_jax.sweeps.analysis.bootstrap import (
    Interval,
    bootstrap,
    estimate_parameters,
    find_undetermined,
)
from lclm_jax.sweeps.analysis.flop_fit import FlopFit, fit_flops
from lclm_jax.sweeps.analysis.hold_out import HoldOut, hold_out
from lclm_jax.sweeps.analysis.scaling_law import FACTORS, Factor, Law, Observation, fit, tabulate
from lclm_jax.sweeps.findings import LOSS, TrainedCell

# Factors get a term where their largest level is so many times their smallest. Packing alone makes
# the tokens of cells with other windows or ratios differ a little.
SPREAD = 1.25
MERGED = 1.05  # factor within which tokens are one level
BUDGETS = 3  # between the cheapest and the most expensive cell


@dataclass(frozen=True)
class SizeStudy:
    """A scaling law of the cells of a sweep.

    Attributes:
        observations: one for each cell.
        law: fitted to all of them.
        parameters: of the law, with 95 % intervals.
        undetermined: factors whose exponents the cells do not determine, with the reasons.
        hold_outs: by factor, predictions of the cells at its largest level by a law of the others.
        missing: by factor, why there are no such predictions.
        flops: FLOPs of training by size.
        optima: the best encoders, by the fixed size of the decoder; the key is None where the
            decoder takes what the encoder leaves. Empty where only the encoder varies.
    """

    observations: tuple[Observation, ...]
    law: Law
    parameters: Mapping[str, Interval]
    undetermined: Mapping[str, str]
    hold_outs: Mapping[str, HoldOut]
    missing: Mapping[str, str]
    flops: FlopFit
    optima: Mapping[float | None, list[Optimum]]


def varies_in_size(cells: Sequence[TrainedCell]) -> bool:
    """Return True where the encoder has several sizes, so that a law can be fitted."""
    return "encoder" in find_terms([observe(cell) for cell in cells])


def study_sizes(cells: Sequence[TrainedCell]) -> SizeStudy:
    """Return the scaling law of cells and what follows from it.

    Raises ConfigError where there are too few cells to fit one.
    """
    observations = merge_tokens([observe(cell) for cell in cells])
    terms = find_terms(observations)
    law = fit(observations, terms)
    resamples = bootstrap(observations, law)
    flops = fit_flops(observations, [cell.result.flops for cell in cells])
    predicted, missing = predict_largest(observations, terms)
    return SizeStudy(
        observations=tuple(observations),
        law=law,
        parameters=estimate_parameters(law, resamples),
        undetermined=find_undetermined(law, resamples),
        hold_outs=predicted,
        missing=missing,
        flops=flops,
        optima=find_optima(observations, law, resamples, flops),
    )


def observe(cell: TrainedCell) -> Observation:
    """Return the sizes of a cell, without embeddings, and its loss from latents."""
    result = cell.result
    return Observation(
        encoder=float(result.matrix_parameters["encoder"]),
        decoder=float(result.matrix_parameters["decoder"]),
        tokens=float(result.text_tokens),
        ratio=float(result.ratio),
        loss=result.mean(LOSS, "latents"),
        seed=int(cell.cell.config.run.seed),
    )


def merge_tokens(observations: Sequence[Observation]) -> list[Observation]:
    """Return observations whose tokens are equal where they differ by packing alone.

    Another seed packs other examples into rows, so that equal steps read a little more or less.
    """
    levels: list[list[float]] = []
    for tokens in sorted(cell.tokens for cell in observations):
        if levels and tokens < MERGED * levels[-1][0]:
            levels[-1].append(tokens)
        else:
            levels.append([tokens])
    merged = {tokens: float(np.mean(level)) for level in levels for tokens in level}
    return [replace(cell, tokens=merged[cell.tokens]) for cell in observations]


def find_terms(observations: Sequence[Observation]) -> list[Factor]:
    """Return the factors that vary enough for a term."""
    table = tabulate(observations)
    return [x for x in FACTORS if table[x].max() >= SPREAD * table[x].min()]


def predict_largest(
    observations: Sequence[Observation], terms: Sequence[Factor]
) -> tuple[dict[str, HoldOut], dict[str, str]]:
    """Return predictions of the cells at the largest level of each factor, and why some lack."""
    predicted, missing = {}, {}
    for factor in terms:
        try:
            predicted[factor] = hold_out(observations, factor, terms)
        except ConfigError as error:
            missing[factor] = str(error)
    return predicted, missing


def find_optima(
    observations: Sequence[Observation], law: Law, resamples: Sequence[Law], flops: FlopFit
) -> dict[float | None, list[Optimum]]:
    """Return the best encoders at budgets between those of the cells.

    Where tokens vary, they take what the encoder leaves, beside each size of the decoder; otherwise
    the decoder does.
    """
    table = tabulate(observations)
    costs = np.array([flops(**{x: getattr(cell, x) for x in FACTORS}) for cell in observations])
    fixed = {factor: float(np.exp(np.log(table[factor]).mean())) for factor in FACTORS}
    fitted = {term.factor for term in law.terms}
    del fixed["encoder"]
    if "tokens" in fitted:
        del fixed["tokens"]
        sizes = np.unique(table["decoder"])
        groups = {float(x): (costs[table["decoder"] == x], fixed | {"decoder": x}) for x in sizes}
    elif "decoder" in fitted:
        del fixed["decoder"]
        groups = {None: (costs, fixed)}
    else:
        return {}
    return {
        decoder: best_encoder(
            law, resamples, flops, np.geomspace(group.min(), group.max(), BUDGETS), values
        )
        for decoder, (group, values) in groups.items()
    }
