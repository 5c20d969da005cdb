"""Settings that were renamed: their old names still read, and a log line says the new one.

Checkpoints, run directories and commands of earlier versions hold the old names.
"""

import logging
from collections.abc import Iterable, Mapping
from functools import cache

from lclm_jax.errors import ConfigError

log = logging.getLogger(__name__)

# Config dataclass -> old name of a field -> its name today.
RENAMED_SETTINGS: Mapping[str, Mapping[str, str]] = {
    "DataConfig": {
        "rows": "batch_rows",
        "positions": "row_positions",
        "windows": "row_windows",
        "lookahead": "packing_lookahead",
        "passage": "crop_length",
        "reconstruction": "reconstruction_length",
        "requests": "request_wordings",
        "shortest_segment": "min_segment_length",
        "trainable": "max_trained_tokens",
    },
    "ParameterGroup": {"rate": "learning_rate", "decay": "weight_decay"},
    "Recipe": {"longest": "max_document_chars", "most_rejected": "max_rejected_rows"},
    "RunConfig": {
        "begin": "init_from",
        "most_skipped": "max_skipped_steps",
        "patience": "step_timeout",
    },
    "StageConfig": {
        "warmup": "warmup_steps",
        "final_rate": "final_learning_rate",
        "windows": "row_windows",
    },
}


def current_name(kind: type, name: str) -> str:
    """Return today's name of a field of `kind`."""
    return RENAMED_SETTINGS.get(kind.__name__, {}).get(name, name)


def log_renamed(kind: type, names: Iterable[str], path: str):
    """Log today's name of every old name of a field of `kind`, once per process.

    `path` is what precedes the field in the message, such as "data.".
    """
    for name in names:
        new = current_name(kind, name)
        if new != name:
            _log_new_name(f"{path}{name}", f"{path}{new}")


def current_names(kind: type, values: Mapping[str, object], path: str = "") -> dict[str, object]:
    """Return the fields of one dataclass under today's names.

    Raises ConfigError where a field is given under its old and its new name.
    """
    current: dict[str, object] = {}
    for key, value in values.items():
        name = current_name(kind, key)
        if name in current:
            raise ConfigError(
                f"expected one value of {path}{name}, got two: {path}{key} is its old name; "
                "remove one of them"
            )
        current[name] = value
    return current


@cache
def _log_new_name(old: str, new: str):
    log.warning("setting %s is now called %s", old, new)
