"""The tokens at which generation ends."""

from lclm_jax.data.chat import choose_template
from lclm_jax.data.tokens import Tokenizer
from lclm_jax.data.turns import turn_end


def find_stops(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids at which generation ends: those the tokenizer's files name (`Tokenizer.stops`), and the
    control token with which the chat template ends an answer."""
    end = turn_end(tokenizer, choose_template(tokenizer))
    ids = [*tokenizer.stops, *([tokenizer.control[end]] if end in tokenizer.control else [])]
    return tuple(dict.fromkeys(ids))
