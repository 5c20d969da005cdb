"""`LanguageModel.chat` reads the same chat as training does."""

import numpy as np
import pytest

from lclm_jax.data.records import Context, Plain
from lclm_jax.data.rows.raw_examples import tokenize_example
from lclm_jax.data.text.tokenizer import TextError, Tokenizer
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from tests.support.chat_templates import CHATS, TEMPLATES, TOOLS

pytestmark = pytest.mark.image

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
ASKED = {"role": "user", "content": "Weather?"}
RESULT = {"role": "tool", "content": "17 C", "tool_call_id": "c1"}


def with_template(model: LanguageModel, template: str) -> LanguageModel:
    special = {"bos_token": "<|endoftext|>", **model.tokenizer.special}
    tokenizer = Tokenizer(model.tokenizer.definition, template, special)
    return LanguageModel(model.config, model.params, tokenizer)


def prompt(model: LanguageModel, *args, **kwargs) -> list[int]:
    record = model.render(*args, **kwargs)
    return [int(token) for span in record for token in span.tokens]


@pytest.mark.parametrize(
    "answer",
    [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL["function"]]},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Paris"}'}}],
        },
    ],
)
def test_calls_and_their_results_are_read(model, answer):
    text = model.tokenizer.decode(prompt(model, [ASKED, answer, RESULT]))
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{call}<|im_end|>\n" in text
    assert "17 C" in text


def test_tools_and_settings_reach_the_template(model):
    text = model.tokenizer.decode(prompt(model, [ASKED], tools=TOOLS))
    assert '"name": "run"' in text
    switch = "{{ messages[0].content }}{% if thinking %} think {{ thinking }}{% endif %}"
    other = with_template(model, switch)
    assert other.tokenizer.decode(prompt(other, [ASKED], settings={"thinking": "hard"})) == (
        "Weather? think hard"
    )


@pytest.mark.parametrize("template", ["chatml", "thoughts cut", "instructions", "headers"])
@pytest.mark.parametrize("name", [name for name, chat in CHATS.items() if len(chat) > 2])
def test_a_prompt_is_what_training_reads_before_the_answer(model, template, name):
    model = with_template(model, TEMPLATES[template])
    chat = CHATS[name]
    answers = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    chat = chat[: answers[-1] + 1]
    trained = [
        int(t) for x in tokenize_example({"messages": chat}, model.tokenizer) for t in x.tokens
    ]
    asked = prompt(model, chat[:-1])
    assert trained[: len(asked)] == asked


def test_latents_stand_where_the_template_puts_their_message(model):
    backwards = with_template(model, "{% for m in messages | reverse %}{{ m.content }}{% endfor %}")
    first, second = (Latents(np.full((n, 32), n, np.float32), n) for n in (2, 3))
    chat = [{"role": "user", "content": [first]}, {"role": "user", "content": [second, " and"]}]
    record = backwards.render(chat)
    assert [part for part in record if isinstance(part, Latents)] == [second, first]


@pytest.mark.parametrize("content", [b"Who?", {"text": "Who?"}, 7, [b"Who?"], [3.5], [["Who?"]]])
def test_a_content_that_is_no_text_is_refused(model, content):
    with pytest.raises(TextError, match="expected a (content|part) that is text"):
        model.render([{"role": "user", "content": content}])


def test_half_a_surrogate_pair_is_refused(model):
    with pytest.raises(TextError, match=r"got half a surrogate pair, '\\ud83d'"):
        model.render([{"role": "user", "content": "ab\ud83d"}])


def test_memory_tags_of_a_text_are_contexts_and_those_in_a_list_are_letters(model):
    text = "Read <|memory_start|>figs<|memory_end|>"
    assert any(isinstance(x, Context) for x in model.render([{"role": "user", "content": text}]))
    (record,) = model.render([{"role": "user", "content": [text]}])
    assert isinstance(record, Plain)


def test_a_thought_is_in_the_prompt_whether_the_template_reads_it_or_not(model):
    chat = [ASKED, {"role": "assistant", "content": "17", "reasoning_content": "It is wet"}]
    for template in ("chatml", "thoughts cut"):
        other = with_template(model, TEMPLATES[template])
        text = other.tokenizer.decode(prompt(other, chat))
        assert "<think>\nIt is wet\n</think>\n\n17<|im_end|>" in text
