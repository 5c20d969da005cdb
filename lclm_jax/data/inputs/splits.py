"""The split of a dataset file, by the names that the Hugging Face hub recognises."""

import re
from collections.abc import Sequence

SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
WORD = re.compile(r"[^\W\d_]+")  # a digit, dot, dash or underscore ends a word


def split_of_file(parts: Sequence[str]) -> str | None:
    """Return "validation" or "test" for files of these splits, None for all others.

    `parts` is the path below the dataset. The last part with a split's name decides, as in
    `test-00000-of-00001.parquet` and `en/valid/0.jsonl`.
    """
    for part in reversed(parts):
        words = WORD.findall(part.lower())
        splits = {SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD}
        if splits:
            return None if "train" in splits else min(splits)
    return None
