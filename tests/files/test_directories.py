"""Directories: one writer at a time, atomic creation, and no loss of other files."""

import errno
import fcntl
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tensorstore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lclm_jax.config import ConfigError
from lclm_jax.files.atomic import write_whole
from lclm_jax.files.directories import (
    LOCK,
    DirectoryError,
    check_path,
    check_writable,
    locked,
    new_directory,
)
from tests.support.paths import ROOT

FUZZ = settings(
    max_examples=int(os.environ.get("LCLM_FUZZ", "50")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NAMES = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="/"),
    min_size=1,
    max_size=60,
).filter(lambda name: name not in (".", ".."))


def make(destination, *sources, text="whole"):
    with new_directory(destination, *sources) as directory:
        (directory / "file").write_text(text, encoding="utf-8")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- New directories ---


def test_a_new_directory_appears_whole_and_leaves_nothing_else(tmp_path):
    with new_directory(tmp_path / "deep" / "new") as directory:
        (directory / "file").write_text("whole", encoding="utf-8")
        assert not (tmp_path / "deep" / "new").exists()
    assert names(tmp_path / "deep") == ["new"] and names(tmp_path / "deep" / "new") == ["file"]
    (tmp_path / "plain").mkdir()
    modes = {
        stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "deep/new", tmp_path / "plain")
    }
    assert len(modes) == 1, "others may read it as they may read any directory"


def test_a_users_directory_of_any_name_beside_it_stays(tmp_path):
    for name in ("new.partial", ".new.partial", ".new.abc.partial", ".new.lock", ".new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine", encoding="utf-8")
    before = names(tmp_path)
    make(tmp_path / "new")
    assert names(tmp_path) == sorted([*before, "new"])
    assert all((tmp_path / name / "mine").read_text(encoding="utf-8") == "mine" for name in before)


@pytest.mark.parametrize("kind", ["file", "directory", "empty directory", "link", "broken link"])
def test_what_is_there_is_never_replaced(tmp_path, kind):
    (tmp_path / "other").mkdir()
    place = tmp_path / "new"
    if kind == "file":
        place.write_text("mine", encoding="utf-8")
    elif "link" in kind:
        place.symlink_to(tmp_path / ("nowhere" if "broken" in kind else "other"))
    else:
        place.mkdir()
    if kind == "directory":
        (place / "mine").write_text("mine", encoding="utf-8")
    before = place.lstat().st_ino
    with pytest.raises(FileExistsError, match="new exists; name a new directory"):
        make(place)
    assert place.lstat().st_ino == before and names(tmp_path) == ["new", "other"]


def test_a_directory_that_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(FileExistsError), new_directory(tmp_path / "new") as directory:
        (directory / "file").write_text("whole", encoding="utf-8")
        (tmp_path / "new").mkdir()
    assert names(tmp_path) == ["new"] and names(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("source", "source"),
        ("source", "source/"),
        ("source", "source/new"),
        ("source", "source/a/b/new"),
        ("source", "./a/../source/new"),
        ("source", "link/new"),
        ("link", "source/new"),
        ("source/inner", "source"),
        ("source/inner/../..", "new"),
    ],
)
def test_a_source_that_is_or_holds_or_lies_in_the_destination_is_refused(
    tmp_path, monkeypatch, source, destination
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source" / "inner").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("source")
    with pytest.raises(DirectoryError, match="expected a destination apart from the source"):
        make(destination, source)
    assert names(tmp_path) == ["a", "link", "source"] and names(tmp_path / "source") == ["inner"]


def test_a_source_beside_the_destination_is_read(tmp_path):
    (tmp_path / "new.partial").mkdir()
    make(tmp_path / "new", tmp_path / "new.partial", "owner/repository")
    assert names(tmp_path) == ["new", "new.partial"]


def test_a_parent_that_is_a_file_is_one_error(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for place in ("file/new", "file/deep/new"):
        with pytest.raises(DirectoryError, match=r"cannot make .*file"):
            make(tmp_path / place)


def test_an_interruption_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "new") as directory:
        (directory / "half").write_text("written", encoding="utf-8")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_disk_that_is_full_leaves_nothing_and_is_one_error(tmp_path):
    with (
        pytest.raises(DirectoryError, match=r"cannot make .*new: .*No space left"),
        new_directory(tmp_path / "new") as directory,
    ):
        (directory / "half").write_text("written", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


@pytest.mark.fuzz
@FUZZ
@given(name=NAMES)
def test_a_directory_of_any_printable_name_is_made_and_found(tmp_path_factory, name):
    parent = tmp_path_factory.mktemp("any")
    try:
        make(parent / name)
    except DirectoryError as error:  # longer than the file system takes
        assert "too long" in str(error) and names(parent) == []
        return
    assert (
        names(parent) == [name] and (parent / name / "file").read_text(encoding="utf-8") == "whole"
    )


# --- Paths that checkpoints cannot have ---


@pytest.mark.parametrize(
    "part", ["a\\b", "new\nline", "\x00", "\x7f", "\udcff", "\u2028", "x.__lock"]
)
def test_a_path_that_cannot_hold_a_checkpoint_is_named(part):
    with pytest.raises(ConfigError, match=r"^run\.directory must"):
        check_path(f"/runs/{part}/run", "run.directory")


@pytest.mark.fuzz
@FUZZ
@given(name=NAMES)
def test_a_path_that_is_not_refused_is_opened_by_tensorstore(tmp_path_factory, name):
    place = tmp_path_factory.mktemp("any") / name
    try:
        check_path(place, "run.directory")
        place.mkdir()
    except (ConfigError, OSError) as error:
        assert "\\" in name or name.endswith(".__lock") or "too long" in str(error)
        return
    store = tensorstore.KvStore.open({"driver": "file", "path": f"{place}/"}).result()
    store.write("array", b"1").result()
    assert names(place) == ["array"] and store.read("array").result().value == b"1"


def test_a_bucket_is_not_a_path():
    with pytest.raises(ConfigError, match=r"run\.directory must be a path, got gs://b/run; mount"):
        check_path("gs://b/run", "run.directory")


def test_a_directory_is_tried_before_it_is_needed(tmp_path):
    check_writable(tmp_path)
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("", encoding="utf-8")
    for place in ("file", "nowhere"):
        with pytest.raises(DirectoryError, match=f"cannot write to .*{place}"):
            check_writable(tmp_path / place)


# --- Locks ---

HOLDER = """
import os, sys, time
from lclm_jax.files.directories import locked, new_directory
with {call} as _:
    {then}
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    time.sleep(600)
"""


def hold(call: str, then: str = "pass") -> subprocess.Popen:
    """A process that writes a directory and says so."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(call=call, then=then)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("kind", ["locked", "new_directory"])
def test_a_second_process_is_refused_by_name_until_the_first_is_killed(tmp_path, kind):
    place = tmp_path / "place"
    process = hold(f"{kind}({str(place)!r})")
    take = {"locked": locked, "new_directory": new_directory}[kind]
    host = re.escape(socket.gethostname())
    message = rf"place is being written by process {process.pid} on {host} since 20"
    with pytest.raises(DirectoryError, match=message), take(place):
        pytest.fail("two at once")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with take(place):
        pass
    assert place.is_dir() and not list(tmp_path.rglob(f"*{LOCK}"))


def test_one_process_does_not_take_a_directory_twice(tmp_path):
    with locked(tmp_path):
        with pytest.raises(DirectoryError, match=f"process {os.getpid()} on"), locked(tmp_path):
            pytest.fail("two at once")
        assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass
    assert names(tmp_path) == []


def test_a_lock_is_not_kept_by_the_children_of_a_dead_process(tmp_path):
    """Neither by forked ones, as data workers are, nor by other programs."""
    fork = "os.fork() or (time.sleep(20), os._exit(0))"
    program = "os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', '20')"
    process = hold(f"locked({str(tmp_path)!r})", f"{fork}; {program}")
    process.stdout.close()
    process.kill()
    process.wait()
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_written_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "run"):
        pass
    assert "file system without locks (No locks available)" in caplog.text


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(DirectoryError, match="cannot write to"), locked(tmp_path / "run"):
        pytest.fail("followed")
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "mine"


# --- Small files ---


def test_a_small_file_is_the_old_or_the_new_one(tmp_path, monkeypatch):
    write_whole(tmp_path / "file", "old")

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "file", "new")
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text(encoding="utf-8") == "old"


def test_two_processes_that_write_one_file_do_not_meet(tmp_path, monkeypatch):
    """The second begins and ends while the first is at work."""
    original = os.fsync

    def second(descriptor):
        monkeypatch.setattr(os, "fsync", original)
        write_whole(tmp_path / "file", "second")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", second)
    write_whole(tmp_path / "file", "first")
    assert (
        names(tmp_path) == ["file"] and (tmp_path / "file").read_text(encoding="utf-8") == "first"
    )
