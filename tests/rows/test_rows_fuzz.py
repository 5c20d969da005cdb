"""Random rows: an example with all their words, or an error that names the reason."""

import os
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.data.chat.messages import TEMPLATE_ROLES
from lclm_jax.data.records import Role
from lclm_jax.data.records.sections import flatten_sections
from lclm_jax.data.rows import field_names as names
from lclm_jax.data.rows.dataset_messages import CALL_FIELDS, CONTENT_FIELDS, ROLE_FIELDS
from lclm_jax.data.rows.raw_examples import (
    RowError,
    example_text,
    read_raw_examples,
    tokenize_example,
)
from lclm_jax.data.text.tokenizer import TextError

pytestmark = pytest.mark.fuzz
FUZZ = settings(max_examples=int(os.environ.get("LCLM_FUZZ", "50")), deadline=None)

WORDS = st.one_of(
    st.text(string.ascii_letters + " .\n", min_size=1, max_size=12),
    st.text(max_size=6),
    st.sampled_from(
        ["", " ", "\ud800", "<|im_end|>", "<|memory|>", "<think>a</think>b", "{{ x }}"]
    ),
)
SCALARS = st.one_of(
    WORDS,
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.binary(max_size=4),
    st.dates(),
)
KEYS = st.one_of(
    st.sampled_from(
        [
            *ROLE_FIELDS,
            *CONTENT_FIELDS,
            "type",
            "ratio",
            "name",
            "arguments",
            "function",
            *CALL_FIELDS,
        ]
    ),
    st.text(max_size=4),
    st.integers(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)
PARTS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"text": WORDS}, optional={"type": st.just("text")}),
        st.fixed_dictionaries({"context": WORDS}, optional={"ratio": st.integers(-1, 40)}),
        VALUES,
    ),
    max_size=3,
)
CALL = st.one_of(
    st.fixed_dictionaries({"name": WORDS, "arguments": VALUES}),
    st.fixed_dictionaries(
        {"function": st.fixed_dictionaries({"name": WORDS, "arguments": VALUES})}
    ),
    VALUES,
)
MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(
                    [*TEMPLATE_ROLES, "Human", "GPT", "tool-result", "critic", ""]
                )
            },
            optional={
                "content": st.one_of(WORDS, PARTS, VALUES),
                "value": WORDS,
                "tool_calls": st.lists(CALL, max_size=2),
                "reasoning_content": WORDS,
                "name": SCALARS,
                "weight": st.sampled_from([0, 1, 1, 0.5, None]),
                "other": VALUES,
            },
        ),
        VALUES,
    ),
    max_size=4,
)
ROWS = st.dictionaries(
    st.one_of(st.sampled_from(sorted(names.KNOWN_FIELDS)), st.text(max_size=4)),
    st.one_of(WORDS, MESSAGES, VALUES),
    max_size=5,
)
CHATS = st.builds(
    lambda turns, more: more | {"messages": turns},
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant"]), "content": st.one_of(WORDS, PARTS)},
            optional={
                "tool_calls": st.lists(CALL, max_size=2),
                "weight": st.sampled_from([0, 1]),
                "thinking": WORDS,
            },
        ),
        min_size=1,
        max_size=4,
    ),
    st.dictionaries(
        st.sampled_from(sorted(names.CHAT_SIDE_FIELDS)), st.one_of(WORDS, VALUES), max_size=2
    ),
)
PACKED = st.lists(
    st.sampled_from(
        [
            *("<|im_start|>", "<|im_end|>", "<|memory_start|>", "<|memory_end|>", "\n", "words "),
            *("user\n", "assistant\n", "tool-result\n", "<|im_start|>user\nWho?<|im_end|>\n"),
            *("<|im_start|>assistant\nBen", "<|endoftext|>", "é"),
        ]
    ),
    max_size=8,
).map("".join)


def example_of(row, kind, tokenizer):
    """The examples of a row with their sections; None where it is refused."""
    try:
        raws = list(read_raw_examples(row, kind, tokenizer, 10_000))
        return [(raw, tokenize_example(raw, tokenizer)) for raw in raws]
    except RowError as error:
        assert error.reason and error.detail
    except TextError as error:
        assert str(error)
    return None


@FUZZ
@given(row=st.one_of(ROWS, CHATS), kind=st.sampled_from(["text", "chat", "expand", "packed"]))
def test_a_row_of_any_shape_is_examples_or_a_named_error(tokenizer, row, kind):
    for raw, sections in example_of(row, kind, tokenizer) or []:
        assert example_text(raw).strip()
        tokens, table = flatten_sections(sections)
        assert len(tokens) == table[:, 0].sum() > 0


def words_in(value):
    """The words of messages, parts and plain values, without those of other fields in them."""
    if isinstance(value, str):
        return set(value.split())
    if isinstance(value, dict):
        value = [
            value[name]
            for name in (*CONTENT_FIELDS, "context", *names.REASONING_FIELDS)
            if name in value
        ]
    return set().union(*map(words_in, value)) if isinstance(value, list) else set()


@FUZZ
@given(row=st.one_of(CHATS, ROWS))
def test_no_word_of_a_field_beside_a_chat_is_lost(tokenizer, row):
    examples = example_of(row, "chat", tokenizer)
    if examples is None:
        return
    ((raw, _),) = examples
    text = example_text(raw)
    # A text may be the whole chat written out again, in a form of its own.
    used = names.FIELDS_BY_KIND["chat"] - {"text", "label", "split_group", *names.TOOL_FIELDS}
    for name in used & row.keys():
        value = row[name]
        is_json = isinstance(value, str) and name in (*names.CHAT_FIELDS, "history")
        assert is_json or all(word in text for word in words_in(value)), name


@FUZZ
@given(text=PACKED)
def test_no_word_of_a_packed_text_is_lost(tokenizer, text):
    examples = example_of({"text": text}, "packed", tokenizer)
    if examples is None:
        return
    written = "".join(example_text(raw) for raw, _ in examples)
    for word in ("words", "Who?", "Ben", "é"):
        assert written.count(word) == text.count(word)


@FUZZ
@given(row=CHATS)
def test_a_message_of_weight_0_has_no_token_that_is_trained_on(tokenizer, row):
    examples = example_of(row, "chat", tokenizer)
    if examples is None:
        return
    ((raw, sections),) = examples
    trained = "".join(
        tokenizer.decode(section.tokens)
        for section in sections
        if section.role in (Role.ANSWER, Role.ANALYSIS)
    )
    weights = [
        message.get("trained", True)
        for message in raw["messages"]
        if message["role"] == "assistant"
    ]
    assert trained.count("<|im_end|>") >= sum(weights) > 0
    if "<|im_end|>" not in example_text(raw):
        assert trained.count("<|im_end|>") == sum(weights)
