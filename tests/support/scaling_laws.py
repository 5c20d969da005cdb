"""Scaling laws with known parameters, and cells whose losses follow them."""

from itertools import product

import numpy as np

from lclm_jax.sweeps.analysis.scaling_law import FACTORS, Constant, Law, Observation, Term

LEVELS = {
    "encoder": (1e6, 4e6, 1.6e7, 6.4e7),
    "decoder": (1e7, 4e7, 1.6e8, 6.4e8),
    "tokens": (1e8, 1e9, 1e10),
    "ratio": (4.0, 8.0, 16.0),
}
CONSTANTS = {"encoder": 1e7, "decoder": 1e8, "tokens": 1e9, "ratio": 8.0}
COEFFICIENTS = {"encoder": 0.3, "decoder": 0.4, "tokens": 0.3, "ratio": 0.2}
EXPONENTS = {"encoder": 0.35, "decoder": 0.25, "tokens": 0.3, "ratio": 0.6}


def make_law(*factors, floor=1.7, coefficients=COEFFICIENTS, exponents=EXPONENTS, levels=LEVELS):
    """Return a law with terms for these factors, in the order of FACTORS."""
    terms = [Term(x, coefficients[x], exponents[x], levels[x]) for x in FACTORS if x in factors]
    constants = [Constant(x, CONSTANTS[x]) for x in FACTORS if x not in factors]
    return Law(floor, tuple(terms), tuple(constants), noise=0.0)


def draw_cells(law, seeds=1, noise=0.0, number=0) -> list[Observation]:
    """Return cells at all levels of a law, with normal noise relative to their losses."""
    random = np.random.default_rng(number)
    values = {x.factor: x.levels for x in law.terms} | {x.factor: (x.value,) for x in law.constants}
    cells = []
    for point in product(*values.values()):
        configuration = dict(zip(values, point, strict=True))
        loss = float(law.predict(**configuration))
        cells += [
            Observation(**configuration, loss=loss * (1 + noise * random.normal()), seed=seed)
            for seed in range(seeds)
        ]
    return cells
