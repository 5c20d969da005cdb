"""Generated histories: their length, their facts, and that the seed decides everything."""

import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lclm_jax.errors import ConfigError
from lclm_jax.evaluation.metrics import METRICS
from lclm_jax.evaluation.tasks import TASKS, TaskSettings, filler
from lclm_jax.evaluation.tasks.histories import KINDS, MIN_WORDS, WORDS, generate

PLAIN_WORDS = [f"word{chr(97 + i)}" for i in range(MIN_WORDS)]
quick = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def history_of(question):
    (passage,) = question.passages
    return passage.text


def ending_of(question):
    return question.contents[0][-1]


@pytest.fixture(scope="module")
def questions(tokenizer):
    return list(generate(tokenizer, [700, 1500], 5))


def test_each_kind_and_length_is_a_task(questions):
    tasks = [f"histories_{kind}@{length}" for length in (700, 1500) for kind in KINDS]
    assert list(dict.fromkeys(question.task for question in questions)) == tasks
    assert [question.number for question in questions] == list(range(5)) * len(tasks)
    tags = {"kind": "retention", "length": 700, "family": "histories"}
    assert questions[0].tags == tags


def test_a_history_fills_its_length(questions, tokenizer):
    for question in questions:
        length = question.tags["length"]
        assert length - 80 <= len(tokenizer.encode(history_of(question))) <= length


@quick
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**64), length=st.integers(600, 2000))
def test_answers_stand_in_the_history_and_only_there(tokenizer, kind, seed, length):
    (question,) = generate(tokenizer, [length], 1, [kind], seed)
    history = history_of(question)
    assert len(tokenizer.encode(history)) <= length
    for answer in question.references:
        assert history.count(answer) == 1 and answer not in ending_of(question)
    assert METRICS[question.metric](history, question.references) == 1.0
    assert METRICS[question.metric]("I do not know.", question.references) == 0.0


@quick
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 99), count=st.integers(1, 3))
def test_the_seed_decides_everything(tokenizer, kind, seed, count):
    once = list(generate(tokenizer, [600], count, [kind], seed))
    assert once == list(generate(tokenizer, [600], count, [kind], seed))
    assert once != list(generate(tokenizer, [600], count, [kind], seed + 1))


def test_more_questions_change_none_of_the_first(tokenizer):
    few = list(generate(tokenizer, [600], 2, seed=3))
    many = list(generate(tokenizer, [600, 900], 4, seed=3))
    assert all(question in many for question in few)


def test_a_fact_to_retain_is_early(tokenizer):
    for question in generate(tokenizer, [2000], 10, ["retention"]):
        history = history_of(question)
        assert history.index(question.references[0]) < 0.45 * len(history)


def test_an_update_asks_for_the_last_value(tokenizer):
    for question in generate(tokenizer, [1200], 10, ["update"]):
        history, (answer,) = history_of(question), question.references
        key = re.search(r"project (\w+) now", ending_of(question))[1]
        lines = [line for line in history.splitlines() if f"project {key}" in line]
        assert len(lines) in (2, 3) and answer in lines[-1]
        assert all(answer not in line for line in lines[:-1])


def test_a_contradiction_comes_from_the_user_and_a_tool(tokenizer):
    for question in generate(tokenizer, [1200], 10, ["contradiction"]):
        lines = history_of(question).splitlines()
        roles = {
            line.partition(":")[0]
            for line in lines
            if any(answer in line for answer in question.references)
        }
        assert roles == {"user", "tool"} and len(question.references) == 2
        assert METRICS[question.metric](question.references[0], question.references) == 0.5


def test_order_asks_for_the_next_job(tokenizer):
    for question in generate(tokenizer, [1200], 10, ["order"]):
        jobs = re.findall(r"job (\w+) finished", history_of(question))
        asked = re.search(r"right after job (\w+)\?", ending_of(question))[1]
        assert [jobs[jobs.index(asked) + 1]] == question.references and len(set(jobs)) == 5


def test_other_projects_have_other_values(tokenizer):
    (question,) = generate(tokenizer, [1500], 1, ["retention"])
    keys = re.findall(r"project (\w+)", history_of(question))
    assert len(keys) == len(set(keys)) == 4


def test_words_of_facts_are_in_no_other_word_and_in_no_filler():
    assert len(set(WORDS)) == len(WORDS) == 64
    assert not [(a, b) for a in WORDS for b in WORDS if a != b and a in b]
    rng = random.Random(0)
    turns = [turn for _ in range(3000) for turn in filler.draw_exchange(rng)]
    text = "\n".join(text for _, text in turns).lower()
    text += " ".join([*filler.ACKNOWLEDGEMENTS, *filler.LOOK_UPS]).lower()
    assert not [word for word in WORDS if word in text]
    assert {role for role, _ in turns} == {"user", "assistant", "tool"}


def test_filler_is_varied():
    rng = random.Random(0)
    drawn = [tuple(filler.draw_exchange(rng)) for _ in range(1000)]
    assert len(set(drawn)) > 850


def test_plain_words_make_the_facts(tokenizer):
    for question in generate(tokenizer, [800], 2, words=PLAIN_WORDS):
        assert set(question.references) <= set(PLAIN_WORDS)


def test_settings_of_the_task(tokenizer):
    load = TASKS["histories"]
    questions = load(TaskSettings(lengths=[600], limit=2, seed=5, tokenizer=tokenizer))
    assert questions == list(generate(tokenizer, [600], 2, seed=5))
    with pytest.raises(ConfigError, match="expected a tokenizer"):
        load(TaskSettings(lengths=[600]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [20]}, "expected histories of at least [0-9]+ tokens, got a length of 20"),
        ({"lengths": [0]}, "got a length of 0"),
        ({"lengths": [600], "kinds": ["poetry"]}, "kinds of histories are .*; got poetry"),
        ({"lengths": [600], "words": ["a"] * 99}, "different words, got 1"),
    ],
)
def test_what_cannot_be_generated_is_refused(tokenizer, arguments, message):
    with pytest.raises(ConfigError, match=message):
        list(generate(tokenizer, count=1, **arguments))
