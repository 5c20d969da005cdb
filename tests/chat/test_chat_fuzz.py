"""Random chats through templates of all kinds: the tokens of transformers, or a TextError."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lclm_jax.data.chat.chat import build_chat_record, tokenize_normalized_chat
from lclm_jax.data.records import Role
from lclm_jax.data.text.tokenizer import TextError, Tokenizer
from tests.support.chat_templates import BOS, EOS, TEMPLATES, TOOLS

pytestmark = [pytest.mark.image, pytest.mark.fuzz]

EXAMPLES = settings(max_examples=int(os.environ.get("LCLM_FUZZ", "60")), deadline=None)
LETTERS = "ab \n\t'\"{}%\\é木\u00a0\u2028\ufffc\ue0000\ue001<|>/think"
TEXT = st.text(LETTERS, max_size=12) | st.sampled_from(["<think>\nx\n</think>\n\ny", "none", ""])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda x: st.lists(x, max_size=2) | st.dictionaries(TEXT, x, max_size=2),
    max_leaves=4,
)
CALL = st.fixed_dictionaries(
    {"name": TEXT, "arguments": st.dictionaries(TEXT, JSON, max_size=2)}
).map(lambda function: {"type": "function", "function": function})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXT},
    optional={
        "name": TEXT,
        "tool_calls": st.lists(CALL, max_size=2),
        "reasoning_content": TEXT,
        "tool_call_id": TEXT,
    },
)
CHAT = st.lists(MESSAGE, min_size=1, max_size=4)
ANYTHING = st.recursive(
    JSON | st.binary(max_size=4),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def tokenizers(tokenizer, tmp_path_factory):
    """Both tokenizers for each template, by its name."""
    fields = json.loads(tokenizer.definition)
    form = {k: v for k, v in fields["added_tokens"][0].items() if k not in ("id", "content")}
    size = max(token["id"] for token in fields["added_tokens"]) + 1
    fields["added_tokens"] += [
        {**form, "id": size + i, "content": x} for i, x in enumerate((BOS, EOS))
    ]
    loaded = {}
    for name, template in TEMPLATES.items():
        directory = tmp_path_factory.mktemp("tokenizer")
        (directory / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS}
        settings |= {"eos_token": EOS, "chat_template": template}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        reference = PreTrainedTokenizerFast.from_pretrained(directory)
        loaded[name] = Tokenizer.load(directory), reference
    return loaded


@EXAMPLES
@given(CHAT, st.sampled_from(sorted(TEMPLATES)), st.booleans(), st.sampled_from([None, TOOLS]))
def test_a_chat_has_the_tokens_of_transformers_or_is_refused(
    tokenizers, chat, name, generate, tools
):
    tokenizer, reference = tokenizers[name]
    try:
        sections = tokenize_normalized_chat(chat, tokenizer, tools or (), generate)
    except TextError:
        return
    rendered = reference.apply_chat_template(
        chat, tools=tools, add_generation_prompt=generate, tokenize=False
    )
    tokens = [int(token) for x in sections for token in np.asarray(x.tokens)]
    assert tokens == reference(rendered, add_special_tokens=False)["input_ids"]
    answers = any(message["role"] == "assistant" for message in chat)
    assert answers or not any(x.role in (Role.ANSWER, Role.ANALYSIS) for x in sections)


@EXAMPLES
@given(st.lists(ANYTHING | MESSAGE, max_size=3), st.sampled_from(sorted(TEMPLATES)))
def test_what_is_no_chat_is_refused(tokenizers, messages, name):
    tokenizer, _ = tokenizers[name]
    for read in (tokenize_normalized_chat, build_chat_record):
        try:
            read(messages, tokenizer)
        except TextError:
            continue
