"""Results are written whole, read back equal, and averaged as their tables say."""

import json
import math

import numpy as np
import pytest

from lclm_jax.errors import FileError
from lclm_jax.evaluation.paper import paper_lengths, paper_scores
from lclm_jax.evaluation.results import FILE_NAME, Results, read_efficiency, read_versions
from lclm_jax.evaluation.samples import Sample
from lclm_jax.evaluation.statistics import Mean
from tests.support.results import LENGTHS, RULER, VIEWS, make_efficiency, make_results, make_samples


def only(rows, **fields):
    """The only row with these fields."""
    (row,) = [r for r in rows if all(getattr(r, name) == value for name, value in fields.items())]
    return row


# --- The file ---


def test_results_are_read_as_they_were_written(tmp_path):
    results = make_results(3)
    path = results.write(tmp_path / "new")
    assert path == tmp_path / "new" / FILE_NAME
    for place in (path, path.parent, str(path.parent)):
        assert Results.read(place) == results
    assert list(path.parent.iterdir()) == [path]


def test_every_sample_has_a_line_of_its_own(tmp_path):
    path = make_results(2, ["text"]).write(tmp_path)
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith('{"task"')]
    assert len(lines) == len(json.loads(text)["samples"]) == 2 * (3 * 3 + 2)


def test_numbers_that_json_lacks_are_null(tmp_path):
    sample = Sample(
        "t", 0, "text", "é\n\u2028", [], {"perplexity": math.inf}, 1, {"x": np.int32(3)}
    )
    settings = {"out": tmp_path, "limit": np.float32(math.nan)}
    path = Results(settings, {}, [sample]).write(tmp_path)
    values = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert values["samples"][0]["scores"] == {"perplexity": None}
    again = Results.read(path)
    assert math.isnan(again.samples[0].score) and again.samples[0].tags == {"x": 3}
    assert again.samples[0].answer == "é\n\u2028"
    assert again.settings == {"out": str(tmp_path), "limit": None}


def test_results_without_samples_are_still_results(tmp_path):
    results = Results.read(Results({}, {}, []).write(tmp_path))
    assert results.views == [] and results.tables() == [] and results.family_rows() == []


def test_a_file_that_was_cut_off_is_named(tmp_path):
    path = make_results(2, ["text"]).write(tmp_path)
    content = path.read_bytes()
    for size in (0, 1, len(content) // 2, len(content) - 3):
        path.write_bytes(content[:size])
        with pytest.raises(FileError, match=r"results.json is not JSON.*copy or make the file"):
            Results.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": "another"},
            "expected results with format 'lclm_jax evaluation, version 1', got",
        ),
        ({"format": None}, "got None"),
        ({"samples": None}, "TypeError"),
        ({"samples": [{"task": "t"}]}, "missing .* required"),
        ({"samples": [{"task": "t", "novel": 1}]}, "novel"),
        ({"settings": 3}, "TypeError"),
        ({"efficiency": [3]}, "TypeError"),
        ({"efficiency": [{"view": "text"}]}, "KeyError: 'length'"),
        ({"tags": {"length": "4k"}}, "sample 0 of t has fields of other types"),
        ({"tags": {"family": 3}}, "sample 0 of t has fields of other types"),
        ({"number": "first"}, "sample first of t has fields of other types"),
        ({"scores": {}}, "sample 0 of t has no score"),
        ({"scores": {"score": "high"}}, "ValueError: could not convert"),
        ({"answer": 3}, "sample 0 of t has fields of other types"),
        ({"tags": []}, "sample 0 of t has fields of other types"),
    ],
)
def test_a_file_of_something_else_is_named(change, message, tmp_path):
    sample = Sample("t", 0, "text", "answer", [], {"score": 1.0}, 1)
    path = Results({}, {}, [sample]).write(tmp_path)
    values = json.loads(path.read_text(encoding="utf-8"))
    (name,) = change
    (values if name in values else values["samples"][0]).update(change)
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(FileError, match=message) as raised:
        Results.read(path)
    assert str(path) in str(raised.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"results.json: no such file; expected the results"
    ):
        Results.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent: no such file"):
        Results.read(tmp_path / "absent")


def test_measurements_are_read_from_their_file(tmp_path, caplog):
    assert read_efficiency(tmp_path) == []
    entries = make_efficiency(["text"])
    newer = {**entries[0], "first_token_seconds": 7.0}
    lines = [json.dumps(entry) for entry in [*entries, newer]]
    text = "\n".join([*lines, '{"view": 3}', '{"view": "te'])
    (tmp_path / "efficiency.jsonl").write_text(text, encoding="utf-8")
    assert read_efficiency(tmp_path) == [newer, *entries[1:]]
    assert caplog.text.count("left out a line that is no measurement") == 2


def test_measurements_of_an_earlier_protocol_are_left_out(tmp_path):
    """A line over lengths would mix seconds of 1 and of 30 rounds, of few and of many windows."""
    first, protocol = make_efficiency(["text"])[0], {"warm_ups": 1, "repeats": 3}
    text = {**first, **protocol, "windows_at_once": None}
    latents = {**first, **protocol, "view": "latents 4x", "windows_at_once": 16}
    elsewhere = {**latents, "device": "tpu"}
    wider = {**latents, "windows_at_once": 128, "length": 8192}
    longer = {**text, "repeats": 30, "length": 8192}

    def read(*entries):
        lines = "\n".join(json.dumps(entry) for entry in entries)
        (tmp_path / "efficiency.jsonl").write_text(lines, encoding="utf-8")
        return read_efficiency(tmp_path)

    assert read(text, latents, elsewhere) == [text, latents, elsewhere]
    assert read(text, latents, elsewhere, wider) == [text, elsewhere, wider]
    assert read(text, latents, elsewhere, longer) == [elsewhere, longer]


def test_versions_name_the_packages_and_the_device():
    versions = read_versions()
    assert {"lclm_jax", "python", "jax", "flax", "numpy", "transformers"} <= versions.keys()
    assert versions["device"] == "cpu" and versions["devices"] == "8"
    assert all(isinstance(text, str) and text for text in versions.values())


# --- Tables ---


def test_there_is_a_row_for_every_task_length_and_view():
    results = make_results(10)
    rows = results.tables()
    assert len(rows) == len(VIEWS) * (len(RULER) * len(LENGTHS) + 2)
    assert results.views == list(VIEWS) and results.families == ["ruler", "longhealth", "gsm8k"]
    row = only(rows, tasks=("ruler_vt@8192",), view="latents 16x")
    scores = [s.score for s in results.samples if s.task == "ruler_vt@8192" and s.view == row.view]
    assert row.score == Mean.of(scores)
    assert row.name == "ruler_vt" and row.length == 8192 and row.positions == 100
    text = [s.score for s in results.samples if s.task == "ruler_vt@8192" and s.view == "text"]
    assert row.difference.value == pytest.approx(np.mean(scores) - np.mean(text))
    assert only(rows, tasks=("gsm8k",), view="text").difference.value == 0


def test_lengths_are_in_order_whatever_the_order_of_the_samples():
    results = make_results(2, ["text", "latents 4x"])
    backwards = Results({}, {}, results.samples[::-1])
    lengths = [row.length for row in backwards.family_rows() if row.family == "ruler"]
    assert lengths == sorted(LENGTHS * 2)


def test_the_mean_of_a_family_gives_tasks_the_same_weight():
    ruler = {"family": "ruler", "length": 4096}
    samples = [
        *make_samples([1, 1, 0, 0], "text", "ruler_vt", **ruler),
        *make_samples([1] * 40, "text", "ruler_cwe", **ruler),
        *make_samples([0, 1, 0, 0], "latents 4x", "ruler_vt", **ruler),
        *make_samples([1] * 40, "latents 4x", "ruler_cwe", **ruler),
    ]
    results = Results({}, {}, samples)
    text, latents = results.family_rows()
    assert text.name == "ruler, mean of 2" and text.score.value == 0.75
    parts = [row.score for row in results.tables() if row.view == "text"]
    assert text.score == Mean.of_means(parts) and text.score.count == 44
    assert latents.difference.value == pytest.approx(-0.125) and latents.difference.count == 44


def test_a_family_of_one_task_has_the_row_of_its_task():
    results = Results({}, {}, make_samples([0, 1, 1], "text", "gsm8k", cluster=["a", "a", "b"]))
    assert results.family_rows() == results.tables()


def test_a_view_that_lacks_a_task_has_no_mean():
    ruler = {"family": "ruler", "length": 4096}
    samples = [
        *make_samples([1, 0], "text", "ruler_vt", **ruler),
        *make_samples([1, 0], "text", "ruler_cwe", **ruler),
        *make_samples([1, 0], "expand 4x", "ruler_vt", **ruler),
    ]
    assert [row.view for row in Results({}, {}, samples).family_rows()] == ["text"]


def test_metrics_outside_zero_and_one_are_not_averaged_over_tasks():
    tags = {"family": "language"}
    samples = make_samples([12.0, 9.0], "text", "wikitext", **tags)
    samples += make_samples([1, 0], "text", "lambada", **tags)
    results = Results({}, {}, samples)
    assert [row.is_share for row in results.tables()] == [False, True]
    assert results.family_rows() == []


def test_views_that_answer_other_questions_have_no_difference():
    samples = make_samples([1, 0, 1], "text") + make_samples([1, 0], "latents 4x")
    text, latents = Results({}, {}, samples).tables()
    assert latents.difference is None and text.difference.value == 0
    assert all(row.difference is None for row in Results({}, {}, samples).tables(baseline=None))
    assert all(row.difference is None for row in Results({}, {}, samples[3:]).tables())


def test_scores_of_one_document_share_their_error():
    scores = np.repeat([0.0, 1.0] * 5, 10)
    documents = np.repeat(np.arange(10), 10).tolist()
    (row,) = Results({}, {}, make_samples(scores, cluster=documents)).tables()
    assert row.score.standard_error > 3 * Mean.of(scores).standard_error


# --- The paper's results ---


def test_the_paper_has_scores_by_length_and_language():
    assert paper_scores("ruler", 4096)["latents 16x"] == pytest.approx(0.7506)
    assert paper_lengths("ruler") == [4096, 8192, 16384]
    assert paper_scores("ruler", 1000) == {} == paper_scores("arc", None)
    english, chinese = "longbench_hotpotqa", "longbench_vcsum"
    assert paper_scores("longbench", None, [english])["text"] == pytest.approx(0.4521)
    assert paper_scores("longbench", None, [chinese])["text"] == pytest.approx(0.4663)
    assert paper_scores("longbench", None, [english, chinese]) == {}
