"""The small files beside a `tokenizer.json`: chat templates, special tokens, ids of generation.

They are read as transformers reads them (`PreTrainedTokenizerFast.from_pretrained`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lclm_jax.errors import FileError, TextError
from lclm_jax.files import reading
from lclm_jax.files.atomic import write_whole

DEFAULT = "default"  # the name of a template that is the only one, or stands among others
TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
SETTINGS, SPECIAL_MAP = "tokenizer_config.json", "special_tokens_map.json"
GENERATION, MODEL = "generation_config.json", "config.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
GENERATION_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_text(file: Path) -> str:
    """The text of a file. Raises TextError where it is not UTF-8."""
    try:
        return reading.read_text(file)
    except FileError as error:
        raise TextError(str(error)) from error


def read_fields(file: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no such file. Raises TextError for anything else."""
    if not file.exists():
        return {}
    try:
        return reading.read_json(file)
    except FileError as error:
        raise TextError(str(error)) from error


def read_templates(directory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; those in files of their own take the place of those in settings."""
    files = dict(_template_files(directory))
    if found := {name: read_text(file) for name, file in files.items() if file.exists()}:
        return found
    listed = settings.get("chat_template")
    if listed is None:
        return {}
    if isinstance(listed, str):
        return {DEFAULT: listed}
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
            f"{directory / SETTINGS}: expected chat_template to be text or a list of objects with "
            f"name (no path) and template, got {str(listed)[:80]!r}"
        )
    return templates


def read_special(
    directory: Path, settings: Mapping[str, Any], padding: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Special tokens by their roles, `bos_token` and the like: what templates may write.

    `padding` is that of the `tokenizer.json`.
    """
    merged = dict(settings)
    if "added_tokens_decoder" not in settings:  # else the file is an older form of the same
        merged |= read_fields(directory / SPECIAL_MAP)
    merged.setdefault("pad_token", (padding or {}).get("pad_token"))
    extra = merged.get("extra_special_tokens")
    named = {key: value for key, value in merged.items() if key.endswith("_token")}
    named |= extra if isinstance(extra, dict) else {}
    special = {role: _content(token) for role, token in named.items() if token is not None}
    for role in ROLES:
        if not isinstance(special.get(role, ""), str):
            raise TextError(
                f"{directory / SETTINGS}: expected {role} to be a token, got {special[role]!r}"
            )
    return {role: token for role, token in special.items() if isinstance(token, str)}


def more_special(settings: Mapping[str, Any]) -> list[str]:
    """Special tokens without a role that a `tokenizer_config.json` lists."""
    listed = [settings.get(key) for key in ("extra_special_tokens", "additional_special_tokens")]
    tokens = [token for tokens in listed if isinstance(tokens, list) for token in tokens]
    return [name for name in map(_content, tokens) if isinstance(name, str)]


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def read_generation(directory: Path) -> dict[str, Any]:
    """The ids of `generation_config.json`; those it lacks are from the model's `config.json`."""
    ids: dict[str, Any] = {}
    for file in (directory / MODEL, directory / GENERATION):
        fields = read_fields(file)
        found = {key: fields[key] for key in GENERATION_IDS if fields.get(key) is not None}
        for key, value in found.items():
            listed = value if isinstance(value, list) and key == "eos_token_id" else [value]
            if not all(type(number) is int for number in listed):
                raise TextError(f"{file}: expected {key} to be a token id, got {value!r}")
        ids |= found
    return ids


def keep_entries(generation: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The ids of a `generation_config.json` below `rows`, the number of a tokenizer's entries.

    Older models write -1 where they have no token.
    """
    kept: dict[str, Any] = {}
    for key, ids in generation.items():
        listed = isinstance(ids, list)
        if known := [number for number in (ids if listed else [ids]) if 0 <= number < rows]:
            kept[key] = known if listed else known[0]
    return kept


def write_special(directory: Path, special: Mapping[str, str]):
    """Writes a `tokenizer_config.json` that names special tokens."""
    named = {role: name for role, name in special.items() if role.endswith("_token")}
    others = {role: name for role, name in special.items() if role not in named}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    write_fields(
        directory / SETTINGS, settings | ({"extra_special_tokens": others} if others else {})
    )


def write_templates(directory: Path, templates: Mapping[str, str]):
    for name, template in templates.items():
        file = TEMPLATE if name == DEFAULT else f"{MORE_TEMPLATES}/{name}.jinja"
        write_whole(directory / file, template)


def remove_others(directory: Path, templates: Mapping[str, str], generation: Mapping[str, Any]):
    """Removes what another tokenizer left in a directory and would be read as of this one."""
    stale = [file for file in _template_files(directory) if file[0] not in templates]
    files = [file for _, file in stale] + [directory / SPECIAL_MAP]
    for file in files if generation else [*files, directory / GENERATION]:
        file.unlink(missing_ok=True)


def _template_files(directory: Path) -> list[tuple[str, Path]]:
    """Names of chat templates, and the files that they are read from where these exist."""
    more = sorted((directory / MORE_TEMPLATES).glob("*.jinja"))
    return [(DEFAULT, directory / TEMPLATE), *((file.stem, file) for file in more)]


def write_fields(file: Path, fields: Mapping[str, Any]):
    write_whole(file, json.dumps(fields, indent=2, ensure_ascii=False))
