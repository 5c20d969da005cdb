"""The size of the encoder that a scaling law predicts to be best at a budget of FLOPs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from scipy.optimize import brentq

from lclm_jax.errors import ConfigError
from lclm_jax.sweeps.analysis.bootstrap import Interval
from lclm_jax.sweeps.analysis.scaling_law import FACTORS, Law
from lclm_jax.typing import Float, typed

PARTNERS = ("tokens", "decoder")  # factors that can take what the encoder leaves of a budget
SIZES = 200  # of encoders tried, at equal distances of their logs
BEYOND = 30.0  # factor by which these exceed the sizes trained, on either side
PARTNER_BEYOND = 1e6  # the same of the partner


class FlopCount(Protocol):
    """A function that counts FLOPs, and rises with the encoder, the decoder and the tokens.

    The encoder reads all tokens of a context, the decoder one latent for every `ratio` of them, and
    all other tokens. If half of the tokens are context, training takes about
    `6 * tokens * (encoder / 2 + decoder * (1 / (2 * ratio) + 1 / 2))` FLOPs.
    """

    def __call__(self, *, encoder: float, decoder: float, tokens: float, ratio: float) -> float: ...


@dataclass(frozen=True)
class Optimum:
    """The best encoder at one budget.

    Attributes:
        budget: in FLOPs.
        encoder: its parameters; the interval is that of the best sizes of the resamples.
        loss: with the best encoder, in nats per token.
        partner: name of the factor that takes what the encoder leaves of the budget.
        partner_value: its value.
        outside: factors of the law with values outside those trained, where it is a guess; the
            encoder is among them where either end of its interval is.
        curve: the loss with every encoder that the budget allows, ascending in its parameters.
    """

    budget: float
    encoder: Interval
    loss: Interval
    partner: str
    partner_value: float
    outside: tuple[str, ...]
    curve: tuple[tuple[float, Interval], ...]

    @property
    def is_at_edge(self) -> bool:
        """True where the best encoder is the smallest or the largest that was tried."""
        return self.encoder.value in (self.curve[0][0], self.curve[-1][0])


def best_encoder(
    law: Law,
    resamples: Sequence[Law],
    flops: FlopCount,
    budgets: Sequence[float],
    fixed: Mapping[str, float] | None = None,
) -> list[Optimum]:
    """Return the encoder with the lowest predicted loss at each budget.

    A larger encoder leaves less of the budget to its partner: to tokens, where the decoder is
    fixed, as in training; to the decoder, where the tokens are, as in inference.

    Args:
        law: with terms for the encoder and its partner.
        resamples: laws of `bootstrap`, for the intervals.
        flops: function that counts FLOPs.
        budgets: in FLOPs.
        fixed: values of all factors but the encoder and its partner; those that are constant in
            the law may be left out.

    Raises ConfigError where `fixed` does not leave one partner, tokens or decoder, and for a budget
    at which no encoder leaves anything.
    """
    known = {constant.factor: constant.value for constant in law.constants} | dict(fixed or {})
    search = _Search(law, resamples, flops, known, _find_partner(known))
    return [search.find_optimum(budget) for budget in budgets]


@dataclass(frozen=True)
class _Search:
    """A search over sizes of the encoder, beside known values of all factors but its partner."""

    law: Law
    resamples: Sequence[Law]
    flops: FlopCount
    known: dict[str, float]
    partner: str

    def find_optimum(self, budget: float) -> Optimum:
        """Return the best of all sizes that leave something of the budget."""
        trained = self.law.term("encoder").levels
        sizes = np.geomspace(trained[0] / BEYOND, trained[-1] * BEYOND, SIZES)
        values = np.array([self.find_partner_value(budget, size) for size in sizes])
        is_affordable = np.isfinite(values)
        if not is_affordable.any():
            raise ConfigError(
                f"expected a budget for an encoder of {sizes[0]:.3g} to {sizes[-1]:.3g} parameters "
                f"and for {self.partner}, got {budget:g} FLOPs; choose another budget"
            )
        sizes, values = sizes[is_affordable], values[is_affordable]
        factors = self.known | {"encoder": sizes, self.partner: values}
        losses = self.law.predict(**factors)
        resampled = np.stack([x.predict(**factors) for x in self.resamples])
        size, loss = _find_lowest(sizes, losses)
        others = [_find_lowest(sizes, x) for x in resampled]
        encoder = Interval.of(size, [x for x, _ in others])
        value = self.find_partner_value(budget, size)
        return Optimum(
            budget=budget,
            encoder=encoder,
            loss=Interval.of(loss, [x for _, x in others]),
            partner=self.partner,
            partner_value=value,
            outside=self.list_outside(encoder, value),
            curve=tuple(
                (float(sizes[i]), Interval.of(losses[i], resampled[:, i]))
                for i in range(len(sizes))
            ),
        )

    def list_outside(self, encoder: Interval, partner_value: float) -> tuple[str, ...]:
        """Return the factors of the law that leave the range of their levels."""
        chosen = {factor: (value,) for factor, value in self.known.items()}
        chosen |= {
            "encoder": (encoder.low, encoder.value, encoder.high),
            self.partner: (partner_value,),
        }
        return tuple(
            term.factor
            for term in self.law.terms
            if not all(term.levels[0] <= x <= term.levels[-1] for x in chosen[term.factor])
        )

    def find_partner_value(self, budget: float, size: float) -> float:
        """Return the partner's value that takes what is left; NaN where nothing is left."""

        def excess(log_value: float) -> float:
            factors = self.known | {"encoder": size, self.partner: math.exp(log_value)}
            return math.log(self.flops(**factors) / budget)

        levels = self.law.term(self.partner).levels
        least, most = math.log(levels[0] / PARTNER_BEYOND), math.log(levels[-1] * PARTNER_BEYOND)
        if excess(least) > 0 or excess(most) < 0:
            return math.nan
        return math.exp(cast(float, brentq(excess, least, most)))


def _find_partner(known: Mapping[str, float]) -> str:
    """Return the factor beside the encoder that has no value."""
    missing = [factor for factor in FACTORS if factor not in known]
    match missing:
        case ["encoder", partner] if partner in PARTNERS:
            return partner
    raise ConfigError(
        "expected fixed values of all factors but the encoder and tokens or decoder, "
        f"got none of {', '.join(missing) or 'them'}; change fixed"
    )


@typed
def _find_lowest(
    sizes: Float[np.ndarray, "sizes"], losses: Float[np.ndarray, "sizes"]
) -> tuple[float, float]:
    """Return the size with the lowest loss, and that loss, between sizes by a parabola of logs."""
    i = int(np.argmin(losses))
    if 0 < i < len(sizes) - 1:
        left, middle, right = losses[i - 1 : i + 2]
        curvature = left - 2 * middle + right
        if curvature > 0:
            shift = (left - right) / (2 * curvature)  # in steps, between -1/2 and 1/2
            step = math.log(sizes[i + 1] / sizes[i])
            lowest = middle - shift * (left - right) / 4
            return float(sizes[i] * math.exp(shift * step)), float(lowest)
    return float(sizes[i]), float(losses[i])
