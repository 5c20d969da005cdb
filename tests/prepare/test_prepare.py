"""Preparation of sources: independent of workers, resumable, with every rejection recorded."""

import dataclasses
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.recipes import agent, fine_tuning, pretraining
from launch import inspect_data as launch_inspect
from launch import prepare as launch_prepare
from lclm_jax.config import ConfigError, Recipe, Source, Stream
from lclm_jax.config.values import from_dict
from lclm_jax.data.loading import PreparedSource, read_manifest
from lclm_jax.data.prepare import examples, jobs, prepare
from lclm_jax.data.prepare.jobs import Job, run_job
from lclm_jax.data.records import Role
from lclm_jax.data.rows.raw_examples import example_text, tokenize_example
from lclm_jax.data.shards import REJECTIONS, DamagedError, hash_file, split_of
from lclm_jax.data.text import find_tokenizer as hub
from lclm_jax.errors import UserError
from tests.support.shards import find_shards

pytestmark = pytest.mark.newest

SOURCES = (Source("docs", "text"), Source("talk", "chat"), Source("traces", "expand"))
STREAMS = (
    Stream("interleaved", "docs", 60.0),
    Stream("sft", "talk", 30.0),
    Stream("sft", "traces", 10.0),
)
RECIPE = Recipe("small", SOURCES, STREAMS)
LIBRARY = Path(dataclasses.__file__).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Three sources in several files."""
    directory = tmp_path_factory.mktemp("input")
    for k in range(3):
        rows = [{"text": f"{k} {i}\n" + LIBRARY[200 * i : 200 * i + 900]} for i in range(60)]
        (directory / f"docs{k}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    talk = [{"prompt": f"What is {i} and {i}?", "response": f"It is {2 * i}."} for i in range(120)]
    (directory / "talk.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in talk), encoding="utf-8"
    )
    (directory / "long.txt").write_text(LIBRARY[:9000], encoding="utf-8")
    return {
        name: [str(directory / pattern)]
        for name, pattern in (
            ("docs", "docs*.jsonl"),
            ("talk", "talk.jsonl"),
            ("traces", "long.txt"),
        )
    }


@pytest.fixture(scope="module")
def prepared(inputs, tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    prepare(RECIPE, inputs, directory, tokenizer, workers=1)
    return directory


def contents(directory):
    """Return every file that matters, by name; ArrayRecord files by what they hold."""
    names = sorted(path.name for path in directory.glob("*.npz"))
    return {name: (directory / name).read_bytes() for name in names} | {
        path.name: hash_file(path) for path in sorted(directory.glob("*.arrayrecord"))
    }


def test_the_manifest_says_what_there_is(prepared, inputs, tokenizer):
    manifest = read_manifest(prepared)
    assert from_dict(Recipe, manifest["recipe"]) == RECIPE
    assert manifest["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert set(manifest["libraries"]) >= {"tokenizers", "array-record"}
    for source, rows in (("docs", 180), ("talk", 120), ("traces", 1)):
        figures = manifest["sources"][source]
        assert (figures["rows"], sum(figures["examples"].values()), figures["rejected"]) == (
            rows,
            rows,
            {},
        )
        assert figures["inputs"] == inputs[source]
        files = sorted(path for pattern in inputs[source] for path in Path("/").glob(pattern[1:]))
        digests = "".join(hash_file(path) for path in files)
        assert figures["sha256"] == hashlib.sha256(digests.encode()).hexdigest()
        assert (figures["files"], figures["bytes"]) == (
            len(files),
            sum(path.stat().st_size for path in files),
        )
        for shard in figures["shards"]:
            assert hash_file(prepared / shard["file"]) == shard["sha256"]
        for split in ("train", "held"):
            opened = PreparedSource(prepared, source, split, tokenizer)
            assert len(opened) == figures["examples"][split]
            for i in range(0, len(opened), 7):
                assert split_of(example_text(opened.raw(i))) == split
                shapes = [(len(section.tokens), section.role) for section in opened.shapes[i]]
                assert (
                    shapes == [(len(section.tokens), section.role) for section in opened[i]] != []
                )
            tokens = sum(
                len(section.tokens) for i in range(len(opened)) for section in opened.shapes[i]
            )
            assert tokens == figures["tokens"][split]


def test_the_same_comes_of_any_number_of_workers(prepared, inputs, tokenizer, tmp_path):
    prepare(RECIPE, inputs, tmp_path, tokenizer, workers=2)
    assert contents(tmp_path) == contents(prepared)
    assert (tmp_path / "manifest.json").read_text(encoding="utf-8") == (
        prepared / "manifest.json"
    ).read_text(encoding="utf-8")


def test_an_interrupted_preparation_goes_on_where_it_stopped(
    prepared, inputs, tokenizer, tmp_path, monkeypatch
):
    done: list[str] = []

    def breaking(job: Job, tokenizer):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(job.report.name)
        return run_job(job, tokenizer)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "run_job", breaking)
        with pytest.raises(KeyboardInterrupt):
            prepare(RECIPE, inputs, tmp_path, tokenizer, workers=1)
    with pytest.raises(FileNotFoundError, match="no prepared data here"):
        read_manifest(tmp_path)
    again: list[str] = []
    monkeypatch.setattr(
        jobs,
        "run_job",
        lambda job, tokenizer: again.append(job.report.name) or run_job(job, tokenizer),
    )
    prepare(RECIPE, inputs, tmp_path, tokenizer, workers=1)
    assert len(done) == 3 and not set(done) & set(again) and len(again) == 2
    assert contents(tmp_path) == contents(prepared)
    prepare(RECIPE, inputs, tmp_path, tokenizer, workers=1)
    assert len(again) == 2, "nothing is done twice"


def test_what_changed_is_prepared_anew_and_what_is_gone_is_removed(tmp_path, tokenizer):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(
            json.dumps({"text": f"text {name} " * 40}) + "\n", encoding="utf-8"
        )
    recipe = Recipe("one", (Source("docs", "text"),), (Stream("interleaved", "docs", 1.0),))
    out = tmp_path / "out"
    prepare(recipe, {"docs": [f"{tmp_path}/*.jsonl"]}, out, tokenizer, workers=1)
    assert len(find_shards(out, "docs", "train")) == 2
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "another text altogether " * 40}) + "\n", encoding="utf-8"
    )
    prepare(recipe, {"docs": [f"{tmp_path}/*.jsonl"]}, out, tokenizer, workers=1)
    assert len(find_shards(out, "docs", "train")) == 1
    opened = PreparedSource(out, "docs", "train", tokenizer)
    assert opened.raw(0)["text"].startswith("another text")


BAD = [
    ({"text": "fine words"}, None),
    ({"txt": "no such field"}, "fields"),
    ({"text": "  \n"}, "empty"),
    ({"text": "half <|memory_start|> a tag"}, "memory tags"),
    ({"text": "whole <|memory_start|>x<|memory_end|> tags"}, "memory tags"),
    ({"text": "long " * 400}, "too long"),
    ({"text": "lone \ud800 surrogate"}, "encoding"),
    ({"text": "he said <|im_end|> and <|im_start|>system"}, None),
]


def test_bad_rows_are_named_counted_and_left_out(tmp_path, tokenizer):
    file = tmp_path / "docs.jsonl"
    file.write_text(
        "".join(json.dumps(row) + "\n" for row, _ in BAD) + "{broken\n", encoding="utf-8"
    )
    recipe = Recipe(
        "one",
        (Source("docs", "text"),),
        (Stream("interleaved", "docs", 1.0),),
        max_document_chars=1000,
    )
    manifest = prepare(recipe, {"docs": [str(file)]}, tmp_path / "out", tokenizer, workers=1)
    reasons = [(i, reason) for i, (_, reason) in enumerate(BAD) if reason] + [(len(BAD), "json")]
    listed = [
        json.loads(line)
        for line in (tmp_path / "out" / REJECTIONS).read_text(encoding="utf-8").splitlines()
    ]
    assert [(rejection["number"], rejection["reason"]) for rejection in listed] == reasons
    assert all(
        rejection["file"] == str(file) and rejection["source"] == "docs" and rejection["detail"]
        for rejection in listed
    )
    counts = manifest["sources"]["docs"]
    assert (
        sum(counts["rejected"].values()) + sum(counts["examples"].values())
        == counts["rows"]
        == len(BAD) + 1
    )
    assert counts["rejected"] == {
        "empty": 1,
        "encoding": 1,
        "fields": 1,
        "json": 1,
        "memory tags": 2,
        "too long": 1,
    }
    assert counts["spelled_control"] == 1
    opened = [
        PreparedSource(tmp_path / "out", "docs", split, tokenizer) for split in ("train", "held")
    ]
    kept = [source[i] for source in opened for i in range(len(source))]
    control = set(tokenizer.control.values())
    assert len(kept) == 2 and not any(
        int(token) in control for record in kept for token in record[0].tokens
    )


def test_too_many_bad_rows_stop_the_preparation_with_the_first_of_them(tmp_path, tokenizer):
    (tmp_path / "docs.jsonl").write_text(
        '{"text": "fine"}\n' + '{"txt": 1}\n' * 20, encoding="utf-8"
    )
    recipe = Recipe(
        "one", (Source("docs", "text"),), (Stream("interleaved", "docs", 1.0),), max_rejected_rows=5
    )
    with pytest.raises(
        UserError,
        match="(?s)rows of source docs were refused, "
        "more than recipe.max_rejected_rows=5.*record 1: fields",
    ):
        prepare(
            recipe, {"docs": [str(tmp_path / "docs.jsonl")]}, tmp_path / "out", tokenizer, workers=1
        )
    assert not (tmp_path / "out" / "manifest.json").exists()


def prepare_one(tmp_path, tokenizer, rows, kind="text", name="docs.jsonl", **settings):
    """Return the manifest's entry of one source made of rows, and its rejections."""
    (tmp_path / "in").mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "in" / name).write_text(text, encoding="utf-8")
    recipe = Recipe(
        "one", (Source("docs", kind),), (Stream("interleaved", "docs", 1.0),), **settings
    )
    inputs = {"docs": [str(tmp_path / "in")]}
    manifest = prepare(recipe, inputs, tmp_path / "out", tokenizer, workers=1)
    lines = (tmp_path / "out" / REJECTIONS).read_text(encoding="utf-8").splitlines()
    return manifest["sources"]["docs"], [json.loads(line) for line in lines]


def test_a_group_is_held_out_together_by_its_own_field_alone(tmp_path, tokenizer):
    rows = [{"text": f"words {i}", "split_group": f"module {i % 100}"} for i in range(400)]
    prepare_one(tmp_path, tokenizer, rows)
    held_out = PreparedSource(tmp_path / "out", "docs", "held", tokenizer)
    numbers = {int(held_out.raw(i)["text"].split()[1]) % 100 for i in range(len(held_out))}
    assert len(held_out) == 4 * len(numbers) > 0
    assert all(split_of(f"module {number}") == "held" for number in numbers)


def test_a_column_called_group_decides_no_split(tmp_path, tokenizer):
    value = next(str(i) for i in range(1000) if split_of(str(i)) == "held")
    rows = [{"text": f"words {i}", "group": value} for i in range(200)]
    source, _ = prepare_one(tmp_path, tokenizer, rows)
    expected = sum(split_of(row["text"]) == "held" for row in rows)
    assert source["examples"] == {"train": 200 - expected, "held": expected}
    assert source["ignored_fields"] == {"group": 200}


class PanicException(BaseException):
    """An error named as those that libraries in Rust raise when they panic."""


@pytest.mark.parametrize(
    "error", [OverflowError, KeyError, RecursionError, AssertionError, PanicException]
)
def test_whatever_a_row_raises_is_its_rejection(tmp_path, tokenizer, monkeypatch, error):
    def tokenize_or_raise(raw, tokenizer):
        if "odd" in raw["text"]:
            raise error("something odd")
        return tokenize_example(raw, tokenizer)

    monkeypatch.setattr(examples, "tokenize_example", tokenize_or_raise)
    rows = [{"text": "words"}, {"text": "odd words"}, {"text": "more words"}]
    source, (refused,) = prepare_one(tmp_path, tokenizer, rows)
    assert source["rejected"] == {"error": 1} and sum(source["examples"].values()) == 2
    assert refused["number"] == 1
    assert refused["detail"].startswith(f"{error.__name__}: ") and "odd" in refused["detail"]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_machine_at_its_end_is_no_rejection(tmp_path, tokenizer, monkeypatch, error):
    def fail(raw, tokenizer):
        raise error

    monkeypatch.setattr(examples, "tokenize_example", fail)
    with pytest.raises(error):
        prepare_one(tmp_path, tokenizer, [{"text": "words"}])


def test_files_that_are_not_read_are_counted_apart_from_refused_rows(tmp_path, tokenizer):
    (tmp_path / "in").mkdir()
    for i in range(5):
        (tmp_path / "in" / f"{i}.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "in" / "test.jsonl").write_text('{"text": "a test"}\n', encoding="utf-8")
    (tmp_path / "in" / "LICENSE").write_text("You may.", encoding="utf-8")
    rows = [{"text": "words", "url": "x"}, {"text": "more words", "url": None}, {"txt": 1}]
    source, refused = prepare_one(tmp_path, tokenizer, rows, max_rejected_rows=1)
    assert source["unread"] == {"not text": 5, "other format": 1, "other split": 1}
    assert source["rejected"] == {"fields": 1} and source["rows"] == 3 and source["files"] == 1
    assert source["ignored_fields"] == {"txt": 1, "url": 1}
    reasons = {Path(rejection["file"]).name: rejection["reason"] for rejection in refused}
    assert reasons["test.jsonl"] == "other split" and reasons["LICENSE"] == "other format"
    assert len(refused) == 8


def test_examples_beside_a_bad_one_in_a_packed_row_are_kept(tmp_path, tokenizer):
    good = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nBen<|im_end|>\n"
    rows = [{"packed": [good, "<|im_start|>user\nWho?", good]}]
    source, (refused,) = prepare_one(tmp_path, tokenizer, rows, kind="packed")
    assert sum(source["examples"].values()) == 2
    assert refused["reason"] == "chat" and "1 of 3 examples of the row" in refused["detail"]


def test_a_list_in_a_json_file_and_a_table_are_prepared(tmp_path, tokenizer):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "list.json").write_text(
        '[{"text": "one"}, {"text": "two"}]', encoding="utf-8"
    )
    (tmp_path / "in" / "table.csv").write_text("id,text\n1,three\n", encoding="utf-8")
    source, refused = prepare_one(tmp_path, tokenizer, [{"text": "four"}])
    assert sum(source["examples"].values()) == 4 and refused == []
    assert source["ignored_fields"] == {"id": 1}


def test_a_damaged_shard_is_named(prepared, tokenizer, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    (shard, *_) = find_shards(copy, "docs", "train")
    *_, last = find_shards(copy, "docs", "train")
    last.write_bytes(last.read_bytes()[:-200])
    with pytest.raises(
        DamagedError, match=f"^{last.name} cannot be opened: .*then start again to continue"
    ):
        PreparedSource(copy, "docs", "train", tokenizer)[0]  # an example of the first
    shard.unlink()
    with pytest.raises(ConfigError, match="expected the shards docs.train-00000.arrayrecord"):
        PreparedSource(copy, "docs", "train", tokenizer)
    index = find_shards(copy, "docs", "held")[0].with_suffix(".index.npz")
    index.write_bytes(index.read_bytes()[:50])
    with pytest.raises(DamagedError, match="index.npz is damaged"):
        PreparedSource(copy, "docs", "held", tokenizer)


def test_traces_expand_the_chunk_that_holds_the_answer(prepared, tokenizer):
    split = next(
        split
        for split in ("train", "held")
        if len(PreparedSource(prepared, "traces", split, tokenizer))
    )
    messages = PreparedSource(prepared, "traces", split, tokenizer).raw(0)["messages"]
    first, *turns, last = messages
    chunks = [part["context"] for part in first["content"] if "context" in part]
    assert "".join(chunks) == LIBRARY[:9000]
    assert all(len(tokenizer.encode(chunk)) <= 520 for chunk in chunks)
    answer = last["content"].removeprefix("ANSWER: ")
    asked = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    replies = [turn["content"][0]["text"] for turn in turns if turn["role"] == "user"]
    assert 1 <= len(asked) <= 5 and len(asked) == len(replies)
    for request, text in zip(asked, replies, strict=True):
        numbers = [int(number) for number in request.removeprefix("EXPAND: ").split(", ")]
        assert text == "\n\n".join(f"Chunk {n}:\n{chunks[n - 1]}" for n in numbers)
    assert answer in "".join(chunks) and any(answer.split()[0] in text for text in replies)


def test_the_published_mixes_have_their_printed_weights():
    def shares(recipe, *kinds):
        return round(sum(stream.share for stream in recipe.streams if stream.kind in kinds), 2)

    first, last = pretraining.recipe(), fine_tuning.recipe()
    assert shares(first, "interleaved") == 20.37 + 16.90 + 2.84
    assert (shares(first, "reasoning"), shares(first, "sft"), shares(first, "reconstruction")) == (
        17.17,
        25.49,
        17.23,
    )
    assert (shares(last, "reasoning"), shares(last, "sft"), shares(last, "reconstruction")) == (
        17.88,
        70.07,
        12.05,
    )
    assert {source.kind for source in agent.recipe().sources} == {"expand", "chat", "text"}


def test_prepare_and_inspect_as_commands(command, inputs, tokenizer, tmp_path, capsys):
    tokenizer.save(tmp_path / "tokenizer")
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from lclm_jax.config import Recipe, Source, Stream\n"
        "def recipe():\n"
        "    sources = (Source('docs', 'text'), Source('talk', 'chat'), Source('more', 'math'))\n"
        "    streams = (Stream('interleaved', 'docs', 6.0), Stream('sft', 'talk', 3.0),\n"
        "               Stream('reconstruction', 'more', 1.0))\n"
        "    return Recipe('small', sources, streams)\n",
        encoding="utf-8",
    )
    out = tmp_path / "out"
    arguments = [
        "--recipe",
        recipe,
        "--out",
        out,
        "--tokenizer",
        tmp_path / "tokenizer",
        "--workers",
        1,
        "--input",
        f"docs={inputs['docs'][0]}",
    ]
    assert command(launch_prepare, *arguments) == 2
    assert (
        "also reads talk, more; say where they lie by --input talk=PATH --input more=PATH"
        in capsys.readouterr().err
    )
    arguments += ["--input", f"talk={inputs['talk'][0]}"]
    assert command(launch_prepare, *arguments, "--input", "other=x") == 2
    assert command(launch_prepare, *arguments, "--without", "more") == 0
    assert f"python -m launch.inspect_data {out}" in capsys.readouterr().out
    settings = [f"--set=model.{key}" for key in ("compression.ratio=4", "compression.window=64")]
    settings += [
        "--set=data.row_positions=512",
        "--set=data.row_windows=5",
        "--set=data.packing_lookahead=60",
        "--rows",
        20,
    ]
    assert command(launch_inspect, out, "--json", tmp_path / "figures.json", *settings) == 0
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    page = (out / "inspect.html").read_text(encoding="utf-8")
    assert "interleaved/docs" in page and 'class="context"' in page and page.count("<img") >= 4
    check_figures(figures, PreparedSource(out, "docs", "train", tokenizer))


def check_figures(figures, docs):
    counts = figures["sources"]["docs"]
    assert counts["examples"]["train"] == len(docs) == counts["streams"]["interleaved"]["documents"]
    lengths = [sum(len(section.tokens) for section in docs.shapes[i]) for i in range(len(docs))]
    assert (
        counts["streams"]["interleaved"]["tokens_before"]
        == sum(lengths)
        == counts["tokens"]["train"]
    )
    (bucket,) = counts["streams"]["interleaved"]["buckets"].values()
    assert bucket["pairs"]["1"] + bucket["too_short"] == len(docs)
    assert bucket["trainable_tokens"] == sum(length // 2 for length in lengths if length >= 256)
    assert bucket["shortest_segment"] >= 128 and bucket["first_wrapped_share"] is None
    packing = figures["packing"]
    assert (
        packing["rows"] == 20
        and 0 < packing["positions_fill"] <= 1
        and 0 < packing["windows_fill"] <= 1
    )
    assert abs(sum(packing["trained_shares"].values()) - 1) < 1e-9
    assert str(packing["windows"]) in packing["tried_windows"] and packing["suggested_windows"] > 0


def test_a_tokenizer_is_found_in_a_directory_or_shipped_and_has_memory_tokens(
    tokenizer, tmp_path, monkeypatch
):
    tokenizer.save(tmp_path)
    assert hub.find_tokenizer(str(tmp_path)).fingerprint == tokenizer.fingerprint
    import huggingface_hub

    def refuse(name, **settings):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(
        FileNotFoundError,
        match="elsewhere/model: no such directory, and no tokenizer could be loaded from the hub",
    ):
        hub.find_tokenizer("elsewhere/model")
    qwen = hub.find_tokenizer("Qwen/Qwen3-4B-Instruct-2507")
    assert [qwen.id(name) for name in ("<|memory_start|>", "<|memory_end|>", "<|memory|>")] == [
        151669,
        151670,
        151671,
    ]


def test_prepared_examples_are_those_of_their_rows(prepared, tokenizer):
    talk = PreparedSource(prepared, "talk", "train", tokenizer)
    for i in range(5):
        again = tokenize_example(talk.raw(i), tokenizer)
        assert [(section.role, np.asarray(section.tokens).tolist()) for section in again] == [
            (section.role, section.tokens.tolist()) for section in talk[i]
        ]
        assert [section.role for section in talk[i]] == [
            Role.FIXED,
            Role.PROMPT,
            Role.FIXED,
            Role.ANSWER,
            Role.FIXED,
        ]
        assert replace(talk[i][0], tokens=()).ratio is None
