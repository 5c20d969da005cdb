"""How the next token is chosen: greedy or at random, by temperature, top-k, top-p and penalties."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.config.settings import Count, Positive, Range, Settings
from lclm_jax.typing import Array, Bool, Float, Int, typed

CANDIDATES = 1024  # tokens that top-k and top-p look at before they sort the whole vocabulary
STOPS = 16  # places for stop tokens; of more there are a multiple


@dataclass(frozen=True)
class Sampling(Settings):
    """How the next token is chosen. The default is greedy."""

    # Divides scores. 0 takes the most likely token.
    temperature: Annotated[float, Range(least=1e-6, also=(0,))] = 0.0
    top_k: Count = 0  # most likely tokens to choose among; 0 is all
    # Smallest set of most likely tokens with this probability.
    top_p: Annotated[float, Range(above=0, most=1)] = 1.0
    # Divides positive and multiplies negative logits of generated tokens, not of the prompt.
    repetition_penalty: Positive = 1.0
    min_tokens: Count = 0  # before so many tokens a stop token cannot be chosen


GREEDY = Sampling()


@flax.struct.dataclass
class Rules:
    """A `Sampling` and its stop tokens as values that a compiled program is given."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    repetition_penalty: Float[Array, ""]
    min_tokens: Int[Array, ""]
    stops: Int[Array, "stops"]  # -1 where there is none

    @classmethod
    def of(cls, sampling: Sampling, stops: Sequence[int] = ()) -> "Rules":
        """The rules as arrays; for any number of stops up to STOPS the same program serves."""
        padded = np.full(-(-max(len(stops), 1) // STOPS) * STOPS, -1, np.int32)
        padded[: len(stops)] = stops
        s = sampling
        return cls(
            np.float32(s.temperature),
            np.int32(s.top_k),
            np.float32(s.top_p),
            np.float32(s.repetition_penalty),
            np.int32(s.min_tokens),
            padded,
        )


@typed
def choose(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], rng: Array, rules: Rules
) -> Int[Array, "B"]:
    """The next token of every row, given which tokens it has generated before."""
    penalty = rules.repetition_penalty
    penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(seen, penalised, logits)
    return jax.lax.cond(
        rules.temperature > 0, _draw, lambda logits, *_: jnp.argmax(logits, -1), logits, rng, rules
    )


def _draw(logits: Array, rng: Array, rules: Rules) -> Array:
    """A token of every row at random, by temperature, top-k and top-p."""
    logits = logits / rules.temperature
    limited = (rules.top_k > 0) | (rules.top_p < 1)
    lowest = jax.lax.cond(limited, _lowest, lambda x, _: jnp.full(len(x), -jnp.inf), logits, rules)
    logits = jnp.where(logits < lowest[:, None], -jnp.inf, logits)
    return jax.random.categorical(rng, logits, axis=-1)


def _lowest(logits: Float[Array, "B V"], rules: Rules) -> Float[Array, "B"]:
    """The lowest score that top-k and top-p leave; by the best CANDIDATES where these suffice."""
    vocabulary = logits.shape[-1]
    few = min(CANDIDATES, vocabulary)
    total = jax.nn.logsumexp(logits, axis=-1)
    best = jax.lax.top_k(logits, few)[0]
    covered = jnp.exp(jax.nn.logsumexp(best, axis=-1) - total) >= rules.top_p
    enough = jnp.where(rules.top_k > 0, rules.top_k <= few, jnp.all(covered))
    if few == vocabulary:
        return _lowest_of(best, total, rules)

    def sort_all(_):
        return _lowest_of(jnp.sort(logits, axis=-1, descending=True), total, rules)

    return jax.lax.cond(enough, lambda best: _lowest_of(best, total, rules), sort_all, best)


def _lowest_of(
    ordered: Float[Array, "B candidates"], total: Float[Array, "B"], rules: Rules
) -> Float[Array, "B"]:
    """`_lowest` from the best scores in order; `total` is the log of the sum of all."""
    rank = jnp.arange(ordered.shape[-1])
    limit = jnp.where(rules.top_k > 0, rules.top_k, ordered.shape[-1])
    kept = jnp.where(rank < limit, ordered, -jnp.inf)
    total = jnp.where(rules.top_k > 0, jax.nn.logsumexp(kept, axis=-1), total)
    shares = jnp.exp(kept - total[:, None])
    before = jnp.cumsum(shares, axis=-1) - shares
    inside = (rank < limit) & (before < rules.top_p)
    return jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1)
