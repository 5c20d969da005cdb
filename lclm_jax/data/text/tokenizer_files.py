"""The small files beside a `tokenizer.json`: chat templates, special tokens, generation ids.

They are read as transformers reads them (`PreTrainedTokenizerFast.from_pretrained`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lclm_jax.errors import FileError, TextError
from lclm_jax.files import reading
from lclm_jax.files.atomic import write_whole

# A template without a name of its own is stored under this name.
DEFAULT_TEMPLATE = "default"
TEMPLATE_FILE, NAMED_TEMPLATES_DIRECTORY = "chat_template.jinja", "additional_chat_templates"
SETTINGS_FILE, SPECIAL_TOKENS_FILE = "tokenizer_config.json", "special_tokens_map.json"
GENERATION_FILE, MODEL_CONFIG_FILE = "generation_config.json", "config.json"
SPECIAL_TOKEN_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
GENERATION_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_text(file: Path) -> str:
    """Return the text of a file with line feeds as its line ends, whichever the file has.

    A tokenizer thus has one fingerprint on every system. Raises TextError for a file that is not
    UTF-8.
    """
    try:
        text = reading.read_text(file)
    except FileError as error:
        raise TextError(str(error)) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_fields(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file, {} where there is no such file.

    Raises TextError for a file that holds anything else.
    """
    if not file.exists():
        return {}
    try:
        return reading.read_json(file)
    except FileError as error:
        raise TextError(str(error)) from error


def read_templates(directory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return chat templates by name.

    Templates in separate files replace those in `settings`, a `tokenizer_config.json`. Raises
    TextError for templates that are neither text nor named texts.
    """
    files = dict(_template_files(directory))
    texts = {name: read_text(file) for name, file in files.items() if file.exists()}
    if texts:
        return texts

    listed = settings.get("chat_template")
    if listed is None:
        return {}
    if isinstance(listed, str):
        return {DEFAULT_TEMPLATE: listed}
    try:
        templates = (
            listed if isinstance(listed, dict) else {t["name"]: t["template"] for t in listed}
        )
    except (TypeError, KeyError):
        templates = {}
    pairs = [text for pair in templates.items() for text in pair]
    if (
        not pairs
        or not all(isinstance(text, str) for text in pairs)
        or any("/" in t for t in templates)
    ):
        raise TextError(
            f"{directory / SETTINGS_FILE}: expected chat_template to be text or a list of "
            f"objects with name (no path) and template, got {str(listed)[:80]!r}"
        )
    return templates


def read_special(
    directory: Path, settings: Mapping[str, Any], padding: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Return special tokens by their roles (`bos_token`, ...), which templates may write.

    `settings` are the fields of `tokenizer_config.json`, `padding` the field of that name in
    `tokenizer.json`. Raises TextError for a role whose value is not a token.
    """
    merged = dict(settings)
    # A `tokenizer_config.json` with this field repeats all that the older file holds.
    if "added_tokens_decoder" not in settings:
        merged |= read_fields(directory / SPECIAL_TOKENS_FILE)
    merged.setdefault("pad_token", (padding or {}).get("pad_token"))
    extra = merged.get("extra_special_tokens")
    named = {key: value for key, value in merged.items() if key.endswith("_token")}
    named |= extra if isinstance(extra, dict) else {}
    special = {role: _content(token) for role, token in named.items() if token is not None}
    for role in SPECIAL_TOKEN_ROLES:
        if not isinstance(special.get(role, ""), str):
            raise TextError(
                f"{directory / SETTINGS_FILE}: expected {role} to be a token, got {special[role]!r}"
            )
    return {role: token for role, token in special.items() if isinstance(token, str)}


def more_special(settings: Mapping[str, Any]) -> list[str]:
    """Return the special tokens that a `tokenizer_config.json` lists without a role."""
    listed = [settings.get(key) for key in ("extra_special_tokens", "additional_special_tokens")]
    tokens = [token for tokens in listed if isinstance(tokens, list) for token in tokens]
    return [name for name in map(_content, tokens) if isinstance(name, str)]


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def read_generation(directory: Path) -> dict[str, Any]:
    """Return the token ids of `generation_config.json`, else those of the model's `config.json`.

    Raises TextError for a value that is not a token id.
    """
    ids: dict[str, Any] = {}
    for file in (directory / MODEL_CONFIG_FILE, directory / GENERATION_FILE):
        fields = read_fields(file)
        file_ids = {key: fields[key] for key in GENERATION_IDS if fields.get(key) is not None}
        for key, value in file_ids.items():
            listed = value if isinstance(value, list) and key == "eos_token_id" else [value]
            if not all(type(number) is int for number in listed):
                raise TextError(f"{file}: expected {key} to be a token id, got {value!r}")
        ids |= file_ids
    return ids


def keep_entries(generation: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return the ids of a `generation_config.json` that are below `rows`.

    Older models write -1 where they have no token.
    """
    kept: dict[str, Any] = {}
    for key, ids in generation.items():
        listed = isinstance(ids, list)
        if known := [number for number in (ids if listed else [ids]) if 0 <= number < rows]:
            kept[key] = known if listed else known[0]
    return kept


def write_special(directory: Path, special: Mapping[str, str]):
    """Write a `tokenizer_config.json` that names special tokens."""
    named = {role: name for role, name in special.items() if role.endswith("_token")}
    others = {role: name for role, name in special.items() if role not in named}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    write_fields(
        directory / SETTINGS_FILE, settings | ({"extra_special_tokens": others} if others else {})
    )


def write_templates(directory: Path, templates: Mapping[str, str]):
    """Write each chat template to the file that `read_templates` reads it from."""
    for name, template in templates.items():
        file = (
            TEMPLATE_FILE
            if name == DEFAULT_TEMPLATE
            else f"{NAMED_TEMPLATES_DIRECTORY}/{name}.jinja"
        )
        write_whole(directory / file, template)


def remove_others(directory: Path, templates: Mapping[str, str], generation: Mapping[str, Any]):
    """Remove files that another tokenizer left and that would be read as part of this one."""
    stale = [file for file in _template_files(directory) if file[0] not in templates]
    files = [file for _, file in stale] + [directory / SPECIAL_TOKENS_FILE]
    for file in files if generation else [*files, directory / GENERATION_FILE]:
        file.unlink(missing_ok=True)


def _template_files(directory: Path) -> list[tuple[str, Path]]:
    """Return names of chat templates with their files, of which the default may not exist."""
    more = sorted((directory / NAMED_TEMPLATES_DIRECTORY).glob("*.jinja"))
    return [(DEFAULT_TEMPLATE, directory / TEMPLATE_FILE), *((file.stem, file) for file in more)]


def write_fields(file: Path, fields: Mapping[str, Any]):
    """Write a JSON object to a file."""
    write_whole(file, json.dumps(fields, indent=2, ensure_ascii=False))
