"""The harness' tasks on a decoder, as text, against the harness' own model of transformers."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval", reason="needs the extra evaluation")
pytest.importorskip("accelerate", reason="needs the extra parity")

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from reference import make_tower

import convert.verify.harness
from convert.from_towers import build_from_towers
from convert.verify.harness import TaskComparison, compare_tasks
from lclm_jax.data.text.tokenizer import PAD, TURN_END, Tokenizer
from lclm_jax.evaluation.answers_file import AnswersFile
from lclm_jax.evaluation.harness.adapter import HarnessModel
from lclm_jax.evaluation.views import View
from lclm_jax.inference.language_model import LanguageModel, load
from tests.support.chat_templates import BOS, TEMPLATES
from tests.support.prose import PROSE
from tests.support.tokenizers import with_text_start

# A decoder, its chat template, and whether its tokenizer begins every text with BOS.
KINDS = {
    "llama": ("llama", "headers", True),  # the template writes BOS, too
    "llama without BOS in its template": ("llama", "trim", True),
    "qwen3": ("qwen3", "thoughts cut", False),
}
POSITIONS = 512
DATA = """
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{text}}}}"
"""
TASKS = {
    "written": """
output_type: generate_until
doc_to_target: "{{choices[0]}}"
generation_kwargs: {max_gen_toks: 8, until: ["\\n"], do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "begun": """
output_type: generate_until
doc_to_target: "{{choices[0]}}"
gen_prefix: "It is"
generation_kwargs: {max_gen_toks: 8, until: [], do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "chosen": """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "chosen_after": """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
gen_prefix: "I say: "
metric_list: [{metric: acc_mutual_info, aggregation: mean, higher_is_better: true}]
""",
    "read": """
output_type: loglikelihood_rolling
doc_to_target: "{{long}}"
metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
""",
}
# Texts that end with letters, spaces and line ends.
ENDS = ("", " ", "\n", "\nAnswer: ")
ROWS = [
    {
        "text": PROSE[300 * n : 300 * n + 200].strip() + end,
        "choices": ["yes", "not at all", "_n(\n"],
        "gold": n % 3,
        "long": PROSE[2_000 * n :][: (40, 2_000)[n % 2]],  # of fewer and more than POSITIONS
    }
    for n, end in enumerate(ENDS)
]


@dataclass(frozen=True)
class Pair:
    """A decoder as transformers saved it, and the same one converted."""

    directory: Path
    checkpoint: Path
    model: LanguageModel


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tokenizer, tmp_path_factory) -> Pair:
    kind, template, has_bos = KINDS[request.param]
    directory = tmp_path_factory.mktemp("decoder")
    definition = with_text_start(tokenizer.definition, BOS) if has_bos else tokenizer.definition
    special = tokenizer.special | ({"bos_token": BOS} if has_bos else {})
    saved = Tokenizer(definition, TEMPLATES[template], special)
    shape = {
        "hidden_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "intermediate_size": 64,
        "vocab_size": saved.embedding_rows,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": True,
    }
    for part, layers in (("decoder", 2), ("encoder", 1)):
        tower = make_tower(1, kind, **{**shape, "num_hidden_layers": layers})
        saved.save(directory / part)
        # As Qwen3 lists them; transformers goes on after a token that is not listed.
        tower.generation_config.eos_token_id = [saved.id(TURN_END), saved.id(PAD)]
        tower.generation_config.pad_token_id = saved.id(PAD)
        tower.save_pretrained(directory / part)
    checkpoint = directory / "checkpoint"
    build_from_towers(directory / "encoder", directory / "decoder", checkpoint)
    return Pair(directory / "decoder", checkpoint, load(checkpoint))


@pytest.fixture
def tasks(tmp_path) -> Path:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
    for name, text in TASKS.items():
        whole = f"task: {name}\n{DATA.format(file=rows)}{text}"
        (tmp_path / f"{name}.yaml").write_text(whole, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("chat", [False, True], ids=["completion", "chat"])
def test_responses_equal_those_of_the_harness_own_model(pair, tasks, chat):
    compared = compare_tasks(pair.directory, pair.model, list(TASKS), include=tasks, chat=chat)
    assert [comparison.task for comparison in compared] == list(TASKS)
    for comparison in compared:
        assert len(comparison.expected) == len(ROWS) and comparison.differing == []
        assert (comparison.largest_difference or 0) < 1e-4, comparison.task
    written = {text for comparison in compared[:2] for (text,) in comparison.expected}
    assert len(written) > 4  # the models write something


def test_a_text_begins_as_with_transformers(pair, tmp_path):
    reference = HFLM(pretrained=str(pair.directory), dtype="float32", device="cpu")
    adapter = HarnessModel(pair.model, View("text"), AnswersFile(tmp_path / "answers.jsonl"))
    assert adapter.prefix_token_id == reference.prefix_token_id
    for text in ("so be it", " ", ""):
        assert adapter.tok_encode(text) == list(reference.tok_encode(text))
        assert adapter.tok_encode(text, False) == list(reference.tok_encode(text, False))
    requests = [Instance("loglikelihood", {}, ("", "so be it"), 0, ("t", 0, 1))]
    (expected, is_greedy), (actual, also) = (
        model.loglikelihood(requests)[0] for model in (reference, adapter)
    )
    assert actual == pytest.approx(expected, rel=1e-4) and is_greedy == also


def test_the_command_prints_what_differs(pair, tasks, command, capsys):
    arguments = [pair.directory, pair.checkpoint, "--tasks", "written,chosen", "--include", tasks]
    assert command(convert.verify.harness, *arguments, "--limit", "2") == 0
    printed = capsys.readouterr().out
    assert "written" in printed and "chosen" in printed and "expected" not in printed


def test_what_differs_is_another_text_choice_or_greedy_token():
    texts = TaskComparison("t", [["a"], ["b"]], [["a"], ["c"]])
    assert texts.differing == [1] and texts.largest_difference is None
    expected = [[(-2.0, False), (-1.0, True)], [(-2.0, False), (-1.0, False)], [(-4.0, True)]]
    actual = [[(-2.0, False), (-1.1, True)], [(-0.5, False), (-1.0, False)], [(-4.0, False)]]
    choices = TaskComparison("t", expected, actual)
    assert choices.differing == [1, 2]
    assert choices.largest_difference == pytest.approx(0.75)
    np.testing.assert_equal(TaskComparison("t", [[-8.0]], [[-8.0]]).differing, [])
