"""Tokenizers of published checkpoints.

Those of both towers must split text alike, and an export keeps the special tokens and
generation ids that were read.
"""

import json

import pytest

from convert.from_hf import from_hf
from convert.hf.config import special_ids, write_generation
from convert.hf.mapping import ConversionError
from convert.hf.tokenizer import check_shared, compare, without_memory
from lclm_jax.data.text.tokenizer import MEMORY_TOKENS, PAD, TURN_END, Tokenizer, add_memory_tokens
from lclm_jax.data.text.tokenizer_json import CONTROL_TOKEN_FLAGS

LLAMA_3 = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n\n{{ m['content'] }}<|eot_id|>{% endfor %}"
)


def change(definition, edit) -> str:
    fields = json.loads(definition)
    edit(fields)
    return json.dumps(fields)


def splitters(fields):
    return fields["pre_tokenizer"]["pretokenizers"]


CHANGES = {
    "normalizer": lambda fields: fields.update(normalizer={"type": "Lowercase"}),
    "pre_tokenizer": lambda fields: splitters(fields)[1].update(add_prefix_space=True),
    "model": lambda fields: fields["model"].update(merges=fields["model"]["merges"][:100]),
    "added_tokens": lambda fields: fields["added_tokens"][0].update(rstrip=True),
}
HARMLESS = {
    "offsets": lambda fields: splitters(fields)[1].update(trim_offsets=False),
    "a default left out": lambda fields: fields["model"].pop("byte_fallback"),
    "older merges": lambda fields: fields["model"].update(
        merges=[" ".join(pair) for pair in fields["model"]["merges"]]
    ),
    "text around it": lambda fields: fields.update(
        truncation={"max_length": 9, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
    ),
    "what is left out of answers": lambda fields: fields["added_tokens"][0].update(special=False),
    "no memory tokens": lambda fields: fields.update(added_tokens=fields["added_tokens"][:-3]),
}


@pytest.mark.parametrize("part", CHANGES)
def test_towers_that_split_text_differently_are_refused_by_name(tokenizer, tmp_path, part):
    changed = change(tokenizer.definition, CHANGES[part])
    assert compare(changed, tokenizer.definition) == [part]
    for name, definition in (("encoder", changed), ("decoder", tokenizer.definition)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(definition, encoding="utf-8")
    with pytest.raises(ConversionError, match=f"it has another {part}; one tokenizer must serve"):
        check_shared(tmp_path / "encoder", tmp_path / "decoder")


@pytest.mark.parametrize("name", HARMLESS)
def test_differences_that_change_no_token_are_none(tokenizer, name):
    changed = change(tokenizer.definition, HARMLESS[name])
    assert changed != tokenizer.definition
    assert compare(changed, tokenizer.definition) == []


def test_a_conversion_refuses_an_encoder_with_another_normalizer(published, tmp_path):
    source = published()
    file = source / "encoder" / "tokenizer.json"
    lower = change(file.read_text(encoding="utf-8"), CHANGES["normalizer"])
    file.write_text(lower, encoding="utf-8")
    with pytest.raises(ConversionError, match="another normalizer"):
        from_hf(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


# --- special tokens of an export ---


def llama(tokenizer, **options) -> Tokenizer:
    """A tokenizer of a family that has no ChatML."""
    fields = json.loads(tokenizer.definition)
    first = len(fields["model"]["vocab"])
    names = ("<|begin|>", "<|start|>", "<|eot_id|>", "<|end|>")
    fields["added_tokens"] = [
        {**CONTROL_TOKEN_FLAGS, "id": first + i, "content": name} for i, name in enumerate(names)
    ]
    return add_memory_tokens(Tokenizer(json.dumps(fields), LLAMA_3, **options))


def test_an_export_has_the_ids_that_were_read(tokenizer, tmp_path):
    generation = {"bos_token_id": 3, "eos_token_id": [7, 5], "pad_token_id": 9}
    read = Tokenizer(tokenizer.definition, generation=generation)
    read.save(tmp_path)
    saved = Tokenizer.load(tmp_path)
    for exported in (saved, without_memory(saved)):
        assert special_ids(exported) == {"bos_token_id": 3, "eos_token_id": [7, 5]}
        assert write_generation(exported) == generation


def test_an_export_of_qwens_kind_is_as_ever(tokenizer):
    expected = {"bos_token_id": tokenizer.id(PAD), "eos_token_id": tokenizer.id(TURN_END)}
    assert special_ids(tokenizer) == expected
    assert write_generation(tokenizer) == {"_from_model_config": True, **expected}


def test_an_export_of_another_family_ends_where_its_turns_and_texts_do(tokenizer):
    special = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    exported = llama(tokenizer, special=special)
    assert special_ids(exported) == {
        "bos_token_id": exported.id("<|begin|>"),
        "eos_token_id": [exported.id("<|eot_id|>"), exported.id("<|end|>")],
    }
    bare = Tokenizer(llama(tokenizer).definition, "{{ messages[0].content }}", special={})
    assert special_ids(bare) == {"bos_token_id": None, "eos_token_id": None}


def test_ids_of_an_export_are_rows_of_its_table(tokenizer):
    last = tokenizer.embedding_rows
    read = Tokenizer(
        tokenizer.definition, generation={"eos_token_id": [5, last], "bos_token_id": last}
    )
    assert special_ids(read) == {"bos_token_id": tokenizer.id(PAD), "eos_token_id": [5]}


def test_transformers_reads_the_special_tokens_of_an_export(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    special = {"bos_token": "<|begin|>", "eos_token": "<|eot_id|>"}
    exported = llama(tokenizer, special=special)
    exported.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.special_tokens_map == special
    assert loaded.eos_token_id == exported.id("<|eot_id|>")
    assert loaded.pad_token is None
    assert len(loaded) == exported.embedding_rows
    assert [loaded.convert_tokens_to_ids(name) for name in MEMORY_TOKENS] == list(
        range(exported.embedding_rows - 3, exported.embedding_rows)
    )
