"""Metrics against literal cases and against the functions of lm-evaluation-harness."""

import builtins
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.errors import ConfigError
from lclm_jax.evaluation.metrics import METRICS, chosen_letter, final_number

TEXTS = st.text(st.sampled_from("aB1\n\t\x00 .,ÄßİΣ段"), max_size=12)
REFERENCES = st.lists(TEXTS, min_size=1, max_size=3)


@pytest.fixture(scope="module")
def ruler():
    return pytest.importorskip("lm_eval.tasks.ruler.common_utils")


@pytest.fixture(scope="module")
def longbench():
    return pytest.importorskip("lm_eval.tasks.longbench.metrics", exc_type=ImportError)


@settings(deadline=None)
@given(answer=TEXTS, references=REFERENCES)
def test_containment_is_scored_as_ruler_scores_it(ruler, answer, references):
    predictions = ruler.postprocess_pred([answer])
    right = ruler.string_match_all(predictions, [references])
    assert METRICS["contains_all"](answer, references) == right
    # The harness divides the maximum by the number of references; RULER itself does not.
    assert METRICS["contains_any"](answer, references) == float(right > 0)


@settings(deadline=None)
@given(answer=st.text(max_size=30), references=st.lists(st.text(max_size=30), min_size=1))
def test_words_in_common_are_scored_as_longbench_scores_them(longbench, answer, references):
    right = max(float(longbench.qa_f1_score(answer, reference)) for reference in references)
    assert METRICS["token_f1"](answer, references) == pytest.approx(right)


@pytest.mark.parametrize(
    ("name", "answer", "references", "score"),
    [
        ("contains_all", "One is 12, two\x00is 34.", ["12", "34"], 1.0),
        ("contains_all", "Only KESTREL.", ["kestrel", "heron"], 0.5),
        ("contains_any", "Only KESTREL.", ["heron", "kestrel"], 1.0),
        ("contains_any", "", ["heron"], 0.0),
        ("exact", " figs\n", ["figs"], 1.0),
        ("exact", "Figs", ["figs"], 0.0),
        ("number", "So she has 3 + 4 = 7.", ["#### 7"], 1.0),
        ("number", "#### 1,200\nQuestion: 5", ["... so #### 1200.0"], 1.0),
        ("number", "10-5", ["5"], 1.0),
        ("number", "It is \N{MINUS SIGN}5", ["-5"], 1.0),
        ("number", "none", ["5"], 0.0),
        ("number", "none", ["none"], 0.0),
        ("choice", "The correct answer is B: figs", ["B"], 1.0),
        ("choice", "The answer is B. Option A is wrong.", ["B: figs"], 1.0),
        ("choice", "(c)", ["C"], 0.0),
        ("choice", "**C**", ["C"], 1.0),
        ("choice", "C\nbecause", ["C"], 1.0),
        ("choice", "A pear", ["A"], 0.0),
        ("choice", "The correct answer is A: figs", ["G"], 0.0),
        ("choice", "The correct answer is A: beans", ["b"], 0.0),
        ("choice", "J", ["I"], 0.0),
        ("choice", "The correct answer is G.", ["G: figs"], 1.0),
        ("choice", "The correct answer is B.", ["(b)"], 1.0),
        ("choice", "A pear", ["pear"], 1.0),
        ("choice", "Option D", ["A", "D"], 1.0),
        ("token_f1", "the red fig", ["red pear", "Fig"], 2 / 3),
        ("token_f1", "", ["fig"], 0.0),
    ],
)
def test_scores(name, answer, references, score):
    assert METRICS[name](answer, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("name", "answer", "references", "score"),
    [
        ("rouge_l", "a b c", ["a b c", "d"], 1.0),
        ("rouge_l", "", ["d"], 0.0),
        ("rouge_l_zh", "今天天气很好", ["今天天气很好"], 1.0),
        ("token_f1_zh", "今天天气很好。", ["今天天气很好"], 1.0),
        ("classification", "Date", ["Date", "Currency"], 1.0),
        ("classification", "Date or Currency", ["Date", "Currency"], 0.5),
        ("classification", "Currency", ["Date", "Currency"], 0.0),
        ("classification", "It is a Date", ["Date"], 1.0),
        ("count", "17 or 18", ["17"], 0.5),
        ("retrieval", "Paragraph 3", ["Paragraph 3"], 1.0),
        ("retrieval_zh", "段落4", ["段落3"], 0.0),
        ("code_similarity", "# note\n    return 1\n", ["    return 1"], 1.0),
    ],
)
def test_scores_of_longbench(longbench, name, answer, references, score):
    assert METRICS[name](answer, references) == pytest.approx(score)


def test_a_score_of_longbench_without_its_packages_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def refuse(name, *arguments, **named):
        if name.startswith("lm_eval"):
            raise ImportError("no jieba")
        return original(name, *arguments, **named)

    monkeypatch.delitem(sys.modules, "lm_eval.tasks.longbench.metrics", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match="evaluation"):
        METRICS["rouge_l"]("a", ["a"])


@settings(deadline=None)
@given(value=st.integers(-(10**30), 10**30))
def test_a_number_is_read_however_it_is_written(value):
    assert final_number(f"#### {value}") == final_number(f"is {value:,}.") == value


@settings(deadline=None)
@given(text=st.text(max_size=40))
def test_any_answer_is_scored(text):
    for name in ("contains_all", "contains_any", "exact", "number", "choice", "token_f1"):
        assert 0.0 <= METRICS[name](text, [text or "a", "b"]) <= 1.0
    assert chosen_letter(text) in (None, *"ABCDEFGHIJ")
