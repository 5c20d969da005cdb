"""The commands of a store: compress, ask, list, verify, remove and clean up."""

import io
import json
import sys

from convert.from_hf import from_hf
from launch import agent, ask, chat, compress, store
from lclm_jax.inference.answers import Answer
from lclm_jax.inference.language_model import LanguageModel
from tests.support.paths import MODELS

PAIRS = (
    "color: this some, calls open, created open, return search, support request, version integer,"
)


def test_from_files_to_an_answer_with_its_sources(lookup, tmp_path, command, capsys):
    notes, memories = tmp_path / "notes", tmp_path / "memories"
    notes.mkdir()
    (notes / "pairs.md").write_text(PAIRS, encoding="utf-8")
    (notes / "image.bin").write_bytes(bytes(range(256)))
    arguments = (notes, "--store", memories, "--checkpoint", lookup)
    assert command(compress, *arguments) == 0
    written = capsys.readouterr()
    assert "pairs.md: " in written.out and "1 windows encoded, 0 known" in written.out
    assert "left out: " in written.err and "image.bin" in written.err

    assert command(compress, *arguments) == 0
    assert "0 windows encoded, 1 known" in capsys.readouterr().out

    assert command(ask, "version?", "--store", memories) == 0
    written = capsys.readouterr()
    assert written.out.strip() == "integer" and f"read: {notes}/pairs.md" in written.err

    assert command(store, "ls", memories) == 0
    assert "pairs.md" in capsys.readouterr().out
    assert command(store, "show", memories, f"{notes}/pairs.md") == 0
    assert f"model_name  {lookup}" in capsys.readouterr().out
    assert command(store, "verify", memories) == 0
    assert command(store, "remove", memories, f"{notes}/pairs.md") == 0
    (memories / "texts" / "0a1b.__lock").write_bytes(b"half a te")  # of a killed process
    assert command(store, "gc", memories) == 0
    written = capsys.readouterr().out
    assert "removed 3 objects and 1 unfinished files; 0 objects are needed" in written
    assert not list(memories.rglob("*.__lock"))
    assert command(ask, "version?", "--store", memories) == 2
    assert "expected documents of one model" in capsys.readouterr().err


def test_an_agent_names_its_sources_and_leaves_a_page_and_a_trace(
    lookup, tmp_path, command, capsys, monkeypatch
):
    (tmp_path / "pairs.md").write_text(PAIRS, encoding="utf-8")
    memories = tmp_path / "memories"
    command(compress, tmp_path / "pairs.md", "--store", memories, "--checkpoint", lookup)
    replies = iter(["EXPAND: 1", "ANSWER: <b>integer</b>"])
    monkeypatch.setattr(
        LanguageModel,
        "answer",
        lambda *_: [Answer(next(replies), (), (), "stop", 40, 30)],
    )
    capsys.readouterr()
    page, trace = tmp_path / "answer.html", tmp_path / "trace.jsonl"
    outputs = ("--page", page, "--trace", trace)
    assert command(agent, "version?", "--store", memories, *outputs) == 0
    written = capsys.readouterr()
    name = f"{tmp_path}/pairs.md"
    assert written.out == (
        f"<b>integer</b>\nsource: chunk 1: {name}, characters 0 to {len(PAIRS)}\n"
    )
    assert "30 of 40 positions read: EXPAND: 1" in written.err
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;integer&lt;/b&gt;" in text and PAIRS in text and name in text
    row = json.loads(trace.read_text(encoding="utf-8"))
    assert row["messages"][0]["content"][2] == {"context": PAIRS}

    replies = iter(["EXPAND: 1", "", "ANSWER: integer"])
    assert command(agent, "version?", "--store", memories, *outputs) == 0
    assert f"left out of {trace}: expected words in the message" in capsys.readouterr().err
    assert json.loads(trace.read_text(encoding="utf-8")) == row


def test_a_chat_reads_documents_and_says_what_it_saves(
    lookup, tmp_path, command, capsys, monkeypatch
):
    (tmp_path / "pairs.md").write_text(PAIRS, encoding="utf-8")
    typed = f"/read {tmp_path}/absent\n/read {tmp_path}/pairs.md\n\nversion?\n/quit\nnever"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert command(chat, "--checkpoint", lookup, "--budget", "1024") == 0
    written = capsys.readouterr()
    assert written.out.count("\n") == 1 and len(written.out) > 1
    assert "error: " in written.err and "absent" in written.err
    assert "tokens read as" in written.err and "of 1024 positions]" in written.err


def test_names_are_for_the_actions_that_take_one(lookup, tmp_path, command, capsys):
    for arguments in (("show", tmp_path), ("ls", tmp_path, "name")):
        assert command(store, *arguments) == 2
        assert f"{arguments[0]} takes" in capsys.readouterr().err


def test_nothing_to_add_is_an_error(lookup, tmp_path, command, capsys):
    arguments = (tmp_path / "absent", "--store", tmp_path / "store", "--checkpoint", lookup)
    assert command(compress, *arguments) == 2
    assert "no document was added" in capsys.readouterr().err


def test_files_have_the_ratio_of_their_pattern(lookup, tmp_path, command, capsys):
    model, notes = tmp_path / "ratios", tmp_path / "notes"
    from_hf(MODELS / "small_ratios", model)
    notes.mkdir()
    for name in ("a.md", "b.py"):
        (notes / name).write_text(PAIRS, encoding="utf-8")
    arguments = (notes, "--store", tmp_path / "memories", "--checkpoint", model)
    assert command(compress, *arguments, "--ratio", "*.py=4", "--ratio", "8") == 0
    lines = capsys.readouterr().out.splitlines()
    latents = [int(line.partition(" tokens as ")[2].partition(" ")[0]) for line in lines]
    assert latents[0] < latents[1] <= 2 * latents[0]
    assert command(compress, *arguments, "--ratio", "*.py=5") == 2
    assert "this model compresses at ratio 4, 2, 8, 16, got ratio=5" in capsys.readouterr().err
    assert command(compress, *arguments, "--ratio", "*.py=many") == 2
    assert "must be an integer" in capsys.readouterr().err


def test_damage_is_listed(lookup, tmp_path, command, capsys):
    (tmp_path / "pairs.md").write_text(PAIRS, encoding="utf-8")
    memories = tmp_path / "memories"
    command(compress, tmp_path / "pairs.md", "--store", memories, "--checkpoint", lookup)
    (window,) = [path for path in (memories / "windows").rglob("*") if path.is_file()]
    window.write_bytes(window.read_bytes()[:-1])
    assert command(store, "verify", memories) == 2
    assert "1 problems" in capsys.readouterr().err
