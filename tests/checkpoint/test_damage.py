"""Damaged checkpoints: named, set aside, and never read or overwritten."""

import shutil
import subprocess
import types

import pytest

from lclm_jax.checkpoint import streaming
from lclm_jax.checkpoint.steps import (
    CheckpointError,
    Checkpoints,
    add_checksums,
    saved_steps,
    set_aside_damaged,
)
from lclm_jax.files.checksums import CHECKSUMS
from tests.support.checkpoints import assert_equal, files_of, save_three, small

pytestmark = pytest.mark.image


def test_anyone_can_check_a_step(tmp_path):
    save_three(tmp_path)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", CHECKSUMS],
        cwd=tmp_path / "checkpoints" / "3",
        capture_output=True,
    )
    assert done.returncode == 0
    assert done.stdout.count(b": OK\n") == len(files_of(tmp_path / "checkpoints" / "3")) - 1 > 3
    assert set_aside_damaged(tmp_path) == []


@pytest.mark.parametrize("harm", ["a byte", "cut short", "gone", "emptied"])
def test_a_damaged_step_is_named_and_set_aside_and_the_one_before_is_used(tmp_path, harm):
    """Each of its files is damaged in turn."""
    save_three(tmp_path / "good")
    names = [
        path.relative_to(tmp_path / "good")
        for path in files_of(tmp_path / "good" / "checkpoints" / "3")
    ]
    for number, name in enumerate(names):
        directory = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", directory)
        file = directory / name
        data = bytearray(file.read_bytes())
        if harm == "gone" and file.name != CHECKSUMS:
            file.unlink()
        elif harm == "a byte":
            data[len(data) // 2] ^= 1
            file.write_bytes(bytes(data))
        else:
            file.write_bytes(bytes(data[: len(data) // 2 if harm == "cut short" else 0]))
        ((step, reason),) = set_aside_damaged(directory)
        assert step == 3 and (file.name in reason or file.name == CHECKSUMS), reason
        with Checkpoints(directory) as checkpoints:
            assert checkpoints.latest == 2 and checkpoints.metadata(2) == {"step": 2}
            assert_equal(checkpoints.restore(2, {"params": small()[1]})["params"], small(2)[0])
        assert (directory / "damaged" / "3.1").is_dir()


@pytest.mark.parametrize(
    ("damaged", "rest"), [(2, ""), (3, ""), (4, " and 1 more"), (5, " and 2 more")]
)
def test_three_damaged_files_are_named_and_the_others_counted(tmp_path, damaged, rest):
    save_three(tmp_path)
    step = tmp_path / "checkpoints" / "3"
    files = [file for file in files_of(step) if file.name != CHECKSUMS][:damaged]
    for file in files:
        file.unlink()
    ((_, reason),) = set_aside_damaged(tmp_path)
    listed = reason.removesuffix(rest).split(", ")
    assert reason.endswith(rest) and len(listed) == min(damaged, 3)
    assert set(listed) <= {f"{file.name} is missing" for file in files}


def test_two_damaged_steps_are_set_aside_and_never_overwritten(tmp_path):
    save_three(tmp_path)
    for step in (2, 3):
        files_of(tmp_path / "checkpoints" / str(step))[0].write_bytes(b"?")
    assert [step for step, _ in set_aside_damaged(tmp_path)] == [3, 2]
    save_three(tmp_path)
    files_of(tmp_path / "checkpoints" / "3")[0].write_bytes(b"?")
    assert [step for step, _ in set_aside_damaged(tmp_path)] == [3]
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["2.1", "3.1", "3.2"]


def test_an_unreadable_step_without_checksums_says_what_to_do(tmp_path):
    """Its process was killed between the last byte and the checksums."""
    save_three(tmp_path)
    step = tmp_path / "checkpoints" / "3"
    (step / CHECKSUMS).unlink()
    assert set_aside_damaged(tmp_path) == []
    for file in files_of(step):
        if "d" in file.parts[-2:]:
            file.write_bytes(file.read_bytes()[:-8])
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(
            CheckpointError,
            match=r"checkpoints/3 cannot be read: .*move it away to continue from the step before",
        ),
    ):
        checkpoints.restore(3, {"params": small()[1]})


def test_parts_that_nobody_joined_are_no_checkpoint(tmp_path, monkeypatch):
    """A save that leaves them fails; of an earlier version, the step is set aside."""
    save_three(tmp_path)
    manifest = tmp_path / "checkpoints" / "3" / "params" / "manifest.ocdbt"
    (manifest.parents[1] / CHECKSUMS).unlink()
    manifest.unlink()
    assert set_aside_damaged(tmp_path) == [(3, "the parts of its params were not joined")]
    assert saved_steps(tmp_path / "checkpoints") == [2, 1]
    monkeypatch.setattr(streaming, "WILDCARDS", "")
    with (
        pytest.raises(CheckpointError, match="parts of its params were not joined"),
        Checkpoints(tmp_path / "[x]", keep=1) as checkpoints,
    ):
        checkpoints.save(1, {"params": small()[0]}, {})
        checkpoints.wait()


def test_checksums_that_a_killed_process_did_not_write_are_made(tmp_path):
    save_three(tmp_path)
    listed = [tmp_path / "checkpoints" / str(step) / CHECKSUMS for step in (1, 2, 3)]
    before = [file.read_text(encoding="utf-8") for file in listed]
    for file in listed[1:]:
        file.unlink()
    assert add_checksums(tmp_path) == [3, 2]
    assert [file.read_text(encoding="utf-8") for file in listed] == before and add_checksums(
        tmp_path
    ) == []


def test_trees_that_are_not_whole_are_named(tmp_path, monkeypatch):
    save_three(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        metadata = types.SimpleNamespace(metadata={"params": None})
        monkeypatch.setattr(checkpoints._steps, "checkpointables_metadata", lambda step: metadata)
        with pytest.raises(CheckpointError, match=r"3 cannot be read: its params are not whole;"):
            checkpoints.restore(3, {"params": small()[1]})


@pytest.mark.parametrize("error", [OSError, ValueError, KeyError])
def test_what_storage_raises_is_named_with_its_step(tmp_path, monkeypatch, error):
    save_three(tmp_path)

    def fail(step, abstract):
        raise error("torn")

    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._steps, "load_checkpointables", fail)
        with pytest.raises(CheckpointError, match=r"checkpoints/3 cannot be read: .?torn.?; move"):
            checkpoints.restore(3, {"params": small()[1]})
