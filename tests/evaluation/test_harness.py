"""The harness' own tasks on our models: prompts, passages, choices, lengths, and its command."""

import ast
import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs the extra evaluation")

import datasets
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from lclm_jax.checkpoint import save_model
from lclm_jax.config import ConfigError
from lclm_jax.data.records import Plain
from lclm_jax.errors import TextError
from lclm_jax.evaluation.answers_file import AnswersFile
from lclm_jax.evaluation.harness import tasks as harness_tasks
from lclm_jax.evaluation.harness.adapter import HarnessModel, read_settings
from lclm_jax.evaluation.harness.contexts import (
    NEEDLES,
    RULES,
    Field,
    Nothing,
    Whole,
    add_defaults,
    find_rule,
    parse_rule,
)
from lclm_jax.evaluation.harness.tasks import (
    list_leaves,
    load_harness_tasks,
    load_tasks,
    read_index,
    run_task,
    time_limit,
)
from lclm_jax.evaluation.questions import Passage
from lclm_jax.evaluation.request import Request
from lclm_jax.evaluation.views import View
from lclm_jax.inference.generation import prefill
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.rendering import render_parts
from lclm_jax.progress import track
from tests.support.prose import PROSE

ROWS = [
    {"context": PROSE[n : n + 400], "question": f"What is {n}?", "answer": "so", "gold": n % 2}
    for n in range(4)
]
WRITTEN = """
task: written
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Read:\\n{{{{context}}}}\\n\\n{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
gen_prefix: "It is"
generation_kwargs: {{max_gen_toks: 4, until: ["\\n"], do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
CHOSEN = """
task: chosen
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Read:\\n{{{{context}}}}\\n\\n{{{{question}}}}"
doc_to_choice: ["yes", "not at all"]
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def local_tasks(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
    for name, text in (("written", WRITTEN), ("chosen", CHOSEN)):
        (tmp_path / f"{name}.yaml").write_text(text.format(file=rows), encoding="utf-8")
    return tmp_path


@pytest.fixture
def index(local_tasks):
    return read_local(local_tasks)


def adapter(model, path, view, **settings):
    return HarnessModel(model, view, AnswersFile(path), **settings)


def read_local(directory):
    """Read the index of the tasks in a directory."""
    return TaskManager(include_path=str(directory), include_defaults=False).task_index


def load_local(index, name):
    return harness_tasks.HarnessTask(name, harness_tasks.load_task(index[name]))


def split_prompt(row):
    """The text before the context, the context, and the text after it."""
    prompt = f"Read:\n{row['context']}\n\n{row['question']}"
    return prompt.partition(row["context"].strip())


def with_context(name):
    return {**RULES, name: Field("context")}


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completion"])
@pytest.mark.parametrize("view", [View("text"), View("latents", 2)], ids=lambda view: view.label)
def test_written_answers_equal_those_of_the_model(model, index, tmp_path, view, chat):
    rules = with_context("written")
    harness = adapter(model, tmp_path / "a.jsonl", view, rules=rules)
    samples = run_task(load_local(index, "written"), harness, None, chat)
    assert [sample.number for sample in samples] == list(range(len(ROWS)))
    for row, sample in zip(ROWS, samples, strict=True):
        before, context, after = split_prompt(row)
        is_text = view.name == "text"
        passage = context if is_text else model.compress(context, view.ratio)
        parts = [before + context + after] if is_text else [before, passage, after]
        if chat:
            record = model.render([{"role": "user", "content": parts}])
            record = [*record, Plain(model.tokenizer.encode("It is"))]
            expected = model.answer(model.read([record]), 4)[0].text
        elif is_text:
            expected = model.complete(f"{parts[0]} It is", 4)
        else:
            expected = model.complete([before, passage, f"{after} It is"], 4)
        assert sample.answer == expected.partition("\n")[0]
        assert sample.scores == {"exact_match": float(sample.answer == "so")}
        assert sample.references == ["so"] and sample.positions > 0
        assert sample.view == view.label and sample.task == "written"


@pytest.mark.parametrize("view", [View("text"), View("latents", 2), View("nothing")], ids=str)
def test_choices_are_scored_by_the_probability_of_their_tokens(model, index, tmp_path, view):
    harness = adapter(model, tmp_path / "a.jsonl", view, rules=with_context("chosen"))
    samples = run_task(load_local(index, "chosen"), harness, None, chat=False)
    for row, sample in zip(ROWS, samples, strict=True):
        before, context, after = split_prompt(row)
        values = [value for value, _ in ast.literal_eval(sample.answer)]
        expected = []
        for choice in (" yes", " not at all"):
            parts = {
                "text": [before + context + after + choice],
                "nothing": [before + after + choice],
                "latents": [before, model.compress(context, 2), after + choice],
            }[view.name]
            expected.append(log_probability(model, parts, choice))
        np.testing.assert_allclose(values, expected, rtol=2e-4)
        assert sample.scores["acc"] == float(int(np.argmax(values)) == row["gold"])


def log_probability(model, parts, choice):
    """The log-probability of the last tokens of a prompt, from its own prefixes' logprobs."""
    whole = model.tokenizer.encode(parts[-1])
    count = len(whole) - len(model.tokenizer.encode(parts[-1].removesuffix(choice)))
    total = 0.0
    for left in range(count, 0, -1):
        record = [*parts[:-1], Plain(whole[: len(whole) - left])]
        total += probability_of(model, record, int(whole[len(whole) - left]))
    return total


def probability_of(model, parts, token):
    prompt = model.read([render_parts(parts, model.tokenizer)])
    with model.queue.turn():
        logits = np.asarray(prefill(model.weights, prompt, model.config)[0])[0].astype(np.float64)
    return logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def test_texts_are_scored_whole_in_windows_of_the_decoders_positions(model, tmp_path):
    text = PROSE[:500]
    request = Instance("loglikelihood_rolling", {}, (text,), 0, ("rolling", 0, 1))
    harness = adapter(model, tmp_path / "a.jsonl", View("text"))
    (value,) = harness.loglikelihood_rolling([request])
    tokens = model.tokenizer.encode(text)
    first = Plain(np.array([harness.prefix_token_id], np.int32))
    expected = sum(
        probability_of(model, [first, Plain(tokens[:n])] if n else [first], int(tokens[n]))
        for n in range(len(tokens))
    )
    assert value == pytest.approx(expected, rel=1e-4)


def test_a_context_without_text_begins_with_the_first_token_of_a_text(model, tmp_path):
    harness = adapter(model, tmp_path / "a.jsonl", View("text"))
    request = Instance("loglikelihood", {}, ("", "so be it"), 0, ("t", 0, 1))
    ((value, _),) = harness.loglikelihood([request])
    rolling = Instance("loglikelihood_rolling", {}, ("so be it",), 0, ("t", 0, 1))
    assert value == pytest.approx(harness.loglikelihood_rolling([rolling])[0], rel=1e-5)


def test_a_continuation_that_does_not_fit_the_decoder_is_an_error(model, tmp_path):
    config = replace(model.config, decoder=replace(model.config.decoder, max_positions=32))
    short = LanguageModel(config, model.params, model.tokenizer)
    harness = adapter(short, tmp_path / "a.jsonl", View("text"))
    request = Instance("loglikelihood", {}, (PROSE[:400], " so"), 0, ("t", 0, 1))
    with pytest.raises(TextError, match="positions, expected at most 32"):
        harness.loglikelihood([request])


def test_the_agent_does_not_compare_choices(model, index, tmp_path):
    harness = adapter(model, tmp_path / "a.jsonl", View("expand", 4))
    with pytest.raises(ConfigError, match="expand answers tasks of type generate_until"):
        run_task(load_local(index, "chosen"), harness, 1, chat=False)


def test_tasks_that_repeat_questions_are_refused(model, local_tasks, tmp_path):
    text = (local_tasks / "written.yaml").read_text(encoding="utf-8") + "repeats: 3\n"
    (local_tasks / "written.yaml").write_text(text, encoding="utf-8")
    task = load_local(read_local(local_tasks), "written")
    with pytest.raises(TextError, match="written answers each question 3 times"):
        run_task(task, adapter(model, tmp_path / "a.jsonl", View("text")), 1, chat=True)


def test_few_shot_examples_are_the_same_in_every_view(model, local_tasks, tmp_path):
    text = (local_tasks / "written.yaml").read_text(encoding="utf-8") + "num_fewshot: 2\n"
    (local_tasks / "written.yaml").write_text(text + "fewshot_split: test\n", encoding="utf-8")
    task = load_local(read_local(local_tasks), "written")
    prompts = []
    for view in (View("text"), View("latents", 2), View("text")):
        harness = adapter(model, tmp_path / "a.jsonl", view, rules=with_context("written"))
        prompts.append([sample.prompt for sample in run_task(task, harness, 3, chat=True)])
    assert prompts[0] == prompts[1] == prompts[2] and len(set(prompts[0])) == 3


# Passages of prompts

NEEDLE = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the numbers afterwards.\n{}\nWhat are all the special magic numbers for "
    "a-b, and c-d mentioned in the provided text?"
)
ONE_NEEDLE = (
    "A special magic uuid is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the uuid afterwards.\n{}\nWhat is the special magic uuid for x mentioned in "
    "the provided text?"
)
TRACKING = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{}\n"
    "Question: Find all variables that are assigned the value 12345 in the text above."
)
COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{}\nQuestion: What are the 10 most common words in "
    "the above list?"
)
CODED = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. {}\nQuestion: Do not provide any explanation. Please ignore "
    "the dots '....'. What are the three most frequently appeared words in the above coded text?"
)
ANSWERED = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n{}\n\nAnswer the question based on "
    "the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: who?"
)
PROMPTS = {
    "niah_multiquery": NEEDLE,
    "niah_single_3": ONE_NEEDLE,
    "ruler_vt": TRACKING,
    "ruler_cwe": COMMON,
    "ruler_fwe": CODED,
    "ruler_qa_squad": ANSWERED,
}


@pytest.mark.parametrize("task", PROMPTS)
@pytest.mark.parametrize("text", ["plain words", "a\nb \n\n c", "{quoted}"])
def test_the_passage_of_a_ruler_prompt_is_its_text(task, text):
    # The text may quote the prompt itself: the instruction is the first, the question the last.
    quoted = text.replace("{quoted}", PROMPTS[task].format("inner"))
    prompt = PROMPTS[task].replace("{}", quoted)
    before, passage, after = find_rule(task).split(prompt, {})
    assert isinstance(passage, Passage) and isinstance(before, str) and isinstance(after, str)
    assert passage.text.strip() == quoted.strip()
    assert before + passage.text + after == prompt


def test_a_prompt_without_the_question_is_an_error():
    with pytest.raises(TextError, match="expected a prompt that matches"):
        find_rule("ruler_vt").split("something else", {})
    with pytest.raises(TextError, match="the field 'context' of the row"):
        find_rule("longbench_qasper").split("prompt", {"context": "other"})


def test_rules_are_chosen_by_the_name_of_a_task():
    assert find_rule("gsm8k") == Whole() and find_rule("hellaswag") == Nothing()
    assert find_rule("longbench2_agent_history") == Field("context")
    assert find_rule("niah_single_1") == NEEDLES and find_rule("gsm8k_cot") == Whole()
    assert find_rule("my_ruler_vt") == Nothing()
    assert parse_rule("my_*=field:document") == {"my_*": Field("document")}
    assert parse_rule("a=whole") == {"a": Whole()} and parse_rule("a=nothing") == {"a": Nothing()}
    for text in ("a", "=whole", "a=field:", "a=all"):
        with pytest.raises(ConfigError, match="expected TASK=whole"):
            parse_rule(text)


@pytest.mark.parametrize(
    ("contexts", "expected"),
    [
        (["written=whole"], Whole()),
        (["*=whole"], Whole()),
        (["gsm8k*=field:context"], None),
        (["w*=field:question", "*=whole"], Field("question")),
    ],
)
def test_rules_of_a_request_are_globs_of_the_tasks_that_it_loads(
    contexts, expected, model, local_tasks
):
    request = Request(["written"], contexts=contexts, include=local_tasks)

    def load():
        return load_harness_tasks(["written"], model, request, AnswersFile(None), track)

    if expected is None:
        with pytest.raises(ConfigError, match=r"got 'gsm8k\*', which matches none of written"):
            load()
        return
    (task,) = load()
    assert find_rule("written", task.model.rules) == expected


def test_rules_of_a_request_come_before_the_built_in_ones():
    rules = add_defaults({"*_1": Nothing(), "niah_*": Whole(), "gsm8k": Field("context")})
    assert find_rule("niah_single_1", rules) == Nothing()
    assert find_rule("niah_single_2", rules) == Whole()
    assert find_rule("gsm8k", rules) == Field("context")
    assert find_rule("gsm8k_cot", rules) == Whole()


def test_settings_of_the_harness_become_ours():
    settings = read_settings({"until": ["\n", ""], "max_gen_toks": 7, "do_sample": False})
    assert settings["max_tokens"] == 7 and settings["sampling"].stop == ("\n",)
    assert settings["sampling"].temperature == 0
    drawn = read_settings({"until": "x", "do_sample": True, "temperature": 0.5, "top_p": 0.9})
    assert (drawn["sampling"].temperature, drawn["sampling"].top_p) == (0.5, 0.9)
    assert drawn["max_tokens"] == 256


# Loading


def test_groups_and_tags_are_lists_of_tasks():
    all_tasks = read_index()
    leaves = list_leaves("ruler", all_tasks)
    assert len(leaves) == 13 and "ruler_qa_hotpot" in leaves
    assert list_leaves("niah_single_1", all_tasks) == ["niah_single_1"]
    assert len(list_leaves("longbench", all_tasks)) == 21
    with pytest.raises(
        ConfigError, match="of the harness, got 'niah_sing'; similar: .*niah_single_1"
    ):
        list_leaves("niah_sing", all_tasks)


def test_lengths_are_asked_for_and_bounded(tokenizer):
    with pytest.raises(ConfigError, match="niah_single_1 needs lengths in tokens"):
        load_tasks(["niah_single_1"], [], tokenizer)
    with pytest.raises(ConfigError, match="RULER needs 1024 tokens or more, got 512"):
        load_tasks(["niah_single_1"], [4096, 512], tokenizer)


def test_lengths_of_babilong_are_multiples_of_1024(tokenizer):
    with pytest.raises(ConfigError, match="multiples of 1024 tokens, as 4096, got 5000"):
        load_tasks(["babilong_qa1"], [4096, 5000], tokenizer)


def test_each_length_of_babilong_is_a_subset_beside_lengths_of_ruler(tokenizer, monkeypatch):
    """Its loader expects the name of one subset, RULER's a list of numbers."""
    subsets, ruler_lengths = [], []
    load_one = harness_tasks.load_task

    def load_task(entry, metadata):
        if entry.name.startswith("babilong"):
            return load_one(entry, metadata)
        ruler_lengths.append(metadata["max_seq_lengths"])
        return None

    def load_dataset(path, *, name, split):
        subsets.append((path, name, split))
        rows = [{"input": PROSE[:200], "question": "Where is Ada?", "target": "attic"}]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(harness_tasks, "load_task", load_task)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    tasks = load_tasks(["niah_single_1", "babilong_qa1"], [4096, 8192], tokenizer)
    assert [task.label for task in tasks] == [
        *("niah_single_1@4096", "niah_single_1@8192"),
        *("babilong_qa1@4096", "babilong_qa1@8192"),
    ]
    assert ruler_lengths == [[4096], [8192]]
    assert subsets == [("RMT-team/babilong-1k-samples", name, "qa1") for name in ("4k", "8k")]
    assert tasks[2].task.test_docs()[0]["target"] == "attic"


def test_data_that_is_not_here_is_named(tokenizer, local_tasks):
    (local_tasks / "rows.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"(?s)data of 1 tasks is not .*written: .*set HF_HOME"):
        load_tasks(["written"], [], tokenizer, include=local_tasks)


def test_perplexities_are_log_likelihoods_of_single_rows(model, local_tasks, tmp_path):
    text = WRITTEN.replace("written", "rolling").replace("generate_until", "loglikelihood_rolling")
    text = text.replace('doc_to_text: "Read:', 'doc_to_target: "{{{{context}}}}"\nignored: "Read:')
    lines = [
        line
        for line in text.format(file=local_tasks / "rows.jsonl").splitlines()
        if not line.startswith(("ignored", "gen", "metric", 'doc_to_target: "{{answer'))
    ]
    lines += ['doc_to_text: ""', "metric_list: [{metric: byte_perplexity}]"]
    (local_tasks / "rolling.yaml").write_text("\n".join(lines), encoding="utf-8")
    task = load_local(read_local(local_tasks), "rolling")
    samples = run_task(task, adapter(model, tmp_path / "a.jsonl", View("text")), 2, chat=False)
    for sample, row in zip(samples, ROWS[:2], strict=True):
        ((name, value),) = sample.scores.items()
        assert name == "byte_perplexity"
        size = len(row["context"].encode())
        assert value * size == pytest.approx(float(sample.answer.strip("[]")), rel=1e-6)
        assert -10 < value < 0


def test_a_task_without_a_score_for_single_rows_is_left_out(model, local_tasks, tmp_path):
    """Rows of f1 are pairs of the right and the chosen class, which are no log-likelihoods."""
    text = CHOSEN.format(file=local_tasks / "rows.jsonl")
    for name, metrics in (("one", "[{metric: f1}]"), ("both", "[{metric: acc}, {metric: f1}]")):
        lines = text.replace("chosen", name).strip().splitlines()[:-1]
        lines.append(f"metric_list: {metrics}")
        (local_tasks / f"{name}.yaml").write_text("\n".join(lines), encoding="utf-8")
    index = read_local(local_tasks)
    harness = adapter(model, tmp_path / "a.jsonl", View("text"))
    samples = run_task(load_local(index, "both"), harness, 2, chat=False)
    assert [list(sample.scores) for sample in samples] == [["acc"]] * 2
    with pytest.raises(TextError, match="one has no score for single rows; leave it out"):
        run_task(load_local(index, "one"), harness, 2, chat=False)


def test_what_takes_too_long_is_ended():
    took_long = pytest.raises(ConfigError, match="making rows took longer than 1 s")
    with took_long, time_limit(1, "making rows"):
        time.sleep(30)


@pytest.mark.parametrize("other", [None, KeyError("made no row")], ids=["caught", "replaced"])
def test_a_limit_holds_although_the_block_catches_its_error(other):
    took_long = pytest.raises(ConfigError, match="making rows took longer than 1 s")
    with took_long, time_limit(1, "making rows"):
        with suppress(Exception):
            time.sleep(30)
        if other:
            raise other


def test_rows_that_take_too_long_are_not_called_missing(tokenizer, local_tasks, monkeypatch):
    monkeypatch.setattr(harness_tasks, "MAX_ROWS_SECONDS", 1)
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: time.sleep(30))
    message = "^written: making its rows took longer than 1 s; use longer lengths$"
    with pytest.raises(ConfigError, match=message):
        load_tasks(["written"], [], tokenizer, include=local_tasks)


def test_the_harness_own_command_evaluates_a_checkpoint(model, local_tasks, tmp_path):
    save_model(tmp_path / "checkpoint", model.config, model.tokenizer, model.params)
    arguments = f"checkpoint={tmp_path / 'checkpoint'},view=latents,ratio=2"
    command = [sys.executable, "-m", "lclm_jax.evaluation.harness", "run", "--model", "lclm"]
    command += ["--model_args", f"{arguments},out={tmp_path / 'answers'}", "--tasks", "written"]
    command += ["--include_path", str(local_tasks), "--limit", "2"]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "exact_match" in ended.stdout
    assert (
        len((tmp_path / "answers" / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    )
