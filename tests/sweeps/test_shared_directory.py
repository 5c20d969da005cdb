"""Files that many machines write: created by one of them, replaced whole, never half written."""

import errno
import os
import resource
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lclm_jax.files import DirectoryError
from lclm_jax.sweeps.workers import shared_directory

ROUNDS = 40
CREATORS = 8


def files(directory: Path) -> list[str]:
    """Return the names in a directory, hidden ones, too."""
    return sorted(path.name for path in directory.iterdir())


def test_of_many_creators_one_wins_and_the_file_is_its_own(tmp_path):
    barrier = threading.Barrier(CREATORS)

    def create(creator: int) -> list[bool]:
        wins = []
        for number in range(ROUNDS):
            barrier.wait()
            wins.append(shared_directory.create(tmp_path / f"{number}", f"{creator}" * 100))
        return wins

    with ThreadPoolExecutor(CREATORS) as pool:
        wins = list(pool.map(create, range(CREATORS)))
    for number in range(ROUNDS):
        (winner,) = [creator for creator in range(CREATORS) if wins[creator][number]]
        assert shared_directory.read(tmp_path / f"{number}") == f"{winner}" * 100
    assert len(files(tmp_path)) == ROUNDS


def test_a_file_is_never_empty_while_it_is_created(tmp_path):
    for number in range(ROUNDS):
        path, texts = tmp_path / f"{number}", []
        reader = threading.Thread(target=lambda path=path, texts=texts: read_until(path, texts))
        reader.start()
        shared_directory.create(path, "whole")
        reader.join()
        assert set(texts) <= {None, "whole"}


def read_until(path, texts: list):
    while not texts or texts[-1] is None:
        texts.append(shared_directory.read(path))


def test_what_exists_is_left_alone_by_create_and_replaced_by_replace(tmp_path):
    path = tmp_path / "file"
    assert shared_directory.create(path, "first")
    assert not shared_directory.create(path, "second")
    assert shared_directory.read(path) == "first"
    shared_directory.replace(path, "third ä")
    assert shared_directory.read(path) == "third ä"
    assert files(tmp_path) == ["file"]


def test_a_link_whose_first_reply_was_lost_was_made(tmp_path, monkeypatch):
    link = os.link

    def link_and_lose_the_reply(*paths):
        link(*paths)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", link_and_lose_the_reply)
    assert shared_directory.create(tmp_path / "file", "text")
    with pytest.raises(FileExistsError):
        link(tmp_path / "file", tmp_path / "file")


@pytest.fixture
def full_disk():
    """No file can be longer than ten bytes, so that longer ones are half written."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_an_error_that_changes_nothing(tmp_path, full_disk):
    shared_directory.create(tmp_path / "old", "old")
    for write, name in ((shared_directory.create, "new"), (shared_directory.replace, "old")):
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / name, "x" * 100)
    assert files(tmp_path) == ["old"] and shared_directory.read(tmp_path / "old") == "old"


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("new", encoding="utf-8")
    failures = [OSError(errno.ESTALE, "Stale file handle")] * 2
    read_text = type(path).read_text

    def read(self, **options):
        if failures:
            raise failures.pop()
        return read_text(self, **options)

    monkeypatch.setattr(type(path), "read_text", read)
    assert shared_directory.read(path) == "new"
    failures.extend([OSError(errno.ESTALE, "Stale file handle")] * 9)
    with pytest.raises(OSError, match="Stale"):
        shared_directory.read(path)


def test_what_is_missing_is_none_and_what_is_unfinished_is_not_listed(tmp_path):
    assert shared_directory.read(tmp_path / "file") is None
    assert shared_directory.names(tmp_path / "directory") == []
    for name in ("b", "a", ".a.0.unfinished"):
        (tmp_path / name).touch()
    assert shared_directory.names(tmp_path) == ["a", "b"]


def test_bytes_that_are_not_text_are_read_as_damaged_text(tmp_path):
    (tmp_path / "file").write_bytes(b"\xff{")
    assert shared_directory.read(tmp_path / "file") == "\ufffd{"


def test_no_directory_is_made_where_a_mount_is_lost(tmp_path):
    shared_directory.make(tmp_path / "cells")
    shared_directory.make(tmp_path / "cells")
    with pytest.raises(DirectoryError, match=r"expected .*/gone to exist.*make or mount it"):
        shared_directory.make(tmp_path / "gone" / "cells")
    with pytest.raises(FileNotFoundError):
        shared_directory.replace(tmp_path / "gone" / "file", "text")
    assert files(tmp_path) == ["cells"]


def test_the_end_of_a_file_is_read_from_a_byte_on(tmp_path):
    path = tmp_path / "log"
    path.write_text("0123456789", encoding="utf-8")
    assert shared_directory.read_end(path, 4, 100) == "456789"
    assert shared_directory.read_end(path, 4, 3) == "789"
    with shared_directory.append(path) as file:
        assert file.tell() == 10
