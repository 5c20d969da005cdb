"""The format of a file is detected from its content, and unread files are reported by name."""

import bz2
import codecs
import csv
import datetime
import gzip
import io
import json
import lzma
import os
import socket
import struct
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.data.inputs import parquet
from lclm_jax.data.inputs.files import InputRow, Rejection, read_unit, unread_files
from lclm_jax.data.inputs.formats import find_form
from lclm_jax.data.inputs.splits import split_of_file
from lclm_jax.data.inputs.units import find_units

FUZZ = settings(max_examples=int(os.environ.get("LCLM_FUZZ", "50")), deadline=None)
ROWS = [{"text": f"Row {i}: Zoë", "n": str(i)} for i in range(30)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"size"
COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def read(pattern, size=1 << 20):
    return [row for unit in find_units(str(pattern), size) for row in read_unit(unit)]


def fields(results):
    assert all(isinstance(result, InputRow) for result in results), [
        result for result in results if type(result) is not InputRow
    ]
    return [result.fields for result in results]


def table(delimiter=","):
    written = io.StringIO()
    writer = csv.DictWriter(written, ["text", "n"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return written.getvalue()


FORMS = {  # name, text of the file
    "lines.json": LINES,
    "lines.jsonlines": LINES,
    "lines": LINES,
    "lines.txt": LINES,
    "lines.JSON": LINES,
    "list.json": json.dumps(ROWS),
    "list.jsonl": json.dumps(ROWS),
    "indented.json": json.dumps(ROWS, indent=2),
    "objects.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "table.csv": table(),
    "semicolons.csv": table(";"),
    "table.tsv": table("\t"),
    "separators.jsonl": "".join(f"\x1e{line}\n" for line in LINES.splitlines()),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", FORMS)
def test_rows_come_from_every_form_in_every_encoding(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(FORMS[name].encode(encoding))
    assert fields(read(tmp_path / name)) == ROWS


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("packed", COMPRESS)
def test_rows_come_from_every_compression_whatever_the_name_says(tmp_path, packed, suffix):
    (tmp_path / f"a.jsonl{suffix}").write_bytes(COMPRESS[packed](LINES.encode()))
    assert fields(read(tmp_path / f"a.jsonl{suffix}", size=100)) == ROWS


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz", ".zst"])
def test_frames_follow_one_another_with_padding_between_them(tmp_path, packed):
    half = len(LINES) // 2
    first, second, none = (
        COMPRESS[packed](part.encode()) for part in (LINES[:half], LINES[half:], "")
    )
    padding = SKIPPABLE if packed == ".zst" else bytes(512)
    (tmp_path / "a.jsonl").write_bytes(first + padding + none + second + padding)
    assert fields(read(tmp_path / "a.jsonl")) == ROWS


def test_a_zstd_frame_may_begin_with_what_is_skipped_and_look_back_far(tmp_path):
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=31, enable_ldm=1)
    with (tmp_path / "a.jsonl.zst").open("wb") as file:
        file.write(SKIPPABLE)
        with zstandard.ZstdCompressor(compression_params=settings).stream_writer(file) as stream:
            stream.write(LINES.encode())
    assert fields(read(tmp_path / "a.jsonl.zst")) == ROWS


def test_forms_of_columns_are_known_by_their_first_bytes(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.dat")
    assert fields(read(tmp_path / "a.dat")) == ROWS
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.dat").read_bytes()))
    (refused,) = read(tmp_path / "b.parquet.gz")
    assert refused.reason == "other format" and "decompress it" in refused.detail


def test_one_object_in_a_file_is_a_row_or_a_text_by_its_name(tmp_path):
    for name in ("a.json", "b.jsonl", "c", "d.txt"):
        (tmp_path / name).write_text('{"text": "words"}', encoding="utf-8")
    assert [fields(read(tmp_path / name))[0]["text"] for name in ("a.json", "b.jsonl", "c")] == [
        "words"
    ] * 3
    assert fields(read(tmp_path / "d.txt")) == [{"text": '{"text": "words"}'}]
    assert fields(read(f"text:{tmp_path / 'a.json'}")) == [{"text": '{"text": "words"}'}]


@pytest.mark.parametrize(
    ("text", "rows", "reason"),
    [
        ('[{"text": "a"}, {"text": "b"}', 2, "json"),
        ('[{"text": "a"}, {"text": "b"} {"text": "c"}]', 1, "json"),
        ('[{"text": "a"}] more', 1, "json"),
        ('[{"text": "a"}, 7]', 1, "json"),
        ("[]", 0, "empty"),
        ("nothing", 0, "json"),
        ("", 0, "empty"),
    ],
)
def test_a_list_that_is_not_whole_is_named_after_what_can_be_read(tmp_path, text, rows, reason):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    *results, last = read(tmp_path / "a.json")
    assert len(fields(results)) == rows and last.reason == reason


def test_a_list_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("lclm_jax.data.inputs.json_rows.MIN_READ_CHARACTERS", 7)
    (tmp_path / "a.json").write_text(
        json.dumps([*ROWS, {"text": "é" * 500}], indent=1), encoding="utf-8"
    )
    assert fields(read(tmp_path / "a.json")) == [*ROWS, {"text": "é" * 500}]
    monkeypatch.setattr("lclm_jax.data.inputs.files.MAX_TEXT_BYTES", 100)
    *results, last = read(tmp_path / "a.json")
    assert fields(results) == ROWS and last.reason == "too long"


def test_a_bad_row_of_a_table_is_named_and_the_others_come(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text,n\na,1\nb\n\xff,2\n"c"d,3\n,4\n"two\nlines",5\n')
    results = read(tmp_path / "a.csv")
    assert [
        result.fields if isinstance(result, InputRow) else result.reason for result in results
    ] == [
        {"text": "a", "n": "1"},
        "csv",
        "encoding",
        "csv",
        {"text": None, "n": "4"},
        {"text": "two\nlines", "n": "5"},
    ]


def test_a_field_given_twice_is_no_value(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "text": "b", "n": 1}\n{"text": "a", "text": "a"}\n',
        encoding="utf-8",
    )
    first, second = fields(read(tmp_path / "a.jsonl"))
    assert repr(first["text"]) == "two different values" and second == {"text": "a"}


def test_marks_at_the_beginning_of_files_joined_are_no_part_of_rows(tmp_path):
    data = codecs.BOM_UTF8 + LINES.encode()
    (tmp_path / "a.jsonl").write_bytes(data + data)
    assert fields(read(tmp_path / "a.jsonl", size=100)) == ROWS * 2
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + b"words")
    assert fields(read(tmp_path / "a.txt")) == [{"text": "words"}]


def test_what_is_found_and_not_read_has_a_name(tmp_path):
    (tmp_path / "good.txt").write_text("Ada likes pears.", encoding="utf-8")
    (tmp_path / "utf16.txt").write_text("Ben likes figs.", encoding="utf-16")
    (tmp_path / "latin.txt").write_bytes("Zoë".encode("latin-1"))
    (tmp_path / "zero.txt").write_text("Cy likes\0 plums.", encoding="utf-8")
    (tmp_path / "late.txt").write_text("x" * 100_000 + "\0", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    (tmp_path / "image.png").write_text("no zero", encoding="utf-8")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    (tmp_path / "build").mkdir()
    (tmp_path / ".hidden").mkdir()
    for pattern in (tmp_path, tmp_path / "*"):
        results = read(pattern)
        texts = [result.fields["text"] for result in results if isinstance(result, InputRow)]
        assert texts == ["Ada likes pears.", "Ben likes figs."]
        named = {
            Path(result.file).name: result.reason for result in results if type(result) is Rejection
        }
        named.pop("build", None)
        assert named == {
            "latin.txt": "encoding",
            "zero.txt": "not text",
            "late.txt": "not text",
            "empty.txt": "empty",
            "image.png": "not text",
            "pipe": "not a file",
            "socket": "not a file",
            "broken": "unreadable",
            "loop": "unreadable",
        }


def test_a_directory_that_cannot_be_listed_costs_itself_alone(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("words", encoding="utf-8")
    listed = type(tmp_path).iterdir

    def refuse(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    text, closed = read(tmp_path)
    assert text.fields == {"text": "words"} and closed.reason == "unreadable"
    (closed,) = read(tmp_path / "closed")
    assert closed.file == str(tmp_path / "closed") and "Permission denied" in closed.detail


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.csv", "a.json"])
def test_a_file_that_cannot_be_read_costs_itself_alone(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text('{"text": "words"}', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "more"}', encoding="utf-8")
    opened = type(tmp_path).open

    def refuse(path, *arguments, **settings):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **settings)

    monkeypatch.setattr(type(tmp_path), "open", refuse)
    results = read(tmp_path)
    assert {"text": "more"} in [result.fields for result in results if isinstance(result, InputRow)]
    (problem,) = [result for result in results if isinstance(result, Rejection)]
    assert problem.file == str(tmp_path / name) and problem.detail


def test_lists_and_tables_of_a_source_tree_are_text(tmp_path):
    (tmp_path / "a.py").write_text("print(1)", encoding="utf-8")
    (tmp_path / "b.json").write_text('[{"text": "words"}]', encoding="utf-8")
    (tmp_path / "settings.json").write_text('{"text": "words"}\n', encoding="utf-8")
    (tmp_path / "c.csv").write_text("text\nwords\n", encoding="utf-8")
    assert len(fields(read(tmp_path))) == 4
    assert fields(read(tmp_path))[1] == {"text": '[{"text": "words"}]'}
    (tmp_path / "d.json").write_text('{"text": "first"}\n{"text": "second"}\n', encoding="utf-8")
    texts = [row["text"] for row in fields(read(tmp_path))]
    assert texts[:3] == ["first", "second", "print(1)"] and len(texts) == 6
    (tmp_path / "setup.py").write_text("", encoding="utf-8")
    (repository,) = fields(read(tmp_path))
    assert "# FILE d.json" in repository["text"]
    for name in ("a.py", "d.json", "setup.py"):
        (tmp_path / name).unlink()
    (tmp_path / "README.md").write_text("About these data.", encoding="utf-8")
    *rows, page = read(tmp_path)
    assert fields(rows) == [{"text": "words"}] * 3 and page.reason == "other format"


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00001.parquet", None),
        ("en/validation-00000-of-00001.parquet", "validation"),
        ("data/test/0000.parquet", "test"),
        ("dev.jsonl", "validation"),
        ("squad_valid_v2.jsonl", "validation"),
        ("test/train.jsonl", None),
        ("latest.jsonl", None),
        ("contest/attest.jsonl", None),
        ("train_test.jsonl", None),
    ],
)
def test_splits_have_the_names_of_the_hub(path, split):
    assert split_of_file(path.split("/")) == split


def test_validation_and_test_files_of_a_dataset_are_named_and_not_read(tmp_path):
    top = tmp_path / "test"
    for config in ("en", "fr"):
        (top / config).mkdir(parents=True)
        for split in ("train", "validation", "test"):
            rows = pyarrow.table({"text": [f"{config} {split}"]})
            pyarrow.parquet.write_table(rows, top / config / f"{split}-00000-of-00001.parquet")
    for pattern in (top, top / "*" / "*.parquet"):
        assert fields(read(pattern)) == [{"text": "en train"}, {"text": "fr train"}]
        left = unread_files(find_units(str(pattern))[-1])
        assert [rejection.reason for rejection in left] == ["other split"] * 4
        assert all("split of a dataset is not trained on" in rejection.detail for rejection in left)
    for pattern in (top / "en" / "test-00000-of-00001.parquet", top / "en" / "test-*"):
        assert fields(read(pattern)) == [{"text": "en test"}]


NANOSECONDS = pyarrow.array([1, 2], pyarrow.timestamp("ns"))
COLUMNS = {
    "nanoseconds": NANOSECONDS,
    "durations": pyarrow.array([1, 2], pyarrow.duration("ns")),
    "far": pyarrow.array([568_971_820_800_000_000, 0], pyarrow.timestamp("us")),
    "early": pyarrow.array([-800_000, 0], pyarrow.date32()),
    "zone": pyarrow.array([0, 0], pyarrow.timestamp("us", tz="Mars/Olympus")),
    "digests": pyarrow.array([b"\x80" * 16, b"\x81" * 16]),
    "nested": pyarrow.array(
        [[{"at": 1}], []], pyarrow.list_(pyarrow.struct([("at", NANOSECONDS.type)]))
    ),
    "map": pyarrow.array([[("k", 1)], []], pyarrow.map_(pyarrow.string(), NANOSECONDS.type)),
    "damaged": pyarrow.Array.from_buffers(
        pyarrow.string(), 2, pyarrow.array([b"\xff", b"a"]).buffers()
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_that_nobody_needs_costs_no_row(tmp_path, name):
    rows = pyarrow.table({"text": ["one", "two"], "other": COLUMNS[name]})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    assert [row["text"] for row in fields(read(tmp_path / "a.parquet"))] == ["one", "two"]
    (unit,) = find_units(str(tmp_path / "a.parquet"))
    first, second = read_unit(unit, ["text"])
    assert (first.fields, second.ignored) == ({"text": "one"}, ("other",))


def test_times_inside_messages_cost_no_row(tmp_path):
    message = {"role": "user", "content": "Who?", "at": datetime.datetime(2026, 1, 1)}
    type_ = pyarrow.struct(
        [("role", pyarrow.string()), ("content", pyarrow.string()), ("at", NANOSECONDS.type)]
    )
    messages = pyarrow.array([[message]], pyarrow.list_(type_))
    pyarrow.parquet.write_table(pyarrow.table({"messages": messages}), tmp_path / "a.parquet")
    ((read_message,),) = [row["messages"] for row in fields(read(tmp_path / "a.parquet"))]
    assert read_message["content"] == "Who?"


def test_a_needed_column_that_is_there_twice_is_named(tmp_path):
    rows = pyarrow.table([pyarrow.array(["a"])] * 2, names=["text", "text"])
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    (refused,) = read(tmp_path / "a.parquet")
    assert "two columns are called text" in refused.detail


def test_a_batch_of_parquet_rows_is_bounded_by_bytes(tmp_path, monkeypatch):
    texts = pyarrow.array(["words " * 200_000] * 64)  # a megabyte, once in the file
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    del texts
    monkeypatch.setattr(parquet, "MAX_BATCH_BYTES", 4 << 20)
    before, most, count = pyarrow.total_allocated_bytes(), 0, 0
    for row in read(tmp_path / "a.parquet") and parquet.ParquetRows(
        tmp_path / "a.parquet", slice(None), None
    ):
        most, count = max(most, pyarrow.total_allocated_bytes() - before), count + 1
        assert len(row["text"]) == 1_200_000
    assert count == 64 and most < 16 << 20


SUFFIXES = ["", ".txt", ".json", ".jsonl", ".csv", ".parquet", ".arrayrecord", ".jsonl.gz", ".zst"]
MAGIC = [
    b"",
    b"PAR1",
    b"\x1f\x8b\x08",
    b"BZh9",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",
    b"[{",
    b'{"a":',
]


@pytest.mark.fuzz
@FUZZ
@given(
    suffix=st.sampled_from(SUFFIXES),
    head=st.sampled_from([*MAGIC, *codecs.BOM_UTF16, codecs.BOM_UTF8, codecs.BOM_UTF32_LE]),
    data=st.one_of(st.binary(max_size=200), st.text(max_size=60).map(str.encode)),
    form=st.sampled_from(["", "", "text:", "jsonl:", "json:", "csv:", "parquet:"]),
)
def test_a_file_of_any_bytes_is_read_or_named(tmp_path_factory, suffix, head, data, form):
    file = tmp_path_factory.mktemp("any") / f"a{suffix}"
    file.write_bytes((head if isinstance(head, bytes) else bytes([head])) + data)
    results = read(f"{form}{file}", size=50)
    assert results and all(isinstance(result, (InputRow, Rejection)) for result in results)


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8)


@pytest.mark.fuzz
@FUZZ
@given(
    rows=st.lists(st.fixed_dictionaries({"text": CELLS, "b": CELLS}), min_size=2, max_size=6),
    form=st.sampled_from(["lines", "list", "csv", "parquet"]),
    packed=st.sampled_from(list(COMPRESS)),
    size=st.integers(1, 200),
)
def test_rows_come_back_from_every_form(tmp_path_factory, rows, form, packed, size):
    directory = tmp_path_factory.mktemp("rows")
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), directory / "a.parquet")
        assert fields(read(directory, size)) == rows
        return
    file = directory / f"a.{ {'lines': 'jsonl', 'list': 'json', 'csv': 'csv'}[form] }"
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, ["text", "b"])
        writer.writeheader()
        writer.writerows(rows)
        data, expected = text.getvalue(), [{k: v or None for k, v in row.items()} for row in rows]
    else:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        data, expected = (lines if form == "lines" else json.dumps(rows, indent=1)), rows
    file.write_bytes(COMPRESS[packed](data.encode()))
    assert find_form(file) == {"lines": "jsonl", "list": "json", "csv": "csv"}[form]
    assert fields(read(file, size)) == expected
