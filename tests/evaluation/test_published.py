"""Published rows become questions whose prompts are those that were published."""

import dataclasses
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.data.chat import CHATML, build_chat_record, split_context_tags
from lclm_jax.data.records import Context
from lclm_jax.data.text.tokenizer import TextError
from lclm_jax.errors import ConfigError, FileError
from lclm_jax.evaluation.metrics import METRICS
from lclm_jax.evaluation.questions import Passage
from lclm_jax.evaluation.tasks import TASKS, TaskSettings
from lclm_jax.evaluation.tasks.published import LONGBENCH, SCORING_FUNCTIONS, parse_prompt

PROMPT = (
    "<|im_start|>user\n<|memory_start|>Ben likes {}.<|memory_end|> Who likes {}?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def make_row(category, scoring=None, answers=("Ben",), fruit="figs", **extra):
    ground_truth = {"answers": list(answers)}
    extra_info = {"ground_truth": ground_truth, "scoring_function": scoring, **extra}
    prompt = PROMPT.format(fruit, fruit)
    return {"prompt": prompt, "category": category, "extra_info": extra_info}


RULER_ROWS = [
    make_row("memwrap/ruler/niah_single_1_4096", "ruler_string_match_all", ["17", "18"]),
    make_row("niah_single_1_8192", "ruler_string_match_all"),
    make_row("memwrap/ruler/qa_1_4096", "ruler_string_match_part", fruit="pears"),
    make_row("vt_4096", None, fruit="pears"),
    make_row("niah_single_1_4096", "ruler_string_match_all", fruit="pears"),
]


def test_rows_of_ruler_in_parquet(tmp_path, load):
    folder = tmp_path / "lclm-eval" / "ruler"
    folder.mkdir(parents=True)
    table = pyarrow.Table.from_pylist(RULER_ROWS)
    pyarrow.parquet.write_table(table, folder / "test-00000-of-00001.parquet")

    questions = load("lclm-eval-ruler")
    assert [(question.task, question.number) for question in questions] == [
        ("ruler_niah_single_1@4096", 0),
        ("ruler_niah_single_1@8192", 0),
        ("ruler_qa_1@4096", 0),
        ("ruler_vt@4096", 0),
        ("ruler_niah_single_1@4096", 1),
    ]
    first = questions[0]
    assert first.messages == [
        {"role": "user", "content": [Passage("Ben likes figs."), " Who likes figs?"]}
    ]
    assert first.references == ["17", "18"] and first.is_chat
    assert first.tags == {"length": 4096, "family": "ruler"}
    metrics = [question.metric for question in questions]
    assert metrics == ["contains_all", "contains_all", "contains_any", "contains_all"] + metrics[:1]
    assert [question.max_tokens for question in questions] == [128, 128, 32, 30, 128]


def test_lengths_and_limit_choose_the_first_rows_of_each_task(write, load):
    write("lclm-eval/ruler/test.jsonl", RULER_ROWS)
    tasks = [question.task for question in load("lclm-eval-ruler", lengths=[4096], limit=1)]
    assert tasks == ["ruler_niah_single_1@4096", "ruler_qa_1@4096", "ruler_vt@4096"]
    assert load("lclm-eval-ruler", limit=0) == []
    with pytest.raises(ConfigError, match="lengths 4096, 8192; got 512"):
        load("lclm-eval-ruler", lengths=[512, 4096])


def test_rows_of_several_files_are_numbered_on(write, load):
    write("lclm-eval/gsm8k/test-1.jsonl", [make_row("gsm8k", fruit="pears")])
    write("lclm-eval/gsm8k/test-0.jsonl", [make_row("gsm8k", answers=[72])] * 2)
    questions = load("lclm-eval-gsm8k")
    assert [question.number for question in questions] == [0, 1, 2]
    assert questions[0].references == ["72"] and questions[0].metric == "number"
    assert questions[2].passages == [Passage("Ben likes pears.")]


@pytest.mark.parametrize(
    ("config", "category", "name", "metric"),
    [
        ("gsm8k", "gsm8k", "exact_match", "number"),
        ("gsm8k", "memwrap/gsm8k", "gsm8k_score", "number"),
        ("longhealth5", "longhealth5", "longhealth5_exact_match", "choice"),
        ("longbench", "qasper", "longbench_qa_f1_score", "token_f1"),
        ("longbench", "qasper", "exact_match", "exact"),
        ("longbench", "lcc", "code_sim_score", "code_similarity"),
        ("longbench", "lcc", "", "code_similarity"),
        ("ruler", "qa_2_131072", "string_match_all", "contains_all"),
    ],
)
def test_a_row_names_its_metric(write, load, config, category, name, metric):
    write(f"lclm-eval/{config}/test.jsonl", [make_row(category, name)])
    (question,) = load(f"lclm-eval-{config.removesuffix('5')}")
    assert question.metric == metric


def test_rows_of_longhealth(write, load):
    write("lclm-eval/longhealth5/test.jsonl", [make_row("longhealth5", answers="B")])
    (question,) = load("lclm-eval-longhealth")
    assert (question.metric, question.references) == ("choice", ["B"])


def test_rows_of_longbench(write, load):
    classes = ["Date", "Ben", "Money"]
    rows = [
        make_row("memwrap/longbench/hotpotqa"),
        make_row("trec", "classification_score", all_classes=classes),
        make_row("trec"),
        make_row("vcsum", "rouge_zh_score"),
    ]
    write("lclm-eval/longbench/test.jsonl", rows)
    hotpot, trec, without_classes, summary = load("lclm-eval-longbench")
    assert (hotpot.task, hotpot.metric, hotpot.max_tokens) == ("longbench_hotpotqa", "token_f1", 32)
    assert trec.references == ["Ben", "Date", "Money"] and trec.sampling.stop == ("\n",)
    assert without_classes.references == ["Ben"] and without_classes.number == 1
    assert summary.tags == {"family": "longbench", "language": "zh"}


def test_every_name_of_a_scoring_function_is_a_metric():
    names = {*SCORING_FUNCTIONS.values(), *(metric for metric, _ in LONGBENCH.values())}
    assert names <= METRICS.keys()


# --- prompts ---


def render(messages, tokenizer):
    """Return the ids and the contexts of messages with passages, up to the assistant's turn."""
    contexts = [
        {**m, "content": [_to_context(part, tokenizer) for part in m["content"]]} for m in messages
    ]
    parts: list[tuple[bool, list[int]]] = []
    for span in build_chat_record(contexts, tokenizer, generate=True):
        is_context, ids = isinstance(span, Context), np.asarray(span.tokens).tolist()
        if parts and not is_context and not parts[-1][0]:
            parts[-1][1].extend(ids)  # an answer of an earlier turn is a span of its own
        else:
            parts.append((is_context, ids))
    return parts


def _to_context(part, tokenizer):
    return Context(tokenizer.encode(part.text)) if isinstance(part, Passage) else part


def encode_published(prompt, tokenizer):
    """Return the ids and contexts of a rendered prompt in which turn tags are control tokens."""
    return [
        (True, tokenizer.encode(piece).tolist())
        if is_context
        else (False, tokenizer.encode_with_control([(piece, True)])[0].tolist())
        for piece, is_context in split_context_tags(prompt)
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        PROMPT,
        "<|im_start|>system\nBe brief.<|im_end|>\n" + PROMPT,
        "<|im_start|>user\nRead:\n<|memory_start|>a <|im_end|>\n<|memory_end|>\n\nand "
        "<|memory_start|>b<|memory_end|><|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        "<|im_start|>user\n Who? <|im_end|>\n<|im_start|>assistant\n",
    ],
)
def test_the_chat_template_renders_the_published_prompt(prompt, tokenizer):
    assert tokenizer.template == CHATML
    assert render(parse_prompt(prompt), tokenizer) == encode_published(prompt, tokenizer)


def test_the_beginning_of_an_answer_is_a_message():
    messages = parse_prompt(PROMPT + "The answer is")
    assert messages[-1] == {"role": "assistant", "content": ["The answer is"]}


@settings(deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=9), min_size=2, max_size=2))
def test_words_of_a_prompt_stay_as_they_are(texts):
    context, question = texts
    prompt = (
        f"<|im_start|>user\n<|memory_start|>{context}<|memory_end|>{question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert parse_prompt(prompt) == [{"role": "user", "content": [Passage(context), question]}]


@pytest.mark.parametrize(
    "prompt",
    [
        "Who?",
        "<|im_start|>user\nWho?",
        "<|im_start|>user\nWho?<|im_end|>\n",
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>user\n",
        "<|im_start|>user\nWho?<|im_start|>assistant\n",
        "<|memory_start|>a<|memory_end|><|im_start|>assistant\n",
        "<|im_start|>user\n<|memory_start|>a<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nWho?<|im_end|>\nMore<|im_start|>assistant\n",
    ],
)
def test_another_prompt_is_refused(prompt):
    with pytest.raises(TextError):
        parse_prompt(prompt)


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": 7}, "row 1: expected text in prompt, got int 7"),
        ({"prompt": "Who?"}, "row 1: prompt: expected turns"),
        (
            {"category": "niah_single_1"},
            "row 1: expected a task of RULER and a length.* in category",
        ),
        ({"category": "squad_4096"}, "in category, got str 'squad_4096'"),
        ({"extra_info": None}, "row 1: expected an object in extra_info, got nothing"),
        ({"extra_info": {}}, "row 1: expected an object in extra_info.ground_truth"),
        (
            {"extra_info": {"ground_truth": {"answers": []}}},
            "expected at least one text in extra_info.ground_truth.answers",
        ),
        (
            {"extra_info": {"ground_truth": {"answers": ["a", None]}}},
            r"expected text in extra_info.ground_truth.answers\[1\], got nothing",
        ),
        (
            {"extra_info": {"ground_truth": {"answers": "a"}, "scoring_function": "bleu"}},
            "expected one of string_match_all, .* in extra_info.scoring_function, got .*bleu",
        ),
    ],
)
def test_a_malformed_row_is_named(write, load, change, message):
    path = write("lclm-eval/ruler/test.jsonl", [RULER_ROWS[0], {**RULER_ROWS[1], **change}])
    with pytest.raises(FileError, match=message) as error:
        load("lclm-eval-ruler")
    assert str(path) in str(error.value)


def test_a_prompt_without_context_is_refused(write, load):
    prompt = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    write("lclm-eval/gsm8k/test.jsonl", [{**make_row("gsm8k"), "prompt": prompt}])
    with pytest.raises(FileError, match="a context between memory tags in prompt"):
        load("lclm-eval-gsm8k")


def test_an_unknown_task_of_longbench_is_named(write, load):
    write("lclm-eval/longbench/test.jsonl", [make_row("memwrap/poems")])
    with pytest.raises(FileError, match="row 0: expected one of narrativeqa, .*poems"):
        load("lclm-eval-longbench")


@pytest.mark.parametrize("kept", [10, 400, -10])
def test_a_file_that_is_cut_off_is_named(write, load, kept):
    path = write("lclm-eval/ruler/test.jsonl", RULER_ROWS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileError, match="row .*download the file again") as error:
        load("lclm-eval-ruler")
    assert str(path) in str(error.value)


def test_a_parquet_file_that_is_cut_off_is_named(tmp_path, load):
    path = tmp_path / "lclm-eval" / "ruler" / "test.parquet"
    path.parent.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RULER_ROWS), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match="test.parquet.*download the file again"):
        load("lclm-eval-ruler")


OWN_TASKS = ("histories", "lookups", "questions")  # generated, or files of one's own


@pytest.mark.parametrize("task", [task for task in TASKS if task not in OWN_TASKS])
def test_a_missing_file_says_what_to_download(task, load):
    with pytest.raises(FileError, match=r"got no such file; download it from https://.* into /"):
        load(task)
    with pytest.raises(ConfigError, match=r"expected a directory with .*https://"):
        TASKS[task](TaskSettings())


def test_questions_are_data(write, load):
    write("lclm-eval/ruler/test.jsonl", RULER_ROWS)
    for question in load("lclm-eval-ruler"):
        json.dumps(dataclasses.asdict(question))
