"""The tokens at which generation ends."""

from lclm_jax.data.chat.assistant_turns import find_turn_end_token
from lclm_jax.data.chat.chat import choose_template
from lclm_jax.data.text.tokenizer import Tokenizer


def find_stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids at which generation ends: those the tokenizer's files name (`Tokenizer.stops`), and the
    control token with which the chat template ends an answer."""
    end = find_turn_end_id(tokenizer)
    return tuple(dict.fromkeys([*tokenizer.stops, *([] if end is None else [end])]))


def find_turn_end_id(tokenizer: Tokenizer) -> int | None:
    """Id of the control token with which the chat template ends an answer, if there is one."""
    name = find_turn_end_token(tokenizer, choose_template(tokenizer))
    return None if name is None else tokenizer.control.get(name)
