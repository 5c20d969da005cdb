r"""Where a long text may be cut so that its pieces have the tokens of the whole.

A model tokenises every pre-token by itself, so a cut is safe where the two sides, normalized and
split apart, give the pre-tokens they give together. `can_split` accepts the pipelines of byte-level
BPE (GPT-2, Llama 3, Qwen, GPT-4o), whose patterns are choices among ALTERNATIVES. There, CUT is
safe:

1. A match begins at a cut and none spans it. Nothing in an alternative that matches the character
   after the cut (a space; a stop) follows anything that matches the one before it (no space; a
   letter), and of itself that character is matched by `\s+` or one of PUNCTUATION.
2. The left side is split as before: whatever an alternative tries at the cut fails on that
   character as it would at the end of the text, so none reads or looks ahead any further.
3. The right side is split as before: it begins with a match, and no alternative looks behind.

NFC composes nothing across a cut, for a space or stop is a starter that combines with nothing
before it; it changes neither, makes no space of other characters, and leaves those letters alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

CUT = re.compile(r"(?<=\S)(?= )|(?<=[ぁ-ん一-龥])(?=[、。，])")  # Rust's spaces are Python's too
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PUNCTUATION = {
    r" ?[^\s\p{L}\p{N}]+",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
}
ALTERNATIVES = PUNCTUATION | {  # with CONTRACTIONS, the one group with bars of its own, written <>
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "<>"),
    *(r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"),
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+<>?",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*<>?",
    *(r" ?\p{N}+", r"\p{N}", r"\p{N}{1,3}"),
    *(r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
}


def can_split(definition: Mapping[str, Any], words: Sequence[Mapping[str, Any]] = ()) -> bool:
    """Whether CUT is known to be safe for a `tokenizer.json` whose added tokens are these words."""
    if not all(_is_beside_cuts(word) for word in words):
        return False
    if definition.get("normalizer") not in (None, {"type": "NFC"}):
        return False
    match definition.get("pre_tokenizer"):
        case {"type": "ByteLevel", "add_prefix_space": False, **rest}:
            return rest.get("use_regex", True)  # GPT-2's pattern
        case {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False},  # on every pre-token by itself
            ],
        }:
            found = set(pattern.replace(CONTRACTIONS, "<>").split("|"))
            return found <= ALTERNATIVES and bool(found & PUNCTUATION) and r"\s+" in found
    return False


def _is_beside_cuts(word: Mapping[str, Any]) -> bool:
    """Whether an added token is found in pieces where it is found in the whole: no cut is inside,
    and its form does not depend on what follows, but for spaces before it."""
    return not (word["rstrip"] or word["single_word"] or CUT.search(word["content"]))


def split_text(text: str, size: int) -> Iterator[str]:
    """Consecutive pieces of at least `size` characters, but for the last: up to the next CUT."""
    start = 0
    while cut := CUT.search(text, start + size):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]
