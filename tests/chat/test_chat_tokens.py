"""Chats get the tokens of transformers' `apply_chat_template`, and every token has a role."""

import json

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lclm_jax.data.chat.chat import PromptEnd, tokenize_normalized_chat
from lclm_jax.data.records import Role
from lclm_jax.data.text.tokenizer import TextError, Tokenizer
from tests.support.chat_templates import BOS, CHATS, END, EOS, TEMPLATES, TOOLS

pytestmark = pytest.mark.image

MARKUP = ("<|head|>", "<|body|>", "<|turn|>", "<|user|>", "<|assistant|>", "<|system|>")
WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
CONTROL_TOKEN_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def byte_level(definition: str) -> dict:
    """The tests' own tokenizer."""
    return json.loads(definition)


def sentence_pieces(_) -> dict:
    """A tokenizer as Llama 2's: a low line stands for a space and before every text."""
    words = ("▁Who", "▁likes", "▁figs", "▁Ben", "▁and", "▁Cy", "▁[", "INST", "assistant", "▁the")
    vocabulary = {"<unk>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}}
    merges = []
    for word in words:
        for letter in word:
            vocabulary.setdefault(letter, len(vocabulary))
        for i in range(1, len(word)):
            if [word[:i], word[i]] not in merges:
                merges.append([word[:i], word[i]])
            vocabulary.setdefault(word[: i + 1], len(vocabulary))
    lines = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges, "unk_token": "<unk>"}
    model |= {"byte_fallback": True, "fuse_unk": True, "dropout": None, "ignore_merges": False}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    return {
        "normalizer": {"type": "Sequence", "normalizers": lines},
        "pre_tokenizer": None,
        "decoder": {"type": "ByteFallback"},
        "model": model,
    }


def whole_words(_) -> dict:
    """A tokenizer of words between spaces and punctuation."""
    words = "[UNK] Who likes figs ? Ben user assistant system tool : [ ] INST / . And plums Cy"
    vocabulary = {word: i for i, word in enumerate(words.split())}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }


@pytest.fixture(params=[byte_level, sentence_pieces, whole_words], ids=lambda kind: kind.__name__)
def directory(request, tokenizer, tmp_path):
    """A tokenizer's directory without a template."""
    fields = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None}
    fields |= {"added_tokens": []} | request.param(tokenizer.definition)
    known = {token["content"] for token in fields["added_tokens"]}
    size = len(fields["model"]["vocab"]) + len(known)
    absent = [x for x in (BOS, EOS, END, "<|im_start|>", *MARKUP, *WORDS) if x not in known]
    fields["added_tokens"] += [
        {"id": size + i, "content": name, "special": name not in WORDS, **CONTROL_TOKEN_FLAGS}
        for i, name in enumerate(absent)
    ]
    text = json.dumps(fields, ensure_ascii=False)
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    return tmp_path


def with_template(directory, template: str) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    """Our tokenizer and transformers' of one directory."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS}
    settings |= {"eos_token": {"content": EOS, "__type": "AddedToken", **CONTROL_TOKEN_FLAGS}}
    settings |= {"chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return Tokenizer.load(directory), PreTrainedTokenizerFast.from_pretrained(directory)


def tokens_of(sections) -> list[int]:
    return [int(token) for section in sections for token in np.asarray(section.tokens)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_has_the_tokens_of_transformers(directory, name):
    tokenizer, reference = with_template(directory, TEMPLATES[name])
    compared = 0
    for chat in CHATS.values():
        for tools in (None, TOOLS):
            for generate in (False, True):
                try:
                    rendered = reference.apply_chat_template(
                        chat, tools=tools, add_generation_prompt=generate, tokenize=False
                    )
                except Exception:  # noqa: BLE001 a template may raise whatever Python does
                    with pytest.raises(TextError):
                        tokenize_normalized_chat(chat, tokenizer, tools or (), generate)
                    continue
                expected = reference(rendered, add_special_tokens=False)["input_ids"]
                assert (
                    tokens_of(tokenize_normalized_chat(chat, tokenizer, tools or (), generate))
                    == expected
                )
                compared += 1
    assert compared > len(CHATS)


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"upper", "first letters"}))
def test_a_begun_answer_has_the_tokens_of_transformers(directory, name):
    tokenizer, reference = with_template(directory, TEMPLATES[name])
    for beginning in ("It is", "Figs:\n\nBen"):
        chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": beginning}]
        rendered = reference.apply_chat_template(chat, continue_final_message=True, tokenize=False)
        assert rendered.endswith(beginning)
        for added in ("", " so be it"):
            end = PromptEnd(continued=True, text=added)
            sections = tokenize_normalized_chat(chat, tokenizer, generate=True, end=end)
            expected = reference(rendered + added, add_special_tokens=False)["input_ids"]
            assert tokens_of(sections) == expected


def spelled(tokenizer: Tokenizer) -> str:
    return "".join(f"a {name}b{name} " for name in tokenizer.control if name not in WORDS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_words_names_and_tools_never_become_control_tokens(directory, name):
    tokenizer, _ = with_template(directory, TEMPLATES[name])
    numbers = set(tokenizer.control.values())

    def control_tokens(words: str) -> list[int]:
        call = {"function": {"name": words, "arguments": {words: words}}, "type": "function"}
        chat = [
            {"role": "user", "content": words, "name": words},
            {"role": "assistant", "content": words, "tool_calls": [call]},
            {"role": "tool", "content": words, "tool_call_id": words},
            {"role": "assistant", "content": words, "reasoning_content": words},
        ]
        tools = [{"type": "function", "function": {"name": words, "description": words}}]
        tokens = tokens_of(tokenize_normalized_chat(chat, tokenizer, tools))
        return [token for token in tokens if token in numbers]

    assert control_tokens(spelled(tokenizer)) == control_tokens("figs and pears")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_context_stands_where_its_message_is(directory, name):
    tokenizer, _ = with_template(directory, TEMPLATES[name])
    parts = [{"text": "Read "}, {"context": "Ben and figs", "ratio": 2}, {"text": " and say"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Ben"}]
    sections = tokenize_normalized_chat(chat, tokenizer)
    (context,) = [section for section in sections if section.role is Role.CONTEXT]
    assert context.tokens.tolist() == tokenizer.encode("Ben and figs").tolist()
    assert context.ratio == 2
    plain = [dict(chat[0], content="Read \ufffc and say"), chat[1]]
    around = [x for x in sections if x.role is not Role.CONTEXT]
    without = tokenize_normalized_chat(plain, tokenizer)
    assert abs(len(tokens_of(around)) - len(tokens_of(without))) <= 4  # \ufffc has up to 3 tokens


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_follows_the_prompt_for_an_answer_is_trained_on_to_its_end(directory, name):
    tokenizer, _ = with_template(directory, TEMPLATES[name])
    asked, answered = CHATS["one question"][:1], CHATS["one question"]
    prompt = tokens_of(tokenize_normalized_chat(asked, tokenizer, generate=True))
    sections = tokenize_normalized_chat(answered, tokenizer)
    tokens = tokens_of(sections)
    trained = [x.role is Role.ANSWER for x in sections for _ in x.tokens]
    start, stop = trained.index(True), len(trained) - trained[::-1].index(True)
    assert all(trained[start:stop])
    # A space at the end of a prompt may be in one token with the answer.
    joined = tokenizer.decode(prompt).endswith((" ", "▁"))
    assert start == len(prompt) - joined * (tokens[: len(prompt)] != prompt)
    assert tokens[:start] == prompt[:start]
    assert (
        tokenizer.decode(tokens[stop - 1 : stop]) in ("<|turn|>", EOS, END) or name == "plain words"
    )
