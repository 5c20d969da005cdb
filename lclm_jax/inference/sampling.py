"""Choice of the next token: greedy, or sampled with temperature, top-k, top-p and penalties."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.config.settings import Count, NotEmpty, Positive, Range, Settings
from lclm_jax.typing import Array, Bool, Float, Int, typed

# Most likely tokens that top-k and top-p try first; the whole vocabulary is sorted only if these
# do not suffice.
CANDIDATES = 1024
STOPS = 16  # the array of stop tokens is padded to a multiple of this


@dataclass(frozen=True)
class Sampling(Settings):
    """Settings for the choice of the next token; the default is greedy decoding."""

    # Divides the logits; 0 takes the most likely token.
    temperature: Annotated[float, Range(least=1e-6, also=(0,))] = 0.0
    top_k: Count = 0  # sample among the k most likely tokens; 0: all
    # Sample among the fewest most likely tokens whose probabilities sum to at least this.
    top_p: Annotated[float, Range(above=0, most=1)] = 1.0
    # Divides positive and multiplies negative logits of tokens already generated; the tokens of
    # the prompt are not penalised.
    repetition_penalty: Positive = 1.0
    min_tokens: Count = 0  # tokens to generate before a stop token may be chosen
    # Leaves out tokens less likely than this share of the most likely token's probability.
    min_p: Annotated[float, Range(least=0, most=1)] = 0.0
    # Texts at which an answer ends, before the first one that is complete.
    stop: tuple[Annotated[str, NotEmpty()], ...] = ()


GREEDY = Sampling()


@flax.struct.dataclass
class Rules:
    """A `Sampling` and its stop tokens as arrays.

    They are traced arguments of compiled programs: new settings do not recompile.
    """

    temperature: Float[Array, ""] | np.float32
    top_k: Int[Array, ""] | np.int32
    top_p: Float[Array, ""] | np.float32
    repetition_penalty: Float[Array, ""] | np.float32
    min_tokens: Int[Array, ""] | np.int32
    min_p: Float[Array, ""] | np.float32
    stops: Int[Array, "stops"]  # padded with -1

    @classmethod
    def of(cls, sampling: Sampling, stops: Sequence[int] = ()) -> "Rules":
        """Convert settings and stop tokens to arrays.

        Stop tokens are padded to a multiple of STOPS, so their number rarely changes the shape.
        """
        multiples = -(-max(len(stops), 1) // STOPS)
        padded = np.full(multiples * STOPS, -1, np.int32)
        padded[: len(stops)] = stops
        return cls(
            np.float32(sampling.temperature),
            np.int32(sampling.top_k),
            np.float32(sampling.top_p),
            np.float32(sampling.repetition_penalty),
            np.int32(sampling.min_tokens),
            np.float32(sampling.min_p),
            padded,
        )


@typed
def choose(
    logits: Float[Array, "B V"], generated: Bool[Array, "B V"], rngs: Array, rules: Rules
) -> Int[Array, "B"]:
    """Choose the next token of every row.

    `generated` marks the tokens that each row has generated so far, for the repetition penalty.
    `rngs` [B] has a key for each row.
    """
    penalty = rules.repetition_penalty
    penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(generated, penalised, logits)
    return jax.lax.cond(
        rules.temperature > 0, _draw, lambda logits, *_: jnp.argmax(logits, -1), logits, rngs, rules
    )


def _draw(logits: Array, rngs: Array, rules: Rules) -> Array:
    """Sample a token [B] for every row, with temperature, top-k, top-p and min-p."""
    logits = logits / rules.temperature
    limited = (rules.top_k > 0) | (rules.top_p < 1)
    lowest = jax.lax.cond(limited, _lowest, lambda x, _: jnp.full(len(x), -jnp.inf), logits, rules)
    lowest = jnp.maximum(lowest, jnp.max(logits, axis=-1) + jnp.log(rules.min_p))
    logits = jnp.where(logits < lowest[:, None], -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(rngs, logits)


def _lowest(logits: Float[Array, "B V"], rules: Rules) -> Float[Array, "B"]:
    """Return the lowest logit of each row that top-k and top-p keep.

    The CANDIDATES best logits are used if they suffice; otherwise the vocabulary is sorted.
    """
    vocabulary = logits.shape[-1]
    candidates = min(CANDIDATES, vocabulary)
    total = jax.nn.logsumexp(logits, axis=-1)
    best = jax.lax.top_k(logits, candidates)[0]
    if candidates == vocabulary:
        return _lowest_of(best, total, rules)

    covered = jnp.exp(jax.nn.logsumexp(best, axis=-1) - total) >= rules.top_p
    enough = jnp.where(rules.top_k > 0, rules.top_k <= candidates, jnp.all(covered))

    def sort_all(_):
        return _lowest_of(jnp.sort(logits, axis=-1, descending=True), total, rules)

    return jax.lax.cond(enough, lambda best: _lowest_of(best, total, rules), sort_all, best)


def _lowest_of(
    ordered: Float[Array, "B candidates"], total: Float[Array, "B"], rules: Rules
) -> Float[Array, "B"]:
    """Return the lowest kept logit of each row, given its best logits in descending order.

    `total` is the logsumexp over the whole vocabulary.
    """
    rank = jnp.arange(ordered.shape[-1])
    limit = jnp.where(rules.top_k > 0, rules.top_k, ordered.shape[-1])
    kept = jnp.where(rank < limit, ordered, -jnp.inf)

    # After top-k, top-p counts the probabilities among the k tokens.
    total = jnp.where(rules.top_k > 0, jax.nn.logsumexp(kept, axis=-1), total)
    probabilities = jnp.exp(kept - total[:, None])
    preceding = jnp.cumsum(probabilities, axis=-1) - probabilities
    inside = (rank < limit) & (preceding < rules.top_p)
    return jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1)
