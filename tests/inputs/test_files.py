"""Input files as rows: the same rows for any unit size, and damage reported by name."""

import gzip
import io
import json
import os
import pickle
import pickletools
import sys
from pathlib import Path

import huggingface_hub
import msgpack
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.data.inputs import files
from lclm_jax.data.inputs.files import InputRow, Rejection, read_unit
from lclm_jax.data.inputs.pickles import PickleError, load_plain
from lclm_jax.data.inputs.units import find_units
from lclm_jax.errors import UserError

pytestmark = pytest.mark.newest

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
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(ROWS), directory / "d.parquet", row_group_size=7
    )
    write_records(
        directory / "e.arrayrecord",
        [msgpack.packb(row) for row in ROWS[:20]] + [json.dumps(row).encode() for row in ROWS[20:]],
    )


def read(pattern, size=1 << 20):
    return [row for unit in find_units(str(pattern), size) for row in read_unit(unit)]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet", "e.arrayrecord"]
)
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_every_format_gives_back_its_rows_in_units_of_any_size(tmp_path, name, size):
    write_all(tmp_path)
    rows = read(tmp_path / name, size)
    assert [row.fields for row in rows] == ROWS
    assert [row.number for row in rows] == list(range(40))
    assert {row.file for row in rows} == {str(tmp_path / name)}


def test_a_directory_gives_its_data_files_in_order_and_a_glob_what_it_matches(tmp_path):
    write_all(tmp_path)
    (tmp_path / "README.md").write_text("not data", encoding="utf-8")
    *rows, page = read(tmp_path)
    assert [row.fields for row in rows] == ROWS * 5
    assert (page.file, page.reason) == (str(tmp_path / "README.md"), "other format")
    assert [row.file[-9:] for row in read(tmp_path / "[ad].*")] == [
        str(tmp_path / "a.jsonl")[-9:]
    ] * 40 + ["d.parquet"] * 40
    *rows, records, table, page = read(f"jsonl:{tmp_path}")
    assert len(rows) == 120
    assert {result.reason for result in (records, table, page)} == {"other format"}


def test_a_glob_gives_a_file_once_and_no_binary_one(tmp_path):
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    write_all(tmp_path / "tree" / "sub")
    (tmp_path / "tree" / "x.png").write_bytes(b"\x89PNG\0")
    for pattern in ("**", "*"):
        *rows, image = read(tmp_path / "tree" / pattern)
        assert len(rows) == 200 and all(isinstance(row, InputRow) for row in rows)
        assert (image.file, image.reason) == (str(tmp_path / "tree" / "x.png"), "not text")
    (tmp_path / "x1.jsonl").write_text('{"a": "by the glob"}', encoding="utf-8")
    (tmp_path / "x[1].jsonl").write_text('{"a": "by its name"}', encoding="utf-8")
    assert [row.fields for row in read(tmp_path / "x[1].jsonl")] == [{"a": "by its name"}]


@pytest.mark.parametrize(
    ("name", "library"), [("c.jsonl.zst", "zstandard"), ("d.parquet", "pyarrow")]
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, name, library):
    write_all(tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"needs {library}: pip install 'lclm_jax\[data\]'"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (b' {"a": 1}', {"a": 1}),
        (b"[1]", "json"),
        (b"\xff\xfe", "encoding"),
        (msgpack.packb({b"a": 1}), "encoding"),
    ],
)
def test_records_of_other_shapes(tmp_path, record, expected):
    write_records(tmp_path / "x.arrayrecord", [record, b'{"b": 2}'])
    first, second = read(tmp_path / "x.arrayrecord")
    assert (
        first.fields if isinstance(first, InputRow) else first.reason
    ) == expected and second.fields == {"b": 2}


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(
        st.one_of(
            st.just(""), st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=2)
        ),
        max_size=8,
    ),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    size=st.integers(1, 60),
)
def test_a_line_belongs_to_the_unit_in_which_it_begins(tmp_path_factory, lines, end, last, size):
    file = tmp_path_factory.mktemp("lines") / "x.jsonl"
    texts = [
        json.dumps(line, ensure_ascii=False) if isinstance(line, dict) else line for line in lines
    ]
    file.write_bytes((end.join(texts) + (end if last else "")).encode("utf-8", "surrogatepass"))
    expected = [(i, line) for i, line in enumerate(lines) if isinstance(line, dict)]
    results = read(file, size)
    assert [(row.number, row.fields) for row in results if isinstance(row, InputRow)] == [
        (i, line) for i, line in expected if not _surrogate(line)
    ]
    if results and results[-1].number == 0 and not expected:
        assert results.pop().reason == "empty"
    assert [row.number for row in results if isinstance(row, Rejection)] == [
        i for i, line in expected if _surrogate(line)
    ]


def _surrogate(line):
    return any(0xD800 <= ord(letter) < 0xE000 for letter in json.dumps(line, ensure_ascii=False))


def test_a_unit_of_lines_knows_its_first_number_without_reading_what_lies_before(tmp_path):
    file = tmp_path / "x.txt"
    file.write_bytes(LINES)
    *_, unit = units = find_units(f"jsonl:{file}", 300)
    assert len(units) > 3
    whole = list(read_unit(unit))
    file.write_bytes(b"\n" * (unit.start - 1) + LINES[unit.start - 1 :])
    assert list(read_unit(unit)) == whole and whole[-1] == InputRow(str(file), 39, ROWS[39])


def test_a_number_of_too_many_digits_costs_one_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": ' + "9" * 5000 + '}\n{"a": 1}\n', encoding="utf-8")
    refused, row = read(tmp_path / "x.jsonl")
    assert (refused.reason, row.fields) == ("json", {"a": 1})


def test_bad_lines_are_named_and_the_others_still_come(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 30)
    bad = [
        b'{"a": 1}',
        b"{broken",
        b"[1]",
        b'{"a": "\xff"}',
        b"",
        b'{"a": "' + b"x" * 50 + b'"}',
        b'{"a": 2}',
    ]
    bad += [b'{"a": "' + b"x" * 21 + b'"}', b'{"a": "' + b"x" * 22 + b'"}', b'{"a": 3}']
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(bad) + b"\n")
    results = read(tmp_path / "x.jsonl")
    assert [
        (result.number, result.fields if isinstance(result, InputRow) else result.reason)
        for result in results
    ] == [
        (0, {"a": 1}),
        (1, "json"),
        (2, "json"),
        (3, "encoding"),
        (5, "too long"),
        (6, {"a": 2}),
        (7, {"a": "x" * 21}),
        (8, "too long"),
        (9, {"a": 3}),
    ]
    assert all(result.file == str(tmp_path / "x.jsonl") for result in results)


@pytest.mark.parametrize("name", ["b.jsonl.gz", "c.jsonl.zst", "d.parquet", "e.arrayrecord"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_a_truncated_file_is_one_rejection_after_what_can_be_read(tmp_path, name, kept):
    write_all(tmp_path)
    file = tmp_path / name
    data = file.read_bytes()
    file.write_bytes(data[: max(1, int(len(data) * kept))])
    *rows, last = read(file)
    assert last.reason == "corrupt" and last.file == str(file)
    whole = [row for row in rows if isinstance(row, InputRow)]
    assert [row.fields for row in whole] == ROWS[: len(whole)]
    assert len(rows) - len(whole) <= 1, "at most one line is cut in two"
    if kept == 0.9 and name.endswith(("gz", "zst")):
        assert len(whole) > 10


@pytest.mark.parametrize("name", ["b.jsonl.gz", "c.jsonl.zst", "d.parquet", "e.arrayrecord"])
def test_a_damaged_file_never_raises(tmp_path, name):
    write_all(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    for place in range(0, len(data), max(1, len(data) // 25)):
        (tmp_path / name).write_bytes(
            data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        )
        assert all(isinstance(result, (InputRow, Rejection)) for result in read(tmp_path / name))


def test_what_comes_before_a_damaged_frame_is_kept(tmp_path):
    good = zstandard.compress(LINES)
    (tmp_path / "x.jsonl.zst").write_bytes(good + good[:20] + b"damaged" + good[27:])
    *rows, last = read(tmp_path / "x.jsonl.zst")
    assert [row.fields for row in rows] == ROWS and (last.number, last.reason) == (40, "corrupt")


def make_tree(directory):
    for name, text in {
        "b/two.py": "2\n",
        "a.py": "1\n",
        ".hidden": "no",
        "__pycache__/x.py": "no",
        "c.bin": "a\0b",
        "d.txt": " ",
        "e.pdf": "%PDF",
        ".venv/setup.py": "no",
        "node_modules/package.json": "no",
    }.items():
        (directory / name).parent.mkdir(exist_ok=True, parents=True)
        (directory / name).write_text(text, encoding="utf-8")
    outside = directory.with_name("outside")
    (outside / "project").mkdir(parents=True)
    (outside / "project" / "setup.py").write_text("no", encoding="utf-8")
    for name, target in {
        "loop": directory,
        "linked": outside / "project",
        "secret.py": outside / "project" / "setup.py",
    }.items():
        (directory / name).symlink_to(target)


UNREAD = {
    "c.bin": "not text",
    "e.pdf": "not text",
    "linked": "link",
    "loop": "link",
    "node_modules": "skipped",
    "secret.py": "link",
}


def test_a_source_tree_gives_every_text_file(tmp_path):
    tree = tmp_path / "tree"
    make_tree(tree)
    (tree / "crlf.txt").write_bytes(b"1\r\n2")
    (tree / "inside.txt").symlink_to(tree / "b" / "two.py")
    results = read(tree)
    assert [row.fields["text"] for row in results if isinstance(row, InputRow)] == [
        "1\n",
        "2\n",
        "1\r\n2",
        "2\n",
    ]
    named = {
        Path(result.file).name: result.reason for result in results if isinstance(result, Rejection)
    }
    assert named == UNREAD | {"d.txt": "empty"}
    assert {unit.files for unit in find_units(str(tree), 1)} > {(str(tree / "a.py"),)}


def test_small_texts_share_a_unit_and_too_long_ones_are_refused(tmp_path, monkeypatch):
    for name, length in {"a": 4, "b": 4, "c": 4, "d": 50, "e": 1}.items():
        (tmp_path / f"{name}.txt").write_text("x" * length, encoding="utf-8")
    units = find_units(str(tmp_path), 10)
    assert [[file[-5] for file in unit.files] for unit in units] == [
        ["a", "b"],
        ["c"],
        ["d"],
        ["e"],
    ]
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 49)
    assert [
        (result.file[-5], result.reason)
        for result in read(tmp_path)
        if isinstance(result, Rejection)
    ] == [("d", "too long")]


def test_a_repository_is_one_document(tmp_path):
    make_tree(tmp_path / "tree")
    (tmp_path / "tree" / "bad.txt").write_bytes(b"\xff\xfd")
    expected = "# FILE a.py\n1\n\n\n# FILE b/two.py\n2\n"
    for pattern in (f"repository:{tmp_path / 'tree'}", tmp_path / "tree", tmp_path / "[t]*"):
        if pattern == tmp_path / "tree":
            (tmp_path / "tree" / "pyproject.toml").write_text("[project]", encoding="utf-8")
            expected += "\n\n# FILE pyproject.toml\n[project]"
        *problems, document = read(pattern)
        assert document.fields == {"text": expected}
        named = {Path(result.file).name: result.reason for result in problems}
        assert named == UNREAD | {"bad.txt": "encoding"}


def test_projects_of_a_directory_are_documents_of_their_own(tmp_path):
    for name in ("one/go.mod", "two/setup.py", "two/in.py", "plain/x.py", "y.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert [
        (row.file.removeprefix(f"{tmp_path}/"), row.fields["text"]) for row in read(tmp_path)
    ] == [
        ("one", "# FILE go.mod\none/go.mod"),
        ("two", "# FILE in.py\ntwo/in.py\n\n# FILE setup.py\ntwo/setup.py"),
        ("plain/x.py", "plain/x.py"),
        ("y.txt", "y.txt"),
    ]


@pytest.mark.parametrize("pattern", ["none", "none/*.jsonl", "repository:none", "parquet:none"])
def test_no_input_is_an_error(tmp_path, pattern):
    form, colon, place = pattern.rpartition(":")
    with pytest.raises(
        FileNotFoundError,
        match="no input there; expected text, a source tree, or files that end in .jsonl",
    ):
        find_units(f"{form}{colon}{tmp_path / place}")


def test_a_dataset_of_the_hub_is_downloaded(tmp_path, monkeypatch):
    blobs, snapshot, asked = tmp_path / "blobs", tmp_path / "snapshot", []
    blobs.mkdir()
    snapshot.mkdir()
    write_all(blobs)
    for blob in blobs.iterdir():  # as the hub's cache does
        (snapshot / blob.name).symlink_to(blob)
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **settings: asked.append((name, settings)) or str(snapshot),
    )
    assert len(read("hf:owner/name@abc")) == 200
    assert (
        asked[0][0] == "owner/name"
        and asked[0][1]["revision"] == "abc"
        and asked[0][1]["repo_type"] == "dataset"
    )

    def refuse(name, **settings):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(
        FileNotFoundError,
        match="hf:owner/name: the dataset could not be downloaded from the hub: no network",
    ):
        find_units("hf:owner/name")


SHARED = ["shared"]
PLAIN = {
    "prompt": "é" * 300,
    "twice": [SHARED, SHARED],
    "rows": [{"n": 2**80, "ok": True, "none": None}, [], {}, -1, [1, 2] * 200],
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_are_read(protocol):
    data = pickle.dumps(PLAIN, protocol)
    assert load_plain(data) == load_plain(pickletools.optimize(data)) == PLAIN


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
        b"\x80\x02]r\xff\xff\xff\x00.",  # has the unpickler make room for millions of values
        b"]p99999999999999999999\n.",
        b"\x80\x04\x95" + b"\xff" * 8 + b"}.",  # a frame longer than memory
        b"g99999999999999999999\n.",
    ],
)
def test_other_pickles_are_refused_and_nothing_is_carried_out(data):
    with pytest.raises(PickleError):
        load_plain(data)
    assert not os.path.exists("/tmp/lclm-jax-unpickled")  # noqa: PTH110
    with pytest.raises(PickleError, match="at most 3 bytes"):
        load_plain(b"1234", max_bytes=3)


def test_a_value_that_holds_itself_or_grows_without_end_is_refused():
    circle: list = ["a"]
    circle.append(circle)
    named: dict = {}
    named["self"] = [named]
    doubled: list = ["text"]
    for _ in range(60):
        doubled = [doubled, doubled]
    for value in (circle, named, doubled):
        with pytest.raises(PickleError, match="hold themselves"):
            load_plain(pickle.dumps(value))
    shared = {"role": "system", "content": "Answer in one word."}
    assert load_plain(pickle.dumps([shared] * 200)) == [shared] * 200


def test_parquet_cells_of_pickled_dicts_are_rows(tmp_path):
    cells = [
        pickle.dumps({"prompt": "a", "n": [1]}),
        pickle.dumps({"x": 1.5}),
        pickle.dumps({"prompt": "b"}),
    ]
    pyarrow.parquet.write_table(
        pyarrow.table({"packed": pyarrow.array(cells, pyarrow.binary())}), tmp_path / "x.parquet"
    )
    first, refused, last = read(tmp_path / "x.parquet")
    assert (first.fields, last.fields, last.number) == (
        {"prompt": "a", "n": [1]},
        {"prompt": "b"},
        2,
    )
    assert refused.reason == "pickle" and "BINFLOAT" in refused.detail and refused.number == 1


def test_a_parquet_cell_is_the_row_only_if_it_is_pickled_and_alone(tmp_path):
    packed = pyarrow.array(
        [pickle.dumps({"a": 1}), pickle.dumps({1: 2}), b"\x00raw", None], pyarrow.binary()
    )
    for name, other, expected in [
        (
            "alone",
            [None] * 4,
            [
                {"a": 1},
                {"p": {1: 2}, "o": None},
                {"p": b"\x00raw", "o": None},
                {"p": None, "o": None},
            ],
        ),
        (
            "struct",
            [None, {"s": 1}, None, {"s": 1}],
            [{"a": 1}, {"p": {1: 2}, "o": {"s": 1}}, None, {"p": None, "o": {"s": 1}}],
        ),
    ]:
        pyarrow.parquet.write_table(
            pyarrow.table({"p": packed, "o": other}), tmp_path / f"{name}.parquet"
        )
        for row, fields in zip(read(tmp_path / f"{name}.parquet"), expected, strict=True):
            assert fields is None or row.fields == fields


def test_a_parquet_row_that_is_not_utf8_is_one_rejection(tmp_path):
    raw = pyarrow.array([b"one", b"\xff", b"three"], pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(3, *raw.buffers()[1:])
    pyarrow.parquet.write_table(pyarrow.table({"t": text}), tmp_path / "x.parquet")
    first, refused, last = read(tmp_path / "x.parquet")
    assert (first.fields, last.fields, last.number) == ({"t": "one"}, {"t": "three"}, 2)
    assert (refused.reason, refused.number) == ("encoding", 1)
