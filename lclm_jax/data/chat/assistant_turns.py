"""Location of the assistant's turns in a rendered chat.

A turn begins after the generation prompt and ends with the token that ends a turn. A template
with `{% generation %}` tags marks its turns itself.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lclm_jax.data.chat.messages import Message, Reasoning, TextSource, parse_parts
from lclm_jax.data.chat.sourced_str import SourcedStr, split_by_source
from lclm_jax.data.chat.templates import GeneratedSource, render_template
from lclm_jax.data.records import Role
from lclm_jax.data.text.tokenizer import TextError, Tokenizer

PromptRenderer = Callable[[int], str]  # renders the first messages and a generation prompt


@dataclass(frozen=True)
class SourceRun:
    """Characters [start, stop) of a rendered chat with one source; None is the template.

    `generated` is set between `{% generation %}` tags.
    """

    start: int
    stop: int
    source: TextSource | None
    generated: bool


@dataclass(frozen=True)
class AssistantTurn:
    """Characters [start, stop) of a rendered chat that the assistant writes as one message."""

    start: int
    stop: int
    message: int | None


def list_source_runs(rendered: SourcedStr) -> list[SourceRun]:
    """Return the runs of a rendered chat in order."""
    runs, start = [], 0
    for text, source in split_by_source(rendered):
        is_generated = isinstance(source, GeneratedSource)
        original = source.source if is_generated else source
        runs.append(SourceRun(start, start + len(text), original, is_generated))
        start += len(text)
    return runs


def check_all_rendered(
    runs: Sequence[SourceRun], messages: Sequence[Message], tokenizer: Tokenizer
):
    """Raise TextError for a template that drops a message, or drops or repeats a part.

    A template may drop a system message.
    """
    sources = [(run.stop - run.start, run.source) for run in runs if run.source is not None]
    rendered = {source.message for _, source in sources if source.is_content}
    for i, message in enumerate(messages):
        parts = parse_parts(message.get("content"), tokenizer)
        has_content = any(not isinstance(part, str) or part.strip() for part in parts)
        if has_content and i not in rendered and message["role"] != "system":
            raise TextError(
                f"the chat template leaves out what message {i} ({message['role']}) says"
            )
        placeholders = sum(not isinstance(part, (str, Reasoning)) for part in parts)
        count = sum(
            length for length, source in sources if source.message == i and source.part is not None
        )
        if count != placeholders:
            raise TextError(
                f"the chat template leaves out or repeats a context of message {i}: "
                f"expected {placeholders}, got {count}"
            )


def find_assistant_turns(
    rendered: SourcedStr,
    runs: Sequence[SourceRun],
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: str,
    render_prompt: PromptRenderer,
) -> list[AssistantTurn]:
    """Return the turns of the assistant in a rendered chat, in order."""
    if any(run.generated for run in runs):
        return list(_marked_turns(runs))
    bounds = _bounds(runs)
    opening, ending = (
        find_generation_prompt(tokenizer, template),
        find_turn_end_token(tokenizer, template),
    )
    turns, before = [], 0  # `before` is where the previous message ends
    for i, message in enumerate(messages):
        first, last = bounds.get(i, (None, before))
        if message["role"] == "assistant":
            after = min((start for j, (start, _) in bounds.items() if j > i), default=len(rendered))
            start = _turn_start(
                rendered, before, first, after, opening, lambda i=i: render_prompt(i)
            )
            if start is not None:
                last = _turn_stop(rendered, max(start, last), after, opening, ending, tokenizer)
                turns.append(AssistantTurn(start, last, i))
        before = max(before, last)
    return turns


def _turn_start(
    rendered: SourcedStr,
    before: int,
    first: int | None,
    after: int,
    opening: str,
    render_prompt: Callable[[], str],
) -> int | None:
    """Return where a turn begins, or None for a turn that is not in the chat.

    `before` is where the previous message ends, `first` where the content of the turn begins
    (None for a turn without content), and `after` where the next message begins.
    """
    chunk = _plain(rendered[before : after if first is None else first])
    if opening and opening in chunk:
        index = chunk.index(opening) if first is None else chunk.rindex(opening)
        return before + index + len(opening)
    bare = opening.strip()  # a template may strip the text before an empty answer
    if first is None and bare and bare in chunk:
        rest = chunk[chunk.index(bare) + len(bare) :]
        return before + len(chunk) - len(rest.lstrip())
    prompt = render_prompt()
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
    """Return where a turn ends, after its end token; its content ends at `last`."""
    chunk = _plain(rendered[last:after])
    if ending and ending in chunk:
        return last + chunk.index(ending) + len(ending)
    match = re.match(rf"\s*({_names(tokenizer)})", chunk) if tokenizer.control else None
    return last + match.end() if match and match[1] not in opening else last


def _marked_turns(runs: Sequence[SourceRun]) -> Iterator[AssistantTurn]:
    """Yield the turns that a template marks; those of two messages may adjoin."""
    start, stop, message = None, 0, None
    for run in [*runs, SourceRun(0, 0, None, False)]:
        if run.generated:
            own = run.source.message if run.source is not None else message
            if start is not None and message is not None and own != message:
                yield AssistantTurn(start, stop, message)
                start = None
            start = run.start if start is None else start
            stop, message = run.stop, own
        elif start is not None:
            yield AssistantTurn(start, stop, message)
            start = message = None


def _bounds(runs: Sequence[SourceRun]) -> dict[int, tuple[int, int]]:
    """Return where the content of each message begins and ends."""
    bounds: dict[int, tuple[int, int]] = {}
    for run in runs:
        source = run.source
        if source is not None and source.message is not None and source.is_content:
            first, _ = bounds.get(source.message, (run.start, 0))
            bounds[source.message] = first, run.stop
    return bounds


@lru_cache(maxsize=64)
def find_generation_prompt(tokenizer: Tokenizer, template: str) -> str:
    """Return the generation prompt of a template, empty where it has none."""
    chat = [{"role": "user", "content": "Hello"}]
    try:
        without_prompt, with_prompt = (
            _plain(
                render_template(template, chat, **tokenizer.special, add_generation_prompt=generate)
            )
            for generate in (False, True)
        )
    except TextError:
        return ""
    return (
        with_prompt.removeprefix(without_prompt) if with_prompt.startswith(without_prompt) else ""
    )


@lru_cache(maxsize=64)
def find_turn_end_token(tokenizer: Tokenizer, template: str) -> str | None:
    """Return the control token that ends an assistant's turn, by rendering a short chat."""
    answer = TextSource(1, Role.ANSWER)
    chat = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": SourcedStr("Hi", answer)},
    ]
    try:
        rendered = render_template(template, chat, **tokenizer.special, add_generation_prompt=False)
    except TextError:
        return tokenizer.special.get("eos_token")
    last = max((run.stop for run in list_source_runs(rendered) if run.source is answer), default=0)
    match = re.search(_names(tokenizer), _plain(rendered)[last:]) if tokenizer.control else None
    return match[0] if match and last else None


def _names(tokenizer: Tokenizer) -> str:
    return "|".join(map(re.escape, sorted(tokenizer.control, key=len, reverse=True)))


def _plain(text: str) -> str:
    return "".join([text])
