"""`launch.tune` recommends a setting of a model that can read latents, and names bad input."""

import json

import pytest

from launch import tune
from lclm_jax.evaluation.results import Results

TEXT = (
    "color this calls open created return search support request version integer files order path "
    "group table index user point class field number data string list result value method"
)
WORDS = TEXT.split()
GRID = ("--raw", 0, "--no-expand", "--max-tokens", 4)


@pytest.fixture
def files(tmp_path):
    """Write documents of 16 pairs of words and a question about each; return their paths."""
    documents, rows = tmp_path / "documents", []
    documents.mkdir()
    for number in range(2):
        keys, values = WORDS[number : number + 16], WORDS[-16:]
        text = "".join(f" {key} {value}," for key, value in zip(keys, values, strict=True))
        (documents / f"{number}.txt").write_text(f"color:{text}", encoding="utf-8")
        rows += [
            {"question": f"{key}?", "answer": value, "document": f"{number}.txt"}
            for key, value in zip(keys, values, strict=True)
        ]
    questions = tmp_path / "qa.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return documents, questions


def arguments(lookup, files, out):
    documents, questions = files
    paths = ("--documents", documents, "--questions", questions, "--out", out)
    return ("--checkpoint", lookup, *paths, *GRID)


def test_a_setting_is_recommended(lookup, files, tmp_path, command, capsys):
    out = tmp_path / "out"
    assert command(tune, *arguments(lookup, files, out), "--margin", 0.1) == 0
    written = capsys.readouterr().out
    assert "Recommendation: compress, latents 4x" in written
    assert "It beats the first tokens at the same number of positions" in written
    assert (out / "index.html").exists() and f"wrote {out / 'index.html'}" in written
    results = Results.read(out)
    assert results.settings["command"].startswith("python -m launch.tune --checkpoint")
    answers = (out / "answers.jsonl").read_bytes()
    assert command(tune, *arguments(lookup, files, out), "--margin", 0.1) == 0
    assert (out / "answers.jsonl").read_bytes() == answers


def test_bad_questions_end_with_one_line(lookup, files, tmp_path, command, capsys):
    _, questions = files
    first = questions.read_text(encoding="utf-8").splitlines()[0]
    cases = {
        "": "qa.jsonl",
        first: "expected at least 2 questions, got 1",
        f"{first}\n" + first.replace("0.txt", "9.txt"): "row 1: document '9.txt' cannot be read",
    }
    for content, message in cases.items():
        questions.write_text(content, encoding="utf-8")
        assert command(tune, *arguments(lookup, files, tmp_path / "out")) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
