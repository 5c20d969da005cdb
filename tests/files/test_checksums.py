"""Checksums of a directory: the files they cover and the name of each kind of damage."""

import hashlib

import pytest

from lclm_jax.files.checksums import CHECKSUMS, find_damage, hash_file, write_checksums


def filled(directory):
    """Three files on two levels, with their checksums."""
    (directory / "deep").mkdir()
    for name in ("b", "a", "deep/c"):
        (directory / name).write_bytes(name.encode() * 1000)
    write_checksums(directory)
    return directory


def test_every_file_has_a_line_in_order_but_the_list_itself(tmp_path):
    write_checksums(filled(tmp_path))  # once more: the list is not among the files
    lines = (tmp_path / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    assert lines == [
        f"{hashlib.sha256(name.encode() * 1000).hexdigest()}  {name}"
        for name in ("a", "b", "deep/c")
    ]
    assert hash_file(tmp_path / "a") == lines[0].split()[0]
    assert find_damage(tmp_path) == []


def test_each_damaged_file_is_named_once_with_what_is_wrong(tmp_path):
    filled(tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "deep" / "c").write_bytes(b"deep/c" * 999 + b"deep/d")
    assert find_damage(tmp_path) == ["a is missing", "c is not as it was written"]


def test_several_processes_look_at_every_file_between_them(tmp_path):
    filled(tmp_path)
    for name in ("a", "b", "deep/c"):
        (tmp_path / name).write_bytes(b"")
    assert len(find_damage(tmp_path)) == 3
    parts = [find_damage(tmp_path, share, 2) for share in range(2)]
    assert [[line.split()[0] for line in part] for part in parts] == [["a", "c"], ["b"]]
    assert find_damage(tmp_path, 5, 6) == []


def test_a_list_that_is_none_is_named(tmp_path):
    assert find_damage(tmp_path) == []  # no list: nothing to compare with
    for content, reason in (
        (b"\xff\xfe\xff", f"{CHECKSUMS} is not text"),
        (b"", f"{CHECKSUMS} is not a list of checksums"),
        (b"0123  a\nnothing\n", f"{CHECKSUMS} is not a list of checksums"),
    ):
        (tmp_path / CHECKSUMS).write_bytes(content)
        assert find_damage(tmp_path) == [reason]


@pytest.mark.parametrize("name", ["a  b", " a"])
def test_names_may_have_spaces(tmp_path, name):
    (tmp_path / name).write_bytes(b"1")
    write_checksums(tmp_path)
    assert find_damage(tmp_path) == []
    (tmp_path / name).write_bytes(b"2")
    assert find_damage(tmp_path) == [f"{name} is not as it was written"]
