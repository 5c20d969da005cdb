"""The split that a file of a dataset belongs to, by the names that the Hugging Face hub knows."""

import re
from collections.abc import Sequence

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
WORD = re.compile(r"[^\W\d_]+")  # words end where a digit, a dot, a dash or an underscore stands


def split_of_file(parts: Sequence[str]) -> str | None:
    """ "validation" or "test" where a path below its dataset says so, None for what is trained on.

    Its last name that has such a word decides: `test-00000-of-00001.parquet`, `en/valid/0.jsonl`.
    """
    for part in reversed(parts):
        splits = {WORDS[word] for word in WORD.findall(part.lower()) if word in WORDS}
        if splits:
            return None if "train" in splits else min(splits)
    return None
