"""Checkpoints: exact restoration on any mesh, and errors of saving and reading."""

import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lclm_jax.checkpoint.model_files import read_model, save_model, write_model_files
from lclm_jax.checkpoint.steps import (
    CheckpointError,
    Checkpoints,
    check_shapes,
    load_params,
    saved_params,
    saved_steps,
)
from lclm_jax.checkpoint.streaming import SavedTree
from lclm_jax.config import ConfigError, MeshConfig
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.distributed.sharding import make_mesh
from lclm_jax.inference.language_model import load
from lclm_jax.model.params import abstract_params
from tests.support.checkpoints import assert_equal, save_three, small
from tests.support.paths import ROOT

pytestmark = pytest.mark.image


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory, model_config, tokenizer, params):
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, model_config, tokenizer, params)
    return directory


def test_trees_and_metadata_come_back(tmp_path):
    (params, abstract), (moments, _) = small(), small(3.0)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest is None
        checkpoints.save(
            4,
            {"params": params, "training": moments},
            {"stage": "sft", "data": {"next": 7, "open": [[1, 2], []]}},
        )
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 4
        assert checkpoints.metadata(4) == {
            "stage": "sft",
            "data": {"next": 7, "open": [[1, 2], []]},
        }
        restored = checkpoints.restore(4, {"params": abstract, "training": abstract})
    assert_equal(restored, {"params": params, "training": moments})


def test_newest_steps_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"params": small(step)[0]}, {})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 3
        for step in (2, 3):
            assert_equal(
                checkpoints.restore(step, {"params": small()[1]})["params"], small(step)[0]
            )
    assert sorted(
        path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()
    ) == ["2", "3"]


def test_each_step_has_its_own_metadata(tmp_path):
    save_three(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert [checkpoints.metadata(step)["step"] for step in (1, 2, 3)] == [1, 2, 3]


def test_saving_a_step_again_replaces_it(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": small(1)[0]}, {})
        checkpoints.save(1, {"params": small(2)[0]}, {})
        checkpoints.wait()
        assert_equal(checkpoints.restore(1, {"params": small()[1]})["params"], small(2)[0])


def test_another_mesh_reads_the_same(saved_model, model_config, params):
    abstract = abstract_params(model_config, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    restored = load_params(saved_model, abstract)
    assert_equal(restored, params)
    assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding == y.sharding, restored, abstract))


def test_eight_devices_save_for_one(tmp_path):
    expected, abstract = small()
    split = NamedSharding(make_mesh(MeshConfig(fsdp=4, tensor=2)), PartitionSpec("fsdp", "tensor"))
    spread = {**expected, "matrix": jax.device_put(expected["matrix"], split)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": spread}, {})
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore(1, {"params": abstract})["params"], expected)


def test_load_a_run_directory(saved_model, model_config, params, tokenizer):
    model = load(saved_model)
    assert model.config == model_config
    assert (
        model.tokenizer.definition == tokenizer.definition
        and model.tokenizer.template == tokenizer.template
    )
    assert_equal(model.params, params)


def test_another_shape_is_refused(saved_model, model_config, one_device):
    """Every array that differs is listed, with both shapes."""
    config = replace(model_config, decoder=replace(model_config.decoder, mlp=48, tied=False))
    with pytest.raises(CheckpointError) as failure:
        load_params(saved_model, abstract_params(config, one_device))
    message = str(failure.value)
    assert "4 arrays differ" in message and "use its own model.json" in message
    for name in ("gate", "up"):
        assert re.search(
            rf"decoder\W+layers\W+mlp\W+{name}\W*: expected \(3, 32, 48\), got \(3, 32, 64\)",
            message,
        )
    assert re.search(
        r"decoder\W+layers\W+mlp\W+down\W*: expected \(3, 48, 32\), got \(3, 64, 32\)", message
    )
    assert re.search(r"head\W*: expected \(512, 32\), got nothing", message)


def test_arrays_of_another_shape_are_listed_up_to_twenty():
    """Those that are missing, those that differ and those that nobody asked for."""

    def tree(**shapes):
        return {"deep": {name: np.zeros(shape) for name, shape in shapes.items()}}

    check_shapes(tree(a=(2,), b=(3, 4)), tree(b=(3, 4), a=(2,)), "here")
    with pytest.raises(CheckpointError) as failure:
        check_shapes(tree(a=(2,), b=(3, 4), c=(5,)), tree(b=(4, 3), c=(5,), d=(1,)), "here")
    assert str(failure.value).splitlines() == [
        "here does not fit the config (3 arrays differ):",
        "  deep/a: expected (2,), got nothing",
        "  deep/b: expected (3, 4), got (4, 3)",
        "  deep/d: not expected, got (1,)",
        "use its own model.json",
    ]
    many = {f"x{i}": (i + 1,) for i in range(25)}
    with pytest.raises(CheckpointError, match=r"\(25 arrays differ\)") as failure:
        check_shapes(tree(**many), tree(), "here")
    assert len(str(failure.value).splitlines()) == 1 + 20 + 1


def test_steps_are_the_numbered_directories_with_the_newest_first(tmp_path):
    assert saved_steps(tmp_path / "none") == []
    for name in ("9", "10", "2", "11.tmp", "damaged"):
        (tmp_path / name).mkdir()
    assert saved_steps(tmp_path) == [10, 9, 2]


def test_what_is_missing_is_named(saved_model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/model\.json: not a checkpoint"):
        load(tmp_path / "nowhere")
    (tmp_path / "model.json").write_text(
        (saved_model / "model.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    with pytest.raises(FileNotFoundError, match=r"tokenizer/tokenizer\.json: no tokenizer here"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="/checkpoints: no saved steps here"):
        load_params(tmp_path, {})
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        load_params(tmp_path, {})


FULL_DISK = """
import resource
import sys

import jax
import numpy as np

from lclm_jax.checkpoint.steps import CheckpointError, Checkpoints

try:
    with Checkpoints(sys.argv[1]) as checkpoints:
        matrix = np.arange(4096, dtype=np.float32).reshape(64, 64)
        first = jax.device_put({"matrix": matrix, "deep": {"count": np.int32(0)}})
        checkpoints.save(1, {"params": first}, {})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        checkpoints.save(2, {"params": jax.tree.map(lambda x: x + 1, first)}, {})
        checkpoints.wait()
except CheckpointError as error:
    sys.stdout.write(str(error))
"""


def test_a_full_disk_leaves_the_step_before_intact(tmp_path):
    here = ROOT
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=here,
        capture_output=True,
        encoding="utf-8",
    )
    assert "could not write a checkpoint" in done.stdout, done.stderr[-2000:]
    assert "Step 1 before it is intact; free some space" in done.stdout
    expected, abstract = small()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 1
        assert_equal(checkpoints.restore(1, {"params": abstract})["params"], expected)
        checkpoints.save(2, {"params": expected}, {})
        checkpoints.wait()
        assert checkpoints.latest == 2


def test_another_model_or_tokenizer_does_not_overwrite_a_run(
    tmp_path, model_config, params, tokenizer
):
    save_model(tmp_path, model_config, tokenizer, params)
    before = (
        (tmp_path / "model.json").read_text(encoding="utf-8"),
        (tmp_path / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"),
    )
    wider = replace(model_config, decoder=replace(model_config.decoder, mlp=48))
    with pytest.raises(CheckpointError, match=r"model.json differs in decoder"):
        write_model_files(tmp_path, wider, tokenizer)
    with pytest.raises(CheckpointError, match="another tokenizer"):
        write_model_files(tmp_path, model_config, Tokenizer(tokenizer.definition + "\n"))
    assert before == (
        (tmp_path / "model.json").read_text(encoding="utf-8"),
        (tmp_path / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"),
    )
    write_model_files(tmp_path, replace(model_config, remat="full"), tokenizer)
    write_model_files(tmp_path, replace(model_config, dtype="bfloat16"), tokenizer)


def test_reading_a_run_leaves_a_save_in_progress_alone(tmp_path, model_config, tokenizer, params):
    save_model(tmp_path, model_config, tokenizer, params)
    unfinished = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with Checkpoints(tmp_path) as reading:
        assert reading.latest == 0
    assert unfinished.exists()
    with Checkpoints(tmp_path, keep=1) as writing:
        assert writing.latest == 0
    deadline = time.monotonic() + 10  # Orbax removes it in the background
    while unfinished.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not unfinished.exists()


def test_what_is_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=4, always=(3,)) as checkpoints:
        for step in range(1, 11):
            checkpoints.save(step, {"params": small(step)[0]}, {})
    assert saved_steps(tmp_path / "checkpoints") == [10, 9, 8, 4, 3]


def test_a_failed_save_is_seen_without_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lclm_jax.checkpoint.steps.write_checksums",
        lambda _: (_ for _ in ()).throw(OSError("full")),
    )
    with (
        pytest.raises(CheckpointError, match=r"could not write a checkpoint to .*: full\. Step 1"),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.check()
        checkpoints.save(1, {"params": small()[0]}, {})
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            checkpoints.check()
            time.sleep(0.01)


# --- Paths ---


@pytest.mark.parametrize(
    "name", ["lr[1e-4]", "[x]", "a*b", "a?b", "a[!b]", "{a,b}", "a%20b", "a#b|c", "日本 "]
)
def test_a_step_comes_back_from_a_directory_of_any_name(tmp_path, name):
    """Beside one that its name, taken as a pattern, matches as well."""
    expected, abstract = small()
    for place, value in (("axb", 1), ("x", 1), (name, 0)):
        with Checkpoints(tmp_path / place, keep=1) as checkpoints:
            checkpoints.save(1, {"params": small(value)[0]}, {})
    with Checkpoints(tmp_path / name) as checkpoints:
        assert_equal(checkpoints.restore(1, {"params": abstract})["params"], expected)
        saved = SavedTree(checkpoints.directory / "1" / "params")
        np.testing.assert_array_equal(saved.open("matrix").read().result(), expected["matrix"])


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "x.__lock"])
def test_a_path_that_cannot_be_read_back_is_refused_before_anything_is_made(
    tmp_path, name, model_config, tokenizer, params
):
    with pytest.raises(ConfigError, match="the directory of a checkpoint must"):
        save_model(tmp_path / name, model_config, tokenizer, params)
    with pytest.raises(ConfigError, match="the directory of a checkpoint must"):
        Checkpoints(tmp_path / name, keep=1)
    assert not list(tmp_path.iterdir())


def test_the_neighbour_whose_name_is_escaped_is_not_read(tmp_path):
    for name, value in (("a b", 1), ("a%20b", 2)):
        with Checkpoints(tmp_path / name, keep=1) as checkpoints:
            checkpoints.save(0, {"params": small(value)[0]}, {})
    saved = SavedTree(tmp_path / "a%20b" / "checkpoints" / "0" / "params")
    np.testing.assert_array_equal(saved.open("matrix").read().result(), small(2)[0]["matrix"])


# --- What must not be lost ---


def test_a_step_before_the_newest_is_not_saved(tmp_path):
    save_three(tmp_path)
    with (
        pytest.raises(CheckpointError, match="has step 3, so that step 2 would never be read"),
        Checkpoints(tmp_path, keep=9) as checkpoints,
    ):
        checkpoints.save(2, {"params": small(9)[0]}, {})
    assert saved_steps(tmp_path / "checkpoints") == [3, 2, 1]


def test_a_directory_that_cannot_be_written_fails_at_once(tmp_path, monkeypatch):
    """Orbax would wait for a directory that never comes."""
    save_three(tmp_path)
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        shutil.move(tmp_path / "checkpoints", tmp_path / "moved")
        start = time.monotonic()
        with pytest.raises(CheckpointError, match="cannot write to .*checkpoints: No such file"):
            checkpoints.save(4, {"params": small()[0]}, {})
        assert time.monotonic() < start + 5
        shutil.move(tmp_path / "moved", tmp_path / "checkpoints")
        checkpoints.save(4, {"params": small()[0]}, {})
    assert saved_steps(tmp_path / "checkpoints") == [4, 3, 2, 1]


def test_a_first_save_that_fails_has_no_step_to_fall_back_on(tmp_path):
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        shutil.rmtree(tmp_path / "checkpoints")
        with pytest.raises(CheckpointError, match=r"none before it.*set run\.directory"):
            checkpoints.save(1, {"params": small()[0]}, {})


@pytest.mark.parametrize("name", ["config.json", "tokenizer"])
def test_a_directory_of_another_kind_is_not_made_a_run(tmp_path, model_config, tokenizer, name):
    """A published model's, for instance, whose config.json would be written over."""
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"holds {name} and no model.json"):
        write_model_files(tmp_path, model_config, tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_model_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "model.json").write_bytes(b"\xff{")
    with pytest.raises(CheckpointError, match=r"model\.json is not a model's"):
        read_model(tmp_path)


def test_all_files_of_another_kind_are_listed(tmp_path, model_config, tokenizer):
    for name in ("config.json", "tokenizer"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"holds config\.json, tokenizer and no model\.json"):
        write_model_files(tmp_path, model_config, tokenizer)


def test_an_earlier_step_is_read_where_it_is_asked_for(tmp_path):
    abstract = small()[1]
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, {"params": small(step)[0]}, {})
    assert_equal(load_params(tmp_path, abstract, 2), small(2)[0])
    assert_equal(load_params(tmp_path, abstract), small(4)[0])
    for step, number in ((2, 2), (None, 4)):
        saved = saved_params(tmp_path, abstract, step)
        assert saved.open("deep/count")[...].read().result() == number
    with pytest.raises(CheckpointError, match="does not fit the config"):
        saved_params(tmp_path, {"other": abstract["matrix"]}, 2)


def test_an_error_names_the_steps_and_trees_that_are_there(tmp_path):
    abstract = small()[1]
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        with pytest.raises(CheckpointError, match=r"checkpoints has no step 7; it holds none$"):
            checkpoints.restore(7, {"params": abstract})
        checkpoints.save(2, {"params": small()[0], "more": small()[0]}, {})
        checkpoints.save(4, {"params": small()[0]}, {})
        checkpoints.wait()
        with pytest.raises(CheckpointError, match=r"checkpoints has no step 7; it holds \d, \d$"):
            checkpoints.restore(7, {"params": abstract})
        with pytest.raises(
            CheckpointError,
            match=r"checkpoints/2 holds (more, params|params, more) and no training: "
            "it is not a training run's$",
        ):
            checkpoints.restore(2, {"training": abstract})
        with pytest.raises(CheckpointError, match=r"checkpoints/2 does not fit the config"):
            checkpoints.restore(2, {"params": {"matrix": abstract["matrix"]}})


@pytest.mark.parametrize("fails", [False, True])
def test_orbax_is_closed_unless_a_save_has_failed(tmp_path, monkeypatch, fails):
    """After a failure it would raise its error again."""

    def fail(*arguments, **options):
        raise OSError("full")

    closed = []
    with Checkpoints(tmp_path) as checkpoints:
        close = checkpoints._steps.close
        monkeypatch.setattr(checkpoints._steps, "close", lambda: closed.append(close()))
        checkpoints.save(1, {"params": small()[0]}, {})
        checkpoints.wait()
        if fails:
            monkeypatch.setattr(checkpoints._steps, "save_checkpointables_async", fail)
            with pytest.raises(CheckpointError, match=r": full\. Step 1 before it is intact"):
                checkpoints.save(2, {"params": small()[0]}, {})
    assert len(closed) == (not fails)
