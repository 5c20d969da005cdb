"""The tokens at which generation of an answer ends."""

from lclm_jax.data.chat.assistant_turns import find_turn_end_token
from lclm_jax.data.chat.chat import choose_template
from lclm_jax.data.text.tokenizer import Tokenizer


def find_stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids at which generation ends.

    They are those that the tokenizer's files name (`Tokenizer.stops`) and the control token with
    which the chat template ends an answer.
    """
    turn_end = find_turn_end_id(tokenizer)
    ids = [*tokenizer.stops]
    if turn_end is not None:
        ids.append(turn_end)
    return tuple(dict.fromkeys(ids))


def find_turn_end_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of the control token with which the chat template ends an answer, if any."""
    name = find_turn_end_token(tokenizer, choose_template(tokenizer))
    return None if name is None else tokenizer.control.get(name)
