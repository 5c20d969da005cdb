"""Where in a rendered chat the assistant writes: from the generation prompt to the end of its turn.

Where a template marks that by `{% generation %}`, the marks decide.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lclm_jax.data.chat.messages import Analysis, Message, Words, read_parts
from lclm_jax.data.chat.sourced_str import SourcedStr, pieces
from lclm_jax.data.chat.templates import Generated, render
from lclm_jax.data.records import Role
from lclm_jax.data.text.tokenizer import TextError, Tokenizer

Prefix = Callable[[int], str]  # renders so many messages, up to where the assistant begins


@dataclass(frozen=True)
class Run:
    """Characters [start, stop) of a rendered chat that have one source; None is the template."""

    start: int
    stop: int
    source: Words | None
    generated: bool  # between generation tags


@dataclass(frozen=True)
class Turn:
    """Characters [start, stop) that the assistant writes as this message."""

    start: int
    stop: int
    message: int | None


def list_runs(rendered: SourcedStr) -> list[Run]:
    """The runs of a rendered chat in order."""
    runs, start = [], 0
    for text, source in pieces(rendered):
        generated = isinstance(source, Generated)
        runs.append(
            Run(start, start + len(text), source.source if generated else source, generated)
        )
        start += len(text)
    return runs


def check_complete(runs: Sequence[Run], messages: Sequence[Message], tokenizer: Tokenizer):
    """Raises TextError where the template leaves out a message, but a system's, or moves a part."""
    sources = [(run.stop - run.start, run.source) for run in runs if run.source is not None]
    present = {words.message for _, words in sources if words.spoken}
    for i, message in enumerate(messages):
        parts = read_parts(message.get("content"), tokenizer)
        spoken = any(not isinstance(part, str) or part.strip() for part in parts)
        if spoken and i not in present and message["role"] != "system":
            raise TextError(
                f"the chat template leaves out what message {i} ({message['role']}) says"
            )
        holes = sum(not isinstance(part, (str, Analysis)) for part in parts)
        found = sum(n for n, words in sources if words.message == i and words.part is not None)
        if holes != found:
            raise TextError(
                f"the chat template leaves out or repeats a context of message {i}: "
                f"expected {holes}, got {found}"
            )


def find_turns(
    rendered: SourcedStr,
    runs: Sequence[Run],
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: str,
    prefix: Prefix,
) -> list[Turn]:
    """What the assistant writes in a rendered chat, message by message."""
    if any(run.generated for run in runs):
        return list(_marked_turns(runs))
    bounds = _bounds(runs)
    opening, ending = (
        generation_prompt(tokenizer, template),
        find_turn_end_token(tokenizer, template),
    )
    turns, before = [], 0  # `before`: where the message before ends
    for i, message in enumerate(messages):
        first, last = bounds.get(i, (None, before))
        if message["role"] == "assistant":
            after = min((start for j, (start, _) in bounds.items() if j > i), default=len(rendered))
            start = _turn_start(rendered, before, first, after, opening, lambda i=i: prefix(i))
            if start is not None:
                last = _turn_stop(rendered, max(start, last), after, opening, ending, tokenizer)
                turns.append(Turn(start, last, i))
        before = max(before, last)
    return turns


def _turn_start(
    rendered: SourcedStr,
    before: int,
    first: int | None,
    after: int,
    opening: str,
    prefix: Callable[[], str],
) -> int | None:
    """Where a turn begins whose first word is at `first`, None for a turn without words."""
    chunk = _plain(rendered[before : after if first is None else first])
    if opening and opening in chunk:
        found = chunk.index(opening) if first is None else chunk.rindex(opening)
        return before + found + len(opening)
    bare = opening.strip()
    if first is None and bare and bare in chunk:
        rest = chunk[chunk.index(bare) + len(bare) :]
        return before + len(chunk) - len(rest.lstrip())
    prompt = prefix()
    fits = before <= len(prompt) <= (after if first is None else first)
    return len(prompt) if fits and prompt and rendered.startswith(prompt) else first


def _turn_stop(
    rendered: SourcedStr,
    last: int,
    after: int,
    opening: str,
    ending: str | None,
    tokenizer: Tokenizer,
) -> int:
    """Where a turn ends whose last word ends at `last`: after the token that ends it."""
    chunk = _plain(rendered[last:after])
    if ending and ending in chunk:
        return last + chunk.index(ending) + len(ending)
    found = re.match(rf"\s*({_names(tokenizer)})", chunk) if tokenizer.control else None
    return last + found.end() if found and found[1] not in opening else last


def _marked_turns(runs: Sequence[Run]) -> Iterator[Turn]:
    start, message = None, None
    for run in [*runs, Run(0, 0, None, False)]:
        if run.generated:
            start = run.start if start is None else start
            stop = run.stop
            message = run.source.message if run.source is not None else message
        elif start is not None:
            yield Turn(start, stop, message)
            start = message = None


def _bounds(runs: Sequence[Run]) -> dict[int, tuple[int, int]]:
    """Where the words of each message begin and end."""
    bounds: dict[int, tuple[int, int]] = {}
    for run in runs:
        words = run.source
        if words is not None and words.message is not None and words.spoken:
            first, _ = bounds.get(words.message, (run.start, 0))
            bounds[words.message] = first, run.stop
    return bounds


@lru_cache(maxsize=64)
def generation_prompt(tokenizer: Tokenizer, template: str) -> str:
    """What a template writes where the assistant begins; empty where that cannot be seen."""
    chat = [{"role": "user", "content": "Hello"}]
    try:
        without, with_it = (
            _plain(render(template, chat, **tokenizer.special, add_generation_prompt=generate))
            for generate in (False, True)
        )
    except TextError:
        return ""
    return with_it.removeprefix(without) if with_it.startswith(without) else ""


@lru_cache(maxsize=64)
def find_turn_end_token(tokenizer: Tokenizer, template: str) -> str | None:
    """The control token that ends what the assistant writes, as seen in a short chat."""
    answer = Words(1, Role.ANSWER)
    chat = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": SourcedStr("Hi", answer)},
    ]
    try:
        rendered = render(template, chat, **tokenizer.special, add_generation_prompt=False)
    except TextError:
        return tokenizer.special.get("eos_token")
    last = max((run.stop for run in list_runs(rendered) if run.source is answer), default=0)
    found = re.search(_names(tokenizer), _plain(rendered)[last:]) if tokenizer.control else None
    return found[0] if found and last else None


def _names(tokenizer: Tokenizer) -> str:
    return "|".join(map(re.escape, sorted(tokenizer.control, key=len, reverse=True)))


def _plain(text: str) -> str:
    return "".join([text])
