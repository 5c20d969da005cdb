"""FLOPs of training by the sizes of both towers, fitted to the FLOPs of cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from lclm_jax.sweeps.analysis.scaling_law import FACTORS, Observation, tabulate


@dataclass(frozen=True)
class FlopFit:
    """FLOPs of training as a `FlopCount`, so many for each token of text.

        encoder * N_enc + decoder * N_dec + latents * N_dec / ratio + rest

    Attributes:
        encoder: FLOPs for each parameter of the encoder.
        decoder: FLOPs for each parameter of the decoder, for tokens that it reads as text.
        latents: FLOPs for each parameter of the decoder at one token per latent.
        rest: FLOPs that do not depend on these sizes, such as those of the vocabulary.
        error: largest relative error over the cells.
    """

    encoder: float
    decoder: float
    latents: float
    rest: float
    error: float = 0.0

    def __call__(self, *, encoder: float, decoder: float, tokens: float, ratio: float) -> float:
        by_size = self.encoder * encoder + self.decoder * decoder + self.latents * decoder / ratio
        return tokens * (by_size + self.rest)


def fit_flops(cells: Sequence[Observation], flops: Sequence[float]) -> FlopFit:
    """Return the FLOPs by size that fit those of all cells best, in relative terms.

    Where all cells have one ratio, what latents cost is a part of `decoder`.
    """
    table, total = tabulate(cells), np.asarray(flops, np.float64)
    encoder, decoder, tokens, ratio = (table[factor] for factor in FACTORS)
    columns = [encoder, decoder, decoder / ratio, np.ones_like(encoder)]
    if np.ptp(ratio) == 0:
        columns[2] = np.zeros_like(encoder)
    design = np.stack(columns, axis=-1) * (tokens / total)[:, None]
    scale = np.maximum(design.max(0), np.finfo(np.float64).tiny)
    weights, _ = nnls(design / scale, np.ones(len(total)))
    error = float(np.abs(design / scale @ weights - 1).max())
    return FlopFit(*(float(x) for x in weights / scale), error=error)
