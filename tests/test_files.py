"""Input files of every format as rows: nothing lost, whatever the units; what is damaged is named and the rest still comes."""

import gzip
import io
import json
import os
import pickle

import huggingface_hub
import msgpack
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.data import files
from lclm_jax.data.files import Rejection, Row, find_units, read_unit
from lclm_jax.data.pickles import PickleError, load_plain

ROWS = [{"text": f"row {i} é\n", "n": i} for i in range(40)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write_records(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_all(directory):
    """The same rows in every format."""
    (directory / "a.jsonl").write_bytes(LINES)
    (directory / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    half = len(LINES) // 2
    compress = zstandard.ZstdCompressor().compress
    (directory / "c.jsonl.zst").write_bytes(compress(LINES[:half]) + compress(LINES[half:]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), directory / "d.parquet", row_group_size=7)
    write_records(
        directory / "e.arrayrecord", [msgpack.packb(row) for row in ROWS[:20]] + [json.dumps(row).encode() for row in ROWS[20:]]
    )


def read(pattern, size=1 << 20):
    return [row for unit in find_units(str(pattern), size) for row in read_unit(unit)]


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet", "e.arrayrecord"])
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_every_format_gives_back_its_rows_in_units_of_any_size(tmp_path, name, size):
    write_all(tmp_path)
    rows = read(tmp_path / name, size)
    assert [row.fields for row in rows] == ROWS
    assert [row.number for row in rows] == list(range(40))
    assert {row.file for row in rows} == {str(tmp_path / name)}


def test_a_directory_gives_its_data_files_in_order_and_a_glob_what_it_matches(tmp_path):
    write_all(tmp_path)
    (tmp_path / "README.md").write_text("not data")
    assert [row.fields for row in read(tmp_path)] == ROWS * 5
    assert [row.file[-9:] for row in read(tmp_path / "[ad].*")] == [str(tmp_path / "a.jsonl")[-9:]] * 40 + ["d.parquet"] * 40
    assert len(read(f"jsonl:{tmp_path}")) == 120


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.one_of(st.just(""), st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=2)), max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    size=st.integers(1, 60),
)
def test_a_line_belongs_to_the_unit_in_which_it_begins(tmp_path_factory, lines, end, last, size):
    file = tmp_path_factory.mktemp("lines") / "x.jsonl"
    texts = [json.dumps(line, ensure_ascii=False) if isinstance(line, dict) else line for line in lines]
    file.write_bytes((end.join(texts) + (end if last else "")).encode("utf-8", "surrogatepass"))
    expected = [(i, line) for i, line in enumerate(lines) if isinstance(line, dict)]
    found = read(file, size)
    assert [(row.number, row.fields) for row in found if isinstance(row, Row)] == [
        (i, line) for i, line in expected if not _surrogate(line)
    ]
    assert [row.number for row in found if isinstance(row, Rejection)] == [i for i, line in expected if _surrogate(line)]


def _surrogate(line):
    return any(0xD800 <= ord(letter) < 0xE000 for letter in json.dumps(line, ensure_ascii=False))


def test_bad_lines_are_named_and_the_others_still_come(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST", 30)
    bad = [b'{"a": 1}', b"{broken", b"[1]", b'{"a": "\xff"}', b"", b'{"a": "' + b"x" * 50 + b'"}', b'{"a": 2}']
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(bad) + b"\n")
    found = read(tmp_path / "x.jsonl")
    assert [(one.number, one.fields if isinstance(one, Row) else one.reason) for one in found] == [
        (0, {"a": 1}),
        (1, "json"),
        (2, "json"),
        (3, "encoding"),
        (5, "too long"),
        (6, {"a": 2}),
    ]
    assert all(one.file == str(tmp_path / "x.jsonl") for one in found)


@pytest.mark.parametrize("name", ["b.jsonl.gz", "c.jsonl.zst", "d.parquet", "e.arrayrecord"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_a_truncated_file_is_one_rejection_after_what_can_be_read(tmp_path, name, kept):
    write_all(tmp_path)
    file = tmp_path / name
    data = file.read_bytes()
    file.write_bytes(data[: max(1, int(len(data) * kept))])
    *rows, last = read(file)
    assert last.reason == "corrupt" and last.file == str(file)
    whole = [row for row in rows if isinstance(row, Row)]
    assert [row.fields for row in whole] == ROWS[: len(whole)]
    assert len(rows) - len(whole) <= 1, "at most one line is cut in two"
    if kept == 0.9 and name.endswith(("gz", "zst")):
        assert len(whole) > 10


@pytest.mark.parametrize("name", ["c.jsonl.zst", "d.parquet", "e.arrayrecord"])
def test_a_damaged_file_never_raises(tmp_path, name):
    write_all(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    for place in range(0, len(data), max(1, len(data) // 25)):
        (tmp_path / name).write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        assert all(isinstance(one, (Row, Rejection)) for one in read(tmp_path / name))


def make_tree(directory):
    for name, text in {
        "b/two.py": "2\n",
        "a.py": "1\n",
        ".hidden": "no",
        "__pycache__/x.py": "no",
        "c.bin": "a\0b",
        "d.txt": " ",
    }.items():
        (directory / name).parent.mkdir(exist_ok=True, parents=True)
        (directory / name).write_text(text)
    (directory / "loop").symlink_to(directory)


def test_a_source_tree_gives_every_text_file(tmp_path):
    make_tree(tmp_path)
    found = read(tmp_path)
    assert [row.fields["text"] for row in found if isinstance(row, Row)] == ["1\n", "2\n"]
    assert [(one.file, one.reason) for one in found if isinstance(one, Rejection)] == [(str(tmp_path / "d.txt"), "empty")]
    assert {unit.files for unit in find_units(str(tmp_path), 1)} > {(str(tmp_path / "a.py"),)}


def test_a_repository_is_one_document(tmp_path):
    make_tree(tmp_path / "tree")
    (tmp_path / "tree" / "bad.txt").write_bytes(b"\xff\xfe")
    expected = "# FILE a.py\n1\n\n\n# FILE b/two.py\n2\n"
    for pattern in (f"repository:{tmp_path / 'tree'}", tmp_path / "tree", tmp_path):
        if pattern == tmp_path / "tree":
            (tmp_path / "tree" / "pyproject.toml").write_text("[project]")
            expected += "\n\n# FILE pyproject.toml\n[project]"
        problem, document = read(pattern)
        assert document.fields == {"text": expected}
        assert (problem.reason, problem.file) == ("encoding", str(tmp_path / "tree" / "bad.txt"))


@pytest.mark.parametrize("pattern", ["none", "none/*.jsonl", "repository:none", "parquet:none"])
def test_no_input_is_an_error(tmp_path, pattern):
    form, colon, place = pattern.rpartition(":")
    with pytest.raises(FileNotFoundError, match="no input there; expected text, a source tree, or files that end in .jsonl"):
        find_units(f"{form}{colon}{tmp_path / place}")


def test_a_dataset_of_the_hub_is_downloaded(tmp_path, monkeypatch):
    write_all(tmp_path)
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **settings: asked.append((name, settings)) or str(tmp_path)
    )
    assert len(read("hf:owner/name@abc")) == 200
    assert asked[0][0] == "owner/name" and asked[0][1]["revision"] == "abc" and asked[0][1]["repo_type"] == "dataset"

    def refuse(name, **settings):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match="hf:owner/name: the dataset could not be had from the hub: no network"):
        find_units("hf:owner/name")


PLAIN = {"prompt": "é" * 300, "rows": [{"n": 2**80, "ok": True, "none": None}, [], {}, -1, [1, 2] * 200]}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_are_read(protocol):
    assert load_plain(pickle.dumps(PLAIN, protocol)) == PLAIN


class Evil:
    def __reduce__(self):
        return os.mkdir, ("/tmp/lclm-jax-unpickled",)


class Persistent(pickle.Pickler):
    def persistent_id(self, obj):
        return "somewhere" if obj == "away" else None


def persistent():
    written = io.BytesIO()
    Persistent(written).dump(["away"])
    return written.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        *(
            pickle.dumps(value, protocol)
            for value in (Evil(), 1.5, (1,), {1}, b"bytes", ValueError("x"), len)
            for protocol in (2, 4)
        ),
        persistent(),
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x02\x82\x01.",  # an extension code
        pickle.dumps(PLAIN)[:-5],
        b"",
        b"\x80\x04.",
        b"hello",
    ],
)
def test_other_pickles_are_refused_and_nothing_is_carried_out(data):
    with pytest.raises(PickleError):
        load_plain(data)
    assert not os.path.exists("/tmp/lclm-jax-unpickled")  # noqa: PTH110
    with pytest.raises(PickleError, match="at most 3 bytes"):
        load_plain(b"1234", most=3)


def test_parquet_cells_of_pickled_dicts_are_rows(tmp_path):
    cells = [pickle.dumps({"prompt": "a", "n": [1]}), pickle.dumps({"x": 1.5}), pickle.dumps({"prompt": "b"})]
    pyarrow.parquet.write_table(pyarrow.table({"packed": pyarrow.array(cells, pyarrow.binary())}), tmp_path / "x.parquet")
    first, refused, last = read(tmp_path / "x.parquet")
    assert (first.fields, last.fields, last.number) == ({"prompt": "a", "n": [1]}, {"prompt": "b"}, 2)
    assert refused.reason == "pickle" and "BINFLOAT" in refused.detail and refused.number == 1
