"""The files beside a tokenizer.json.

Templates, special tokens and generation ids are those that transformers reads, and all of
them are restored from a saved directory.
"""

import json
import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lclm_jax.data.chat.chat import CHATML
from lclm_jax.data.chat.stop_tokens import find_stop_ids, find_turn_end_id
from lclm_jax.data.text.tokenizer import (
    PAD,
    TURN_END,
    TURN_START,
    TextError,
    Tokenizer,
    add_memory_tokens,
)
from lclm_jax.data.text.tokenizer_json import CONTROL_TOKEN_FLAGS

NAMES = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end|>")
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
NAMED = [
    {"name": "default", "template": "{{ messages }}"},
    {"name": "tool_use", "template": "{{ tools }}"},
    {"name": "rag", "template": "{{ documents }}"},
]
FILES = {  # beside a tokenizer.json
    "nothing": {},
    "a template": {"tokenizer_config.json": {"chat_template": "{{ messages }}"}},
    "named templates": {"tokenizer_config.json": {"chat_template": NAMED}},
    "no default": {"tokenizer_config.json": {"chat_template": NAMED[1:]}},
    "a file instead": {
        "tokenizer_config.json": {"chat_template": NAMED},
        "chat_template.jinja": "{{ messages[0] }}",
    },
    "files": {
        "chat_template.jinja": "{{ messages[0] }}",
        "additional_chat_templates/tool_use.jinja": "{{ tools[0] }}",
        "additional_chat_templates/a.b.jinja": "Zoë",
    },
    "special tokens": {
        "tokenizer_config.json": {
            "bos_token": TURN_START,
            "eos_token": {"__type": "AddedToken", "content": TURN_END, "lstrip": False},
            "pad_token": None,
            "image_token": "<|memory|>",
            "add_bos_token": True,
        }
    },
    "an older map": {
        "tokenizer_config.json": {"bos_token": TURN_START, "eos_token": TURN_START},
        "special_tokens_map.json": {
            "eos_token": {"content": TURN_END, "lstrip": False},
            "sep_token": PAD,
        },
    },
    "a map that does not count": {
        "tokenizer_config.json": {"eos_token": PAD, "added_tokens_decoder": {}},
        "special_tokens_map.json": {"eos_token": TURN_END},
    },
    "more special tokens": {
        "tokenizer_config.json": {"extra_special_tokens": {"boi_token": TURN_START, "x": PAD}}
    },
}


def with_tokens(tokenizer, names=NAMES, **form) -> str:
    """The definition with more added tokens."""
    fields = json.loads(tokenizer.definition)
    added = [
        {**CONTROL_TOKEN_FLAGS, **form, "id": tokenizer.embedding_rows + i, "content": name}
        for i, name in enumerate(names)
    ]
    return json.dumps({**fields, "added_tokens": fields["added_tokens"] + added})


def without_chatml(tokenizer) -> str:
    """The definition with Llama 3's control tokens alone."""
    fields = json.loads(tokenizer.definition)
    first = len(fields["model"]["vocab"])
    added = [
        {**CONTROL_TOKEN_FLAGS, "id": first + i, "content": name} for i, name in enumerate(NAMES)
    ]
    return json.dumps({**fields, "added_tokens": added})


def write(directory, definition, files):
    (directory / "tokenizer.json").write_text(definition, encoding="utf-8")
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / name).write_text(text, encoding="utf-8")
    return directory


@pytest.mark.parametrize("name", FILES)
def test_templates_and_special_tokens_are_those_of_transformers(tokenizer, tmp_path, name):
    from transformers import PreTrainedTokenizerFast

    write(tmp_path, tokenizer.definition, FILES[name])
    loaded = Tokenizer.load(tmp_path)
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    template = reference.chat_template or {}
    expected = template if isinstance(template, dict) else {"default": template}
    assert loaded.templates == expected
    assert loaded.template == expected.get("default")
    assert loaded.special == reference.special_tokens_map
    loaded.save(tmp_path / "saved")
    saved = Tokenizer.load(tmp_path / "saved")
    assert (saved.templates, saved.special) == (loaded.templates, loaded.special)
    assert saved.fingerprint == loaded.fingerprint
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    assert loaded.special == reference.special_tokens_map


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: expected a JSON object, got list"),
        ("tokenizer_config.json", {"chat_template": 5}, "expected chat_template to be text"),
        ("tokenizer_config.json", {"chat_template": [{"name": "a"}]}, "expected chat_template"),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "../a", "template": "b"}]},
            "expected chat_template .*no path",
        ),
        ("tokenizer_config.json", {"eos_token": 5}, "expected eos_token to be a token, got 5"),
        ("generation_config.json", {"eos_token_id": "</s>"}, "expected eos_token_id to be a token"),
        (
            "generation_config.json",
            {"eos_token_id": [1, True]},
            "expected eos_token_id to be a token",
        ),
        ("generation_config.json", {"bos_token_id": [1]}, "expected bos_token_id to be a token id"),
        ("tokenizer.json", "{}", "tokenizer.json: expected a tokenizer.json with a model"),
        ("tokenizer.json", "{", "tokenizer.json: expected a tokenizer.json, got no JSON"),
        (
            "tokenizer.json",
            {"model": {"vocab": {}}},
            "expected a tokenizer.json that the tokenizers library can read",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tokenizer, tmp_path, file, content, message):
    write(tmp_path, tokenizer.definition, {file: content})
    with pytest.raises(TextError, match=re.escape(str(tmp_path)) + ".*" + message):
        Tokenizer.load(tmp_path)


def test_files_are_utf_8_whatever_the_locale(tokenizer, tmp_path):
    write(tmp_path, tokenizer.definition, {"chat_template.jinja": "Zoë"})
    (tmp_path / "tokenizer_config.json").write_bytes(b'{"bos_token": "\xff"}')
    with pytest.raises(
        TextError, match=r"tokenizer_config\.json is not UTF-8 text: byte 0xff at 15"
    ):
        Tokenizer.load(tmp_path)


def test_a_special_token_that_is_only_an_entry_of_the_vocabulary_is_no_text(tokenizer, tmp_path):
    fields = json.loads(tokenizer.definition)
    vocab = {"the": 0, "</s>": 1, "<unk>": 2}
    fields["model"] = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    fields |= {"added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": None}
    write(tmp_path, json.dumps(fields), {"tokenizer_config.json": {"eos_token": "</s>"}})
    loaded = Tokenizer.load(tmp_path)
    assert loaded.control == {"</s>": 1}
    assert loaded.encode("the </s> the").tolist() == [0, 2, 0]
    assert loaded.encode_with_control([("the </s>", True)])[0].tolist() == [0, 1]


# --- stops ---


def test_generation_ends_at_every_token_the_files_name(tokenizer, tmp_path):
    slot, end, turn = (tokenizer.id(name) for name in ("<|memory|>", PAD, TURN_END))
    files = {"generation_config.json": {"eos_token_id": [slot, end], "bos_token_id": end}}
    loaded = Tokenizer.load(write(tmp_path, tokenizer.definition, files))
    assert set(loaded.stops) == {slot, end, turn}
    loaded.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").generation == files["generation_config.json"]
    assert Tokenizer.load(tmp_path / "saved").stops == loaded.stops


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_one_number_is_a_stop_too_and_an_older_model_has_it_in_its_config(
    tokenizer, tmp_path, file
):
    files = {file: {"eos_token_id": 7, "pad_token_id": None, "vocab_size": 5}}
    loaded = Tokenizer.load(write(tmp_path, tokenizer.definition, files))
    assert loaded.generation == {"eos_token_id": 7}
    assert loaded.stops[0] == 7


def test_a_generation_config_comes_before_the_models_own(tokenizer, tmp_path):
    files = {
        "config.json": {"eos_token_id": 7, "bos_token_id": 8, "pad_token_id": -1},
        "generation_config.json": {"eos_token_id": [5, 6]},
    }
    loaded = Tokenizer.load(write(tmp_path, tokenizer.definition, files))
    assert loaded.generation == {"eos_token_id": [5, 6], "bos_token_id": 8}


def test_stops_are_rows_of_the_table(tokenizer):
    generation = {"eos_token_id": [tokenizer.embedding_rows, -1, 4]}
    more = Tokenizer(
        tokenizer.definition, stops=[3, tokenizer.embedding_rows], generation=generation
    )
    assert set(more.stops) == {3, 4, tokenizer.id(PAD), tokenizer.id(TURN_END)}


def test_the_special_eos_token_is_a_stop_in_a_family_without_chatml(tokenizer):
    special = {"eos_token": "<|end|>", "bos_token": NAMES[0]}
    llama = Tokenizer(without_chatml(tokenizer), LLAMA_3, special)
    assert llama.stops == (llama.id("<|end|>"),)
    assert find_turn_end_id(llama) == llama.id("<|eot_id|>")
    assert find_stop_ids(llama) == (llama.id("<|end|>"), llama.id("<|eot_id|>"))


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ messages[0].content }}"])
def test_a_template_without_an_end_of_turn_adds_no_stop(tokenizer, template):
    plain = Tokenizer(without_chatml(tokenizer), template)
    assert find_turn_end_id(plain) is None
    assert find_stop_ids(plain) == plain.stops == ()


def test_chatml_ends_turns_as_ever(tokenizer):
    for template in (None, CHATML):
        chatml = Tokenizer(tokenizer.definition, template)
        assert find_turn_end_id(chatml) == tokenizer.id(TURN_END)
        assert find_stop_ids(chatml) == (tokenizer.id(TURN_END), tokenizer.id(PAD))


# --- fingerprints ---


def test_a_tokenizer_saved_by_an_older_version_keeps_its_fingerprint(tokenizer, tmp_path):
    """Data prepared with it is still its data."""
    import hashlib

    older = hashlib.sha256(f"{tokenizer.definition}\n{CHATML}".encode()).hexdigest()[:16]
    assert tokenizer.fingerprint == older
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": PAD,
    }
    files = {"tokenizer_config.json": settings, "chat_template.jinja": CHATML}
    assert Tokenizer.load(write(tmp_path, tokenizer.definition, files)).fingerprint == older


def test_line_ends_of_files_do_not_change_the_fingerprint(tokenizer, tmp_path):
    definition = json.dumps(json.loads(tokenizer.definition), indent=1)
    template = "{% for m in messages %}\n{{ m.content }}\n{% endfor %}"
    fingerprints = set()
    for end in ("\n", "\r\n", "\r"):
        files = {"tokenizer.json": definition, "chat_template.jinja": template}
        for name, text in files.items():
            (tmp_path / name).write_bytes(text.replace("\n", end).encode())
        fingerprints.add(Tokenizer.load(tmp_path).fingerprint)
    assert fingerprints == {Tokenizer(definition, template, {}).fingerprint}


def test_what_decides_tokens_decides_the_fingerprint(tokenizer):
    def fingerprint(definition=tokenizer.definition, template=CHATML, special=None, **options):
        return Tokenizer(definition, template, special, **options).fingerprint

    plain = fingerprint()
    assert fingerprint(stops=[1], generation={"eos_token_id": 2}) == plain
    assert fingerprint(special={"bos_token": PAD}) == plain, "which no template writes"
    written = "{{ bos_token }}{{ messages[0].content }}"
    different = [
        fingerprint(template={"default": CHATML, "tool_use": "{{ tools }}"}),
        fingerprint(with_tokens(tokenizer, ["CAPEX"], special=False)),
        fingerprint(template=written, special={"bos_token": PAD}),
        fingerprint(template=written, special={"bos_token": TURN_END}),
    ]
    assert len({plain, *different}) == 5


def test_a_tokenizer_with_memory_tokens_keeps_all_else(tokenizer):
    special = {"eos_token": "<|eot_id|>", "bos_token": NAMES[0]}
    generation = {"eos_token_id": 5}
    templates = {"default": LLAMA_3, "rag": "{{ documents }}"}
    llama = Tokenizer(without_chatml(tokenizer), templates, special, [6], generation)
    whole = add_memory_tokens(llama)
    assert whole.embedding_rows == llama.embedding_rows + 3
    assert (whole.templates, whole.special, whole.stops) == (templates, special, llama.stops)
    assert whole.generation == generation


# --- whatever is in the files ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**33) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = ("chat_template", "bos_token", "eos_token", "extra_special_tokens", "added_tokens_decoder")
SETTINGS = st.dictionaries(st.sampled_from([*KEYS, "additional_special_tokens", "x_token"]), JSON)
GENERATION = st.dictionaries(
    st.sampled_from(["bos_token_id", "eos_token_id", "pad_token_id"]), JSON
)
FUZZ = settings(
    max_examples=int(os.environ.get("LCLM_FUZZ", "50")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def test_a_tokenizer_saved_over_another_is_read_back_as_itself(tokenizer, tmp_path):
    templates = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    special = {"bos_token": TURN_START}
    other = Tokenizer(tokenizer.definition, templates, special, generation={"eos_token_id": 1})
    other.save(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"cls_token": "x"}', encoding="utf-8")
    bare = Tokenizer(tokenizer.definition)
    bare.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.templates, loaded.special) == ({}, bare.special)
    assert (loaded.generation, loaded.stops) == ({}, bare.stops)


@pytest.mark.fuzz
@FUZZ
@given(SETTINGS, GENERATION, SETTINGS)
def test_files_are_read_or_refused(tokenizer, tmp_path, config, generation, special):
    write(
        tmp_path,
        tokenizer.definition,
        {
            "tokenizer_config.json": config,
            "generation_config.json": generation,
            "special_tokens_map.json": special,
        },
    )
    try:
        loaded = Tokenizer.load(tmp_path)
    except TextError:
        return
    loaded.save(tmp_path / "saved")
    saved = Tokenizer.load(tmp_path / "saved")
    assert (saved.special, saved.templates) == (loaded.special, loaded.templates)
    assert (saved.stops, saved.fingerprint) == (loaded.stops, loaded.fingerprint)


def places(value, path=()):
    """The paths of all values in a JSON value."""
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in inner:
        yield from places(item, (*path, key))


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordLevel"])
def test_definitions_are_read_or_refused(kind):
    vocab = {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "<s>": 4}
    model = {
        "BPE": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]], "unk_token": "<unk>"},
        "Unigram": {"type": "Unigram", "vocab": [[name, -1.0] for name in vocab], "unk_id": 0},
        "WordLevel": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }[kind]
    added = [
        {**CONTROL_TOKEN_FLAGS, "id": 4, "content": "<s>"},
        {**CONTROL_TOKEN_FLAGS, "id": 5, "content": "</s>"},
    ]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    whole = {"version": "1.0", "added_tokens": added, "pre_tokenizer": space, "model": model}
    paths = [path for path in places(whole) if path]

    @FUZZ
    @given(st.sampled_from(paths), JSON)
    def holds(path, value):
        fields = json.loads(json.dumps(whole))
        place = fields
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        text = "ab <s> b</s>a"
        try:
            read = Tokenizer(json.dumps(fields))
            tokens = read.encode(text)
            read.encode_with_control([(text, False), (text, True)])
        except TextError:
            return
        assert not set(tokens.tolist()) & set(read.control.values())
        assert all(read.id(name) == read._whole.token_to_id(name) for name in read.control)

    holds()
