"""Rows to raw examples: every spelling of a chat, the original's packed rows, and a name for everything that cannot be used."""

import datetime

import pytest

from lclm_jax.data.rows import RowError, read_examples, tokenise, words_of
from lclm_jax.data.stretches import Role

TALK = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ben"}]


def examples(fields, kind, tokenizer, longest=10_000):
    return list(read_examples(fields, kind, tokenizer, longest))


@pytest.mark.parametrize("name", ["text", "content", "document", "code"])
def test_documents_in_any_usual_field(tokenizer, name):
    assert examples({"id": 7, name: "Some words."}, "text", tokenizer) == [{"text": "Some words."}]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": TALK},
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ben"}]},
        {"prompt": "Who?", "response": "Ben"},
        {"prompt": "Who?", "completion": "Ben"},
        {"question": "Who?", "answer": "Ben"},
        {"instruction": "Who?", "input": "", "output": "Ben"},
    ],
)
def test_chats_in_any_usual_spelling(tokenizer, fields):
    assert examples(fields, "chat", tokenizer) == [{"messages": TALK}]


def test_instructions_keep_their_input_and_contents_their_parts(tokenizer):
    (raw,) = examples({"instruction": "Add.", "input": "1 2", "output": "3"}, "chat", tokenizer)
    assert raw["messages"][0]["content"] == "Add.\n\n1 2"
    content = [{"text": "Read "}, {"context": "Ben likes figs.", "ratio": 8}]
    (raw,) = examples(
        {"messages": [{"role": "user", "content": content}, TALK[1]]}, "chat", tokenizer
    )
    assert raw["messages"][0]["content"] == content
    contexts = [
        (one.role, one.ratio) for one in tokenise(raw, tokenizer) if one.role is Role.CONTEXT
    ]
    assert contexts == [(Role.CONTEXT, 8)]
    assert "Ben likes figs." in words_of(raw)


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "<think>It is Ben.</think>Ben"},
        {"content": "<analysis>It is Ben.</analysis>Ben"},
        {"content": "Ben", "reasoning_content": "It is Ben."},
    ],
)
def test_what_the_assistant_thinks_is_told_apart(tokenizer, answer):
    (raw,) = examples({"messages": [TALK[0], {"role": "assistant"} | answer]}, "chat", tokenizer)
    thought = [
        tokenizer.decode(one.tokens).strip()
        for one in tokenise(raw, tokenizer)
        if one.role is Role.ANALYSIS
    ]
    assert thought == ["It is Ben."]


@pytest.mark.parametrize(
    ("fields", "kind", "reason"),
    [
        ({"id": 1}, "text", "fields"),
        ({"text": 7}, "text", "fields"),
        ({"text": "\n"}, "code", "empty"),
        ({"text": "a <|memory|> b"}, "text", "memory tags"),
        ({"text": "x" * 10_001}, "text", "too long"),
        ({"text": "half \udc00"}, "text", "encoding"),
        ({"id": 1}, "chat", "fields"),
        ({"messages": [TALK[0]]}, "chat", "chat"),
        ({"messages": ["Who?", "Ben"]}, "chat", "chat"),
        ({"messages": [{"role": "the user", "content": "x"}, TALK[1]]}, "chat", "chat"),
        ({"messages": [{"role": "user", "content": 7}, TALK[1]]}, "chat", "chat"),
        ({"messages": [{"role": "user", "content": [{"image": "x"}]}, TALK[1]]}, "chat", "chat"),
        (
            {"messages": [{"role": "user", "content": [{"context": "x", "ratio": "4"}]}, TALK[1]]},
            "chat",
            "chat",
        ),
        ({"messages": [{"role": "user", "content": ""}, TALK[1]]}, "chat", "empty"),
        (
            {"messages": [{"role": "user", "content": "<|memory_start|>x<|memory_end|>"}, TALK[1]]},
            "chat",
            "memory tags",
        ),
        ({"messages": TALK, "tools": "{broken"}, "chat", "chat"),
        ({"messages": TALK, "tools": {"name": "f"}}, "chat", "chat"),
        ({"messages": TALK, "tools": [datetime.date(2026, 1, 1)]}, "chat", "chat"),
        (
            {"messages": [TALK[0], {"role": "assistant", "content": "", "tool_calls": 7}]},
            "chat",
            "chat",
        ),
        ({"text": "short"}, "expand", "no answer"),
        ({"text": "words " * 800, "question": "Who?", "answer": "Zed"}, "expand", "no answer"),
        ({"text": "words " * 800, "question": "Who?", "answer": 7}, "expand", "fields"),
        ({"n": 1}, "packed", "fields"),
        ({"text": "a <|memory_start|>b"}, "packed", "memory tags"),
        ({"text": "a <|memory|> b"}, "packed", "memory tags"),
        ({"text": "<|im_start|>user\n<|memory_end|>b<|im_end|>\n"}, "packed", "memory tags"),
        ({"text": "half \udc00"}, "packed", "encoding"),
        ({"text": "x" * 10_001}, "packed", "too long"),
    ],
)
def test_what_cannot_be_used_has_a_name(tokenizer, fields, kind, reason):
    with pytest.raises(RowError) as error:
        examples(fields, kind, tokenizer)
    assert error.value.reason == reason and error.value.detail


def test_packed_rows_have_turns_and_memory_written_out(tokenizer):
    asked = "<|im_start|>user\n<|memory_start|>Ben likes figs.<|memory_end|> Who?<|im_end|>\n"
    turns = f"{asked}<|im_start|>assistant\nBen<|im_end|>\n"
    parts = [{"context": "Ben likes figs."}, {"text": " Who?"}]
    expected = {"messages": [{"role": "user", "content": parts}, TALK[1]]}
    assert examples({"text": turns}, "packed", tokenizer) == [expected]
    halves = {"prompt": f"{asked}<|im_start|>assistant\n", "response": "Ben<|im_end|>"}
    assert examples(halves, "packed", tokenizer) == [expected]
    assert (
        examples({"packed": [turns, {"text": turns}], "n": [1]}, "packed", tokenizer)
        == [expected] * 2
    )
    document = "<|memory_start|>Once upon<|memory_end|> a time."
    (raw,) = examples({"text": document}, "packed", tokenizer)
    assert raw == {"spans": [{"context": "Once upon"}, {"text": " a time."}]}
    assert [one.role for one in tokenise(raw, tokenizer)] == [Role.CONTEXT, Role.ANSWER]
    assert words_of(raw) == "Once upon a time."


def test_questions_with_answers_become_traces(tokenizer):
    text = (
        "Line of words number one here. " * 150 + "Ada likes pears. " + "More of the words. " * 150
    )
    (raw,) = examples(
        {"text": text, "question": "What does Ada like?", "answers": ["pears"]}, "expand", tokenizer
    )
    first, last = raw["messages"][0]["content"], raw["messages"][-1]
    assert first[-1] == {"text": "\nWhat does Ada like?"} and last["content"] == "ANSWER: pears"
    assert (
        raw
        == examples(
            {"text": text, "question": "What does Ada like?", "answers": ["pears"]},
            "expand",
            tokenizer,
        )[0]
    )
