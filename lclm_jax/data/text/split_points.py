r"""Points at which a long text can be split without changing its tokens.

A model encodes each pre-token separately. So a cut is safe if normalizing and pre-tokenizing the
two sides separately gives the same pre-tokens as for the whole text. `can_split` accepts the
pipelines of byte-level BPE (GPT-2, Llama 3, Qwen, GPT-4o), whose patterns are alternations of
ALTERNATIVES. For these, the cuts that SAFE_CUT matches are safe:

1. A match begins at a cut, and no match spans it. In no alternative can the character after the
   cut (a space or punctuation) follow the character before it (not a space, or a letter), and
   `\s+` or one of PUNCTUATION matches the character after the cut by itself.
2. The left side is split as before. An alternative that tries to match on past the cut fails on
   that character as it would at the end of the text, so no alternative reads further.
3. The right side is split as before. It begins with a match, and no alternative looks behind.

NFC composes nothing across a cut: a space or punctuation mark is a starter that combines with
nothing before it. NFC changes neither, turns no other character into a space, and leaves the
letters before a cut alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# `\S` means the same here as in the library: Rust and Python agree on which characters are spaces.
SAFE_CUT = re.compile(r"(?<=\S)(?= )|(?<=[ぁ-ん一-龥])(?=[、。，])")
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PUNCTUATION = {
    r" ?[^\s\p{L}\p{N}]+",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
}
# CONTRACTIONS, the only group that contains bars, is written <>.
ALTERNATIVES = PUNCTUATION | {
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "<>"),
    *(r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"),
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+<>?",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*<>?",
    *(r" ?\p{N}+", r"\p{N}", r"\p{N}{1,3}"),
    *(r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
}


def can_split(definition: Mapping[str, Any], words: Sequence[Mapping[str, Any]] = ()) -> bool:
    """Return whether SAFE_CUT is known to be safe for a tokenizer.

    `definition` has the fields of its `tokenizer.json`, `words` are the added tokens that text may
    contain.
    """
    if not all(_is_unaffected_by_cuts(word) for word in words):
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
            parts = set(pattern.replace(CONTRACTIONS, "<>").split("|"))
            return parts <= ALTERNATIVES and bool(parts & PUNCTUATION) and r"\s+" in parts
    return False


def _is_unaffected_by_cuts(word: Mapping[str, Any]) -> bool:
    """Return whether an added token matches in the pieces wherever it matches in the whole text.

    It does if no cut is inside it and its match does not depend on the text around it. Spaces
    before it (`lstrip`) are in its piece, too.
    """
    return not (word["rstrip"] or word["single_word"] or SAFE_CUT.search(word["content"]))


def split_text(text: str, size: int) -> Iterator[str]:
    """Yield consecutive pieces of a text, each ending at the first SAFE_CUT from `size` on.

    All but the last have at least `size` characters.
    """
    start = 0
    while cut := SAFE_CUT.search(text, start + size):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]
