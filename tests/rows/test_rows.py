"""Rows to raw examples: spellings of chats, the original's packed rows, and errors by name."""

import datetime
import json

import pytest

from lclm_jax.data.records import Role
from lclm_jax.data.records.sections import flatten_sections
from lclm_jax.data.rows import checks
from lclm_jax.data.rows.raw_examples import (
    RowError,
    example_text,
    read_raw_examples,
    tokenize_example,
)
from lclm_jax.data.text.tokenizer import Tokenizer

pytestmark = pytest.mark.newest

DEEP = json.loads('{"a": ' * 500 + "1" + "}" * 500)
TALK = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ben"}]


def examples(fields, kind, tokenizer, longest=10_000):
    return list(read_raw_examples(fields, kind, tokenizer, longest))


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


SYSTEM = {"role": "system", "content": "Answer in French."}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "7", "name": "f"}
TOOL = {"name": "f", "description": "d", "parameters": {}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"system": SYSTEM["content"], "messages": TALK}, [SYSTEM, *TALK]),
        ({"system": SYSTEM["content"], "messages": [SYSTEM, *TALK]}, [SYSTEM, *TALK]),
        (
            {"system_prompt": SYSTEM["content"], "question": "Who?", "response": "Ben"},
            [SYSTEM, *TALK],
        ),
        (
            {"instruction": "And?", "output": "Cy", "history": [["Who?", "Ben"]], "system": "S"},
            [
                {"role": "system", "content": "S"},
                *TALK,
                {"role": "user", "content": "And?"},
                {"role": "assistant", "content": "Cy"},
            ],
        ),
        ({"messages": [SYSTEM, *TALK], "history": []}, [SYSTEM, *TALK]),
        (
            {"context": "Ben likes figs.", "question": "Who?", "answer": "Ben"},
            [
                {"role": "user", "content": [{"context": "Ben likes figs."}, {"text": "\n\nWho?"}]},
                TALK[1],
            ],
        ),
        (
            {"context": ["A.", "B."], "messages": [SYSTEM, *TALK]},
            [
                SYSTEM,
                {
                    "role": "user",
                    "content": [{"context": "A."}, {"context": "B."}, {"text": "\n\nWho?"}],
                },
                TALK[1],
            ],
        ),
        ({"messages": [{"role": "system", "content": ""}, *TALK]}, TALK),
        ({"messages": json.dumps(TALK)}, TALK),
        ({"conversations": {"from": ["Human", "GPT"], "value": ["Who?", "Ben"]}}, TALK),
        ({"messages": TALK, "prompt": "Who?", "conversations": TALK}, TALK),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, TALK),
        ({"instruction": "Who?", "output": "Ben", "text": "### Ask: Who?\n### Say: Ben"}, TALK),
        ({"messages": [TALK[0], {"role": "assistant", "content": None, "refusal": "Ben"}]}, TALK),
        ({"messages": [TALK[0], TALK[1] | {"weight": 1, "name": None}]}, TALK),
        (
            {"messages": [TALK[0], CALLED | {"content": ""}, RESULT, TALK[1]]},
            [TALK[0], CALLED | {"content": ""}, RESULT, TALK[1]],
        ),
        (
            {
                "messages": [
                    TALK[0],
                    {"role": "assistant", "function_call": {"name": "f", "arguments": '{"x": 1}'}},
                    {"role": "function", "name": "f", "content": "7"},
                    TALK[1],
                ]
            },
            [TALK[0], CALLED, RESULT, TALK[1]],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Who?"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                    {"from": "observation", "value": "7", "name": "f"},
                    {"from": "gpt", "value": "Ben"},
                ]
            },
            [TALK[0], CALLED, RESULT, TALK[1]],
        ),
        (
            {"messages": [TALK[0], TALK[1] | {"thinking": "Hm.", "mood": "sure"}]},
            [TALK[0], TALK[1] | {"reasoning_content": "Hm.", "mood": "sure"}],
        ),
        (
            {"problem": "Who?", "solution": "Ben", "reasoning": "Hm.", "answer": "Ben"},
            [TALK[0], TALK[1] | {"reasoning_content": "Hm."}],
        ),
        (
            {"messages": [{"role": "user", "content": [{"text": ""}, {"text": "Who?"}]}, TALK[1]]},
            [{"role": "user", "content": [{"text": "Who?"}]}, TALK[1]],
        ),
    ],
)
def test_fields_of_public_datasets_reach_the_model(tokenizer, fields, expected):
    (raw,) = examples(fields, "chat", tokenizer)
    assert raw == {"messages": expected}
    assert len(flatten_sections(tokenize_example(raw, tokenizer))[0])


@pytest.mark.parametrize(
    "fields", [{"functions": [TOOL]}, {"tools": [{"type": "function", "function": TOOL}]}]
)
def test_tools_in_either_spelling_reach_the_model(tokenizer, fields):
    (raw,) = examples(fields | {"messages": TALK}, "chat", tokenizer)
    assert raw["tools"] == [{"type": "function", "function": TOOL}]
    assert '"description": "d"' in example_text(raw)


@pytest.mark.parametrize(
    "flag",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"train": False},
        {"loss": "false"},
        {"loss_mask": 0},
        {"train_on_turn": False},
    ],
)
def test_a_message_of_weight_0_is_read_and_not_trained_on(tokenizer, flag):
    messages = [TALK[0], {"role": "assistant", "content": "Dan"} | flag, TALK[0], TALK[1]]
    (raw,) = examples({"messages": messages}, "chat", tokenizer)
    assert raw["messages"][1] == {"role": "assistant", "content": "Dan", "trained": False}
    sections = tokenize_example(raw, tokenizer)
    answers = [
        tokenizer.decode(section.tokens) for section in sections if section.role is Role.ANSWER
    ]
    assert answers == ["Ben<|im_end|>"]
    assert "Dan<|im_end|>" in "".join(tokenizer.decode(section.tokens) for section in sections)


def test_instructions_keep_their_input_and_contents_their_parts(tokenizer):
    (raw,) = examples({"instruction": "Add.", "input": "1 2", "output": "3"}, "chat", tokenizer)
    assert raw["messages"][0]["content"] == "Add.\n\n1 2"
    content = [{"text": "Read "}, {"context": "Ben likes figs.", "ratio": 8}]
    (raw,) = examples(
        {"messages": [{"role": "user", "content": content}, TALK[1]]}, "chat", tokenizer
    )
    assert raw["messages"][0]["content"] == content
    contexts = [
        (section.role, section.ratio)
        for section in tokenize_example(raw, tokenizer)
        if section.role is Role.CONTEXT
    ]
    assert contexts == [(Role.CONTEXT, 8)]
    assert "Ben likes figs." in example_text(raw)


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
        tokenizer.decode(section.tokens).strip()
        for section in tokenize_example(raw, tokenizer)
        if section.role is Role.ANALYSIS
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
        ({"messages": TALK, "tools": [{"default": float("nan")}]}, "chat", "chat"),
        ({"messages": TALK, "system": 7}, "chat", "fields"),
        ({"messages": [SYSTEM, *TALK], "system": "Answer in German."}, "chat", "fields"),
        ({"messages": TALK, "history": [["What?"]]}, "chat", "fields"),
        ({"messages": TALK, "context": {"a": "b"}}, "chat", "fields"),
        ({"messages": TALK, "input": "More words."}, "chat", "fields"),
        ({"messages": TALK, "images": [b"\x89PNG"]}, "chat", "fields"),
        ({"prompt": "Who?", "chosen": "Ben", "rejected": "Dan"}, "chat", "fields"),
        ({"prompt": "Who?", "completion": "Dan", "label": False}, "chat", "fields"),
        ({"messages": TALK, "kto_tag": False}, "chat", "fields"),
        ({"prompt": "Who?", "completion": "Dan", "label": "False"}, "chat", "fields"),
        ({"prompt": "Who?", "completion": "Dan", "label": 0}, "chat", "fields"),
        ({"messages": TALK, "kto_tag": "false"}, "chat", "fields"),
        ({"instruction": "Add.", "input": 7, "output": "3"}, "chat", "fields"),
        ({"messages": [TALK[0], TALK[1] | {"weight": 0.5}]}, "chat", "chat"),
        ({"messages": [TALK[0], TALK[1] | {"weight": 0}]}, "chat", "chat"),
        ({"messages": [TALK[0], TALK[1] | {"weight": 0, "train": True}]}, "chat", "chat"),
        ({"messages": [TALK[0] | {"from": "gpt"}, TALK[1]]}, "chat", "chat"),
        ({"messages": [TALK[0] | {"tools": [TOOL]}, TALK[1]]}, "chat", "chat"),
        (
            {"messages": [TALK[0] | {"content": [{"text": "a", "context": "b"}]}, TALK[1]]},
            "chat",
            "chat",
        ),
        ({"messages": [TALK[0] | {"content": [{"context": ""}]}, TALK[1]]}, "chat", "empty"),
        (
            {"messages": [TALK[0] | {"content": [{"context": "x", "ratio": 2**31}]}, TALK[1]]},
            "chat",
            "chat",
        ),
        ({"messages": [{"role": 10**5000, "content": "x"}, TALK[1]]}, "chat", "chat"),
        ({"messages": [TALK[0], CALLED | {"tool_calls": [{"function": "f"}]}]}, "chat", "chat"),
        (
            {"messages": [TALK[0], CALLED | {"tool_calls": [{"name": "f", "arguments": DEEP}]}]},
            "chat",
            "fields",
        ),
        ({"messages": [{1: "user"}, TALK[1]]}, "chat", "chat"),
        ({"text": b"\xff"}, "text", "encoding"),
        ({"text": "<|im_start|>user\nWho?<|im_end|>\n"}, "packed", "chat"),
        ({"text": "Words. <|im_start|>assistant\nBen<|im_end|>\n"}, "packed", "chat"),
        ({"text": "<|im_start|>assistant\nBen<|im_end|>\nWords."}, "packed", "chat"),
        ({"text": "<|im_start|>user\nWho?<|im_start|>assistant\nBen"}, "packed", "chat"),
        ({"text": "Ben<|im_end|>"}, "packed", "chat"),
        ({"text": "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"}, "packed", "empty"),
        ({"text": "a", "document": "b"}, "packed", "fields"),
        ({"rows": TALK}, "packed", "fields"),
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
    assert [section.role for section in tokenize_example(raw, tokenizer)] == [
        Role.CONTEXT,
        Role.ANSWER,
    ]
    assert example_text(raw) == "Once upon a time."


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


def test_the_last_turn_of_a_packed_row_may_be_open(tokenizer):
    text = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nBen"
    assert examples({"text": text}, "packed", tokenizer) == [{"messages": TALK}]
    halves = {"prompt": text.removesuffix("Ben"), "response": "Ben"}
    assert examples(halves, "packed", tokenizer) == [{"messages": TALK}]


def test_a_packed_row_gives_what_it_can_before_the_error_of_the_rest(tokenizer):
    good = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nBen<|im_end|>\n"
    examples = []
    with pytest.raises(RowError, match="1 of 3 examples of the row, first: expected turns alone"):
        for raw in read_raw_examples(
            {"packed": [good, f"Stray {good}", [good]]}, "packed", tokenizer, 1000
        ):
            examples.append(raw)
    assert examples == [{"messages": TALK}] * 2


def test_bytes_that_hold_utf8_are_text(tokenizer):
    assert examples({"text": "Zoë".encode()}, "text", tokenizer) == [{"text": "Zoë"}]


@pytest.mark.parametrize("letter", ["a", " ", "\n", "語"])
def test_a_word_that_would_fill_the_memory_is_refused(tokenizer, monkeypatch, letter):
    monkeypatch.setattr(checks, "MAX_UNSPLIT_CHARACTERS", 1000)
    with pytest.raises(RowError, match="too long: expected a space within every 1000 characters"):
        examples({"text": f"Some words {letter * 3000} more"}, "text", tokenizer, 50_000)
    text = f"{letter * 900}. " * 9
    assert examples({"text": text}, "text", tokenizer, 50_000) == [{"text": text}]


def test_a_tokenizer_without_words_takes_no_longer_text_than_a_word(tokenizer, monkeypatch):
    whole = json.loads(tokenizer.definition) | {"pre_tokenizer": None}
    monkeypatch.setattr("lclm_jax.data.rows.raw_examples.MAX_UNSPLIT_CHARACTERS", 1000)
    with pytest.raises(RowError, match="too long: .* a tokenizer that takes a text for one word"):
        examples({"text": "words " * 500}, "text", Tokenizer(json.dumps(whole)))
    assert examples({"text": "words " * 500}, "text", tokenizer)
