"""Strings keep the source of every character through operations of Python and Jinja."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.data.chat.sourced_str import SourcedStr, call_with_sources, join, split_by_source
from lclm_jax.data.chat.templates import render_template

pytestmark = [pytest.mark.image, pytest.mark.fuzz]

EXAMPLES = settings(max_examples=int(os.environ.get("LCLM_FUZZ", "100")), deadline=None)
TEXT = st.text("ab ,X\n\tßİé\ue0000\ue001", max_size=12)
METHODS = {
    "strip": st.tuples(st.sampled_from([None, "a ", "\n"])),
    "lstrip": st.tuples(st.sampled_from([None, "a ", "X"])),
    "rstrip": st.tuples(st.sampled_from([None, "b\n", ""])),
    "split": st.tuples(st.sampled_from([None, ",", "ab"]), st.integers(-1, 3)),
    "rsplit": st.tuples(st.sampled_from([None, ",", "a"]), st.integers(-1, 3)),
    "splitlines": st.tuples(st.booleans()),
    "partition": st.tuples(st.sampled_from([",", "ab"])),
    "rpartition": st.tuples(st.sampled_from([",", "a"])),
    "removeprefix": st.tuples(TEXT),
    "removesuffix": st.tuples(TEXT),
    "__getitem__": st.tuples(
        st.slices(12) | st.builds(slice, st.integers(-9, 9), st.integers(-9, 9), st.just(-2))
    ),
    "__mul__": st.tuples(st.integers(-1, 3)),
}


class Letter:
    """The source of one character."""

    def __init__(self, letter: str):
        self.letter = letter


def traced(text: str) -> SourcedStr:
    return join(SourcedStr(letter, Letter(letter)) for letter in text)


def check(result, expected):
    """Asserts that strings are as expected, each character from the source that it names."""
    if isinstance(expected, (list, tuple)):
        assert len(result) == len(expected)
        for part, other in zip(result, expected, strict=True):
            check(part, other)
        return
    assert result == expected
    assert isinstance(result, SourcedStr)
    assert "".join(text for text, _ in split_by_source(result)) == expected
    for text, source in split_by_source(result):
        assert source is None or set(text) <= {source.letter}


@EXAMPLES
@given(TEXT, st.sampled_from(sorted(METHODS)), st.data())
def test_methods_give_what_python_gives_and_keep_the_sources(text, name, data):
    arguments = data.draw(METHODS[name])
    check(getattr(traced(text), name)(*arguments), getattr(text, name)(*arguments))


@EXAMPLES
@given(TEXT, TEXT, TEXT, st.integers(-1, 2))
def test_a_replacement_is_the_templates(text, old, new, count):
    result = traced(text).replace(old, new, count)
    assert result == text.replace(old, new, count)
    assert "".join(part for part, _ in split_by_source(result)) == result


@EXAMPLES
@given(TEXT, TEXT)
def test_sums_keep_the_sources_of_both_sides(text, other):
    check(other + traced(text) + other, other + text + other)
    check(traced(text) + traced(other), text + other)
    assert [
        source for _, source in split_by_source(other + SourcedStr("a", 1) + other) if source
    ] == [1]


CHANGES = ("upper", "lower", "title", "capitalize", "swapcase", "casefold", "center(20)")
FILTERS = (
    *("trim", "upper", "title", "replace('a', 'yy')", "indent", "tojson", "string", "first"),
    *("truncate(5)", "urlencode", "e", "list | join('-')", "reverse", "wordwrap(3)", "safe"),
)


@EXAMPLES
@given(
    TEXT.filter(bool), st.sampled_from([*(f".{x}" for x in CHANGES), *(f" | {x}" for x in FILTERS)])
)
def test_what_a_template_makes_of_words_is_never_its_own_text(text, change):
    change = change if "(" in change or "|" in change else f"{change}()"
    source = object()
    template = "{{ '<' ~ (x" + change + ") ~ '>' }}"
    plain = render_template(template, [], x=text)
    result = render_template(template, [], x=SourcedStr(text, source))
    assert result == plain
    own = "".join(part for part, its_source in split_by_source(result) if its_source is None)
    assert not set(own) & set("abABxXßİé")  # letters of the words
    assert own[0] + own[-1] == "<>"


@EXAMPLES
@given(st.lists(TEXT, min_size=1, max_size=3), st.booleans(), st.sampled_from([None, 2]))
def test_json_of_words_is_theirs_between_quotes(texts, ascii_only, indent):
    template = f"{{{{ x | tojson(ensure_ascii={ascii_only}, indent={indent}) }}}}"
    sources = [object() for _ in texts]
    value = {
        "items": [SourcedStr(text, source) for text, source in zip(texts, sources, strict=True)]
    }
    result = render_template(template, [], x=value)
    assert result == json.dumps({"items": texts}, ensure_ascii=ascii_only, indent=indent)
    quoted = [(part, source) for part, source in split_by_source(result) if source is not None]
    expected = [
        (json.dumps(text, ensure_ascii=ascii_only)[1:-1], source)
        for text, source in zip(texts, sources, strict=True)
        if text
    ]
    assert quoted == expected


@EXAMPLES
@given(TEXT, TEXT, st.sampled_from(["%s, %s", "%r %s", "%5s|%-9s", "%.2s%s"]))
def test_formats_are_traced(text, other, form):
    result = call_with_sources(
        lambda *x: form % x, SourcedStr(text, "first"), SourcedStr(other, "second")
    )
    assert result == form % (text, other)
    assert isinstance(result, SourcedStr)
