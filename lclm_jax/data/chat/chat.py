"""Conversion of a chat into the tokens of its template, with the role of every token.

The tokens are those of transformers' `apply_chat_template`. The template renders the real
messages, so it may trim, cut or compare them; characters keep their source through that. Only
the template's own text can become a control token, whatever messages, names and tools spell.

A worked example. First a tokenizer of six words, a template, and a chat:

>>> import json
>>> from lclm_jax.data.text.tokenizer_json import CONTROL_TOKEN_FLAGS
>>> words = {"<unk>": 0, "Who": 1, "Ben": 2, "<s>": 3, "</s>": 4, "<bot>": 5}
>>> names = ["<s>", "</s>", "<bot>"]
>>> control = [{**CONTROL_TOKEN_FLAGS, "id": words[name], "content": name} for name in names]
>>> model = {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
>>> splitter = {"type": "Whitespace"}
>>> fields = {"version": "1.0", "model": model, "pre_tokenizer": splitter, "added_tokens": control}
>>> template = (
...     "{% for m in messages %}{{ '<bot>' if m.role == 'assistant' else '<s>' }}"
...     "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
... )
>>> tokenizer = Tokenizer(json.dumps(fields), template)
>>> chat = [{"role": "user", "content": " Who"}, {"role": "assistant", "content": "Ben"}]

1. The template renders strings that know their source.

>>> sourced = [attach_sources(i, m, template, tokenizer) for i, m in enumerate(chat)]
>>> rendered = render_template(template, sourced)
>>> "".join([rendered])
'<s> Who</s><bot>Ben</s>'

2. The text falls into runs of one source: the template (None) or a message.

>>> runs = list_source_runs(rendered)
>>> [(run.start, run.stop, run.source and run.source.message) for run in runs]
[(0, 3, None), (3, 7, 0), (7, 16, None), (16, 19, 1), (19, 23, None)]

3. The assistant's turn begins after the generation prompt and includes its end token.

>>> turns = find_assistant_turns(rendered, runs, chat, tokenizer, template, lambda count: "")
>>> turns
[AssistantTurn(start=16, stop=23, message=1)]

4. Runs are cut at the bounds of turns, and each gets a role.

>>> cut = _assign_roles(runs, turns)
>>> ["".join([rendered[run.start : run.stop]]) + f": {role.name}" for run, role in cut]
['<s>: FIXED', ' Who: PROMPT', '</s><bot>: FIXED', 'Ben: ANSWER', '</s>: ANSWER']

5. The text is encoded as a whole; neighbouring tokens of one role become a section.

>>> for section in tokenize_chat(chat, tokenizer):
...     print(section.role.name, section.tokens)
FIXED [3]
PROMPT [1]
FIXED [4 5]
ANSWER [2 4]

6. Sections become the spans of a record, in which the answer carries loss.

>>> [(span.tokens.tolist(), span.trained) for span in build_chat_record(chat, tokenizer)]
[([3, 1, 4, 5], False), ([2, 4], True)]
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from lclm_jax.data.chat.assistant_turns import (
    AssistantTurn,
    SourceRun,
    check_all_rendered,
    find_assistant_turns,
    list_source_runs,
)
from lclm_jax.data.chat.messages import (
    Message,
    TextSource,
    attach_json_sources,
    attach_sources,
    prepare_messages,
)
from lclm_jax.data.chat.sourced_str import SourcedStr, join
from lclm_jax.data.chat.templates import render_template
from lclm_jax.data.records import Context, Given, Plain, Role, Section, Span
from lclm_jax.data.text.tokenizer import MEMORY_SLOT, TextError, Tokenizer

TRAINED_ROLES = (Role.ANSWER, Role.ANALYSIS)

# The template of tokenizers without one: ChatML, with tools described and called as Qwen does.
# Jinja drops a line end right after a block tag.
CHATML = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    "Tools you may call, one JSON signature a line:\n"
    "<tools>{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}"
    "{{ '\\n' }}</tools>\n"
    'To call one, write <tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>.<|im_end|>\n'
    "{% endif %}"
    "{% for message in messages %}"
    "{% if not (tools and loop.first and message['role'] == 'system') %}"
    "{% if message['role'] == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ message['content'] }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{% if message['content'] or not loop.first %}{{ '\\n' }}{% endif %}"
    '<tool_call>\n{"name": {{ call.function.name | tojson }}, '
    '"arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class PromptEnd:
    """The end of a chat that the assistant goes on with.

    Attributes:
        continued: whether the last message begins the answer. The chat then ends with its content,
            as under `continue_final_message` of transformers.
        stripped: whether white space at the end is left out.
        text: text to add, which is encoded together with the chat.
    """

    continued: bool = False
    stripped: bool = False
    text: str = ""

    def apply(self, prompt: str) -> str:
        """Return a prompt with this end; characters keep their source."""
        prompt = prompt.rstrip() if self.stripped else prompt
        return prompt + SourcedStr(self.text, ADDED_TEXT) if self.text else prompt


ADDED_TEXT = TextSource(None, Role.FIXED)


@dataclass(frozen=True, eq=False)
class LabelledText:
    """Text of a rendered chat with what its tokens become: sections of a role, or a filling."""

    text: str
    allow_control: bool
    label: Role | Section | Given


def build_chat_record(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    generate: bool = False,
    tools: Sequence[Any] = (),
    end: PromptEnd = PromptEnd(),
    **settings: Any,
) -> list[Span]:
    """Return a chat as a record, with loss on the assistant's turns including their end token.

    With `generate`, the record ends where the assistant begins to write; `end` changes that.
    `tools` and `settings` go to the template. Raises TextError as `tokenize_chat` does.
    """
    spans: list[Span] = []
    for section in tokenize_chat(messages, tokenizer, tools, generate, end, **settings):
        span = _to_span(section)
        last = spans[-1] if spans else None
        if isinstance(last, Plain) and isinstance(span, Plain) and last.trained == span.trained:
            tokens = np.concatenate([last.tokens, span.tokens])
            spans[-1] = Plain(tokens, span.trained)
        else:
            spans.append(span)
    return spans


def _to_span(section: Section | Given) -> Span:
    if isinstance(section, Given):
        return section
    tokens = np.asarray(section.tokens)
    if section.role is Role.CONTEXT:
        return Context(tokens, section.ratio)
    return Plain(tokens, section.role in TRAINED_ROLES)


def tokenize_chat(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    tools: Sequence[Any] = (),
    generate: bool = False,
    end: PromptEnd = PromptEnd(),
    **settings: Any,
) -> list[Section | Given]:
    """Return the sections of a chat as people and datasets write it.

    Arguments of tool calls may be JSON text, and reasoning is kept whether or not the template
    reads it. Raises TextError as `tokenize_normalized_chat` does.
    """
    template = choose_template(tokenizer, tools)
    prepared = prepare_messages(messages, tokenizer, template)
    return tokenize_normalized_chat(prepared, tokenizer, tools, generate, end, **settings)


def tokenize_normalized_chat(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    tools: Sequence[Any] = (),
    generate: bool = False,
    end: PromptEnd = PromptEnd(),
    **settings: Any,
) -> list[Section | Given]:
    """Return the sections of a chat whose messages are in the form that templates read.

    The tokens are those of transformers' `apply_chat_template` for the same messages, tools and
    settings, except that control tokens spelled in messages stay text. A token with characters
    of both the template and the assistant is the assistant's. A message of the assistant with
    `"trained": False` carries no loss.

    Raises TextError for a chat that cannot be rendered, or of which a message would be lost.
    """
    if not messages:
        raise TextError("expected at least one message, got none")

    template = choose_template(tokenizer, tools)
    try:
        variables = _template_variables(tokenizer, tools, settings)
        sourced = [
            attach_sources(number, message, template, tokenizer)
            for number, message in enumerate(messages)
        ]
    except RecursionError as error:
        raise TextError("the chat is nested too deep for a template to read") from error

    def render_prompt(count: int) -> str:
        try:
            return render_template(
                template, sourced[:count], **variables, add_generation_prompt=True
            )
        except TextError:  # a template may refuse the beginning of a chat
            return ""

    opens_turn = generate and not end.continued
    rendered = render_template(template, sourced, **variables, add_generation_prompt=opens_turn)
    runs = list_source_runs(rendered)
    check_all_rendered(runs, messages, tokenizer)
    if end != PromptEnd():
        last = len(messages) - 1
        stop = _find_content_stop(runs, last) if end.continued else len(rendered)
        rendered = join([end.apply(rendered[:stop])])
        runs = list_source_runs(rendered)

    turns = find_assistant_turns(rendered, runs, messages, tokenizer, template, render_prompt)
    untrained = {
        number for number, message in enumerate(messages) if message.get("trained") is False
    }
    turns = [turn for turn in turns if turn.message not in untrained]
    return _encode(rendered, _assign_roles(runs, turns), tokenizer)


def _find_content_stop(runs: Sequence[SourceRun], message: int) -> int:
    """Return where the content of a message stops in a rendered chat."""
    sources = [(run.stop, run.source) for run in runs if run.source is not None]
    stops = [stop for stop, source in sources if source.message == message and source.is_content]
    return max(stops, default=runs[-1].stop)


def _template_variables(
    tokenizer: Tokenizer, tools: Sequence[Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return what a template reads besides messages, in strings that know their source."""
    source = TextSource(None, Role.FIXED)
    sourced = {name: attach_json_sources(value, source, name) for name, value in settings.items()}
    variables = {**tokenizer.special, **sourced, "documents": None}
    variables["tools"] = attach_json_sources(list(tools), source, "tools") or None
    return variables


def choose_template(tokenizer: Tokenizer, tools: Sequence[Any] = ()) -> str:
    """Return the template for tools if there are tools, else the default one, else ChatML."""
    tool_template = tokenizer.templates.get("tool_use") if tools else None
    return tool_template or tokenizer.template or CHATML


# --- roles ---


def _assign_roles(
    runs: Sequence[SourceRun], turns: Sequence[AssistantTurn]
) -> list[tuple[SourceRun, Role]]:
    """Cut runs where turns begin and end, and give each piece its role."""
    bounds = sorted({bound for turn in turns for bound in (turn.start, turn.stop)})
    pieces = []
    number = 0  # of the first turn that has not ended
    for run in runs:
        first, last = bisect_right(bounds, run.start), bisect_left(bounds, run.stop)
        for start, stop in pairwise([run.start, *bounds[first:last], run.stop]):
            while number < len(turns) and turns[number].stop <= start:
                number += 1
            in_turn = number < len(turns) and turns[number].start <= start
            piece = replace(run, start=start, stop=stop)
            pieces.append((piece, _role(run.source, in_turn)))
    return pieces


def _role(source: TextSource | None, in_turn: bool) -> Role:
    """Return the role of text from this source, inside or outside of an assistant's turn."""
    role = Role.FIXED if source is None or source.is_marker else source.role
    if role is Role.CONTEXT:
        return role
    if in_turn:
        return Role.ANALYSIS if role is Role.ANALYSIS else Role.ANSWER
    return Role.FIXED if role in TRAINED_ROLES else role


# --- tokens ---


def _encode(
    rendered: SourcedStr, runs: Sequence[tuple[SourceRun, Role]], tokenizer: Tokenizer
) -> list[Section | Given]:
    """Encode a rendered chat as one text, with parts that are not text in their places.

    Such a part is encoded as a memory slot, which is then replaced. With a tokenizer without
    memory slots, the text before and after it is encoded separately.
    """
    text = "".join([rendered])
    sections: list[Section | Given] = []
    labelled: list[LabelledText] = []
    for run, role in runs:
        source = run.source
        if source is None or source.part is None:
            from_template = source is None or source.is_marker
            labelled.append(LabelledText(text[run.start : run.stop], from_template, role))
            continue

        filling = _to_section(source.part, role)
        if MEMORY_SLOT in tokenizer.control:
            labelled.append(LabelledText(MEMORY_SLOT, True, filling))
        else:
            sections += _encode_labelled(labelled, tokenizer)
            sections.append(filling)
            labelled = []

    sections += _encode_labelled(labelled, tokenizer)
    return _merge_sections(sections)


def _to_section(part: Any, role: Role) -> Section | Given:
    """Return the section of a message part that is not text."""
    if isinstance(part, Given):
        return part
    if isinstance(part, Context):
        return Section(part.tokens, Role.CONTEXT, part.ratio)
    return Section(part, role)


def _encode_labelled(
    labelled: Sequence[LabelledText], tokenizer: Tokenizer
) -> Iterator[Section | Given]:
    """Yield the sections of texts that are encoded as one."""
    if not labelled:
        return

    pieces = [(piece.text, piece.allow_control) for piece in labelled]
    tokens, offsets = tokenizer.encode_with_control(pieces)
    labels = _label_tokens(offsets, labelled)

    changes = [i for i in range(1, len(labels)) if labels[i] is not labels[i - 1]]
    for start, stop in pairwise([0, *changes, len(labels)]):
        label = labels[start] if start < stop else None
        if isinstance(label, Role):
            yield Section(tokens[start:stop], label)
        elif label is not None:
            yield label


def _label_tokens(
    offsets: np.ndarray, labelled: Sequence[LabelledText]
) -> list[Role | Section | Given]:
    """Return the label of each token from the characters [n, 2] that it stands for.

    A token across texts of different labels is an answer if it has text of an answer, else fixed.
    """
    ends = np.cumsum([len(piece.text) for piece in labelled])
    last_piece = len(labelled) - 1
    first = np.minimum(np.searchsorted(ends, offsets[:, 0], "right"), last_piece)
    last = np.maximum(np.searchsorted(ends, offsets[:, 1], "left"), first)

    labels = [piece.label for piece in labelled]
    is_trained = [isinstance(label, Role) and label in TRAINED_ROLES for label in labels]
    trained_before = np.cumsum([0, *is_trained])
    has_answer = trained_before[np.minimum(last, last_piece) + 1] > trained_before[first]

    roles: list[Role | Section | Given] = []
    for i, j, shared in zip(first, last, has_answer, strict=True):
        if i == j or labels[i] == labels[j]:
            roles.append(labels[i])
        else:
            roles.append(Role.ANSWER if shared else Role.FIXED)
    return roles


def _merge_sections(sections: Iterable[Section | Given]) -> list[Section | Given]:
    """Merge neighbouring sections of one role, except contexts, and drop empty ones."""
    merged: list[Section | Given] = []
    for section in sections:
        if isinstance(section, Given) or section.role is Role.CONTEXT:
            merged.append(section)
            continue

        last = merged[-1] if merged else None
        if isinstance(last, Section) and last.role == section.role:
            tokens = np.concatenate([last.tokens, section.tokens])
            merged[-1] = Section(tokens, last.role)
        elif len(section.tokens):
            merged.append(section)
    return merged
