"""Changes of a `tokenizer.json`."""

import json

from lclm_jax.data.text.tokenizer_json import CONTROL_TOKEN_FLAGS


def with_text_start(definition: str, name: str) -> str:
    """A definition with a token that its post-processor puts before a text, as Llama's does."""
    fields = json.loads(definition)
    number = max(token["id"] for token in fields["added_tokens"]) + 1
    fields["added_tokens"].append({"id": number, "content": name, **CONTROL_TOKEN_FLAGS})
    text = {"Sequence": {"id": "A", "type_id": 0}}
    fields["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": name, "type_id": 0}}, text],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }
    return json.dumps(fields)
