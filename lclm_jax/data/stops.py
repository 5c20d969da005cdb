"""The tokens at which generation ends."""

from lclm_jax.data.chat import CHATML, render_chat
from lclm_jax.data.spans import Plain
from lclm_jax.data.tokens import TURN_END, TextError, Tokenizer

PROBE = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]


def find_stops(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids at which generation ends: those the tokenizer's files name (`Tokenizer.stops`), and the
    control token with which the chat template ends an answer."""
    end = find_turn_end(tokenizer)
    return tuple(dict.fromkeys([*tokenizer.stops, *([] if end is None else [end])]))


def find_turn_end(tokenizer: Tokenizer) -> int | None:
    """Id of the control token with which the chat template ends an answer, if there is one."""
    if TURN_END in tokenizer.control and TURN_END in (tokenizer.template or CHATML):
        return tokenizer.id(TURN_END)
    try:
        record = render_chat(PROBE, tokenizer)
    except TextError:  # a template for other chats
        return None
    trained = [span.tokens for span in record if isinstance(span, Plain) and span.trained]
    last = int(trained[-1][-1]) if trained else None
    return last if last in tokenizer.control.values() else None
