"""Streaming of weights: onto a mesh, from a hub, rounded, and through a killed conversion."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from convert.from_hf import from_hf, read_hf
from convert.hf.mapping import ConversionError, Tensor
from convert.to_hf import round_to, to_hf
from convert.verify.round_trip import compare_tensors
from lclm_jax.checkpoint import streaming
from lclm_jax.checkpoint.steps import Checkpoints, load_params
from lclm_jax.checkpoint.streaming import SavedTree, Streamed
from lclm_jax.config import MeshConfig
from lclm_jax.distributed.sharding import make_mesh
from lclm_jax.model.params import abstract_params, flatten
from tests.support.paths import GOLDEN, ROOT

pytestmark = pytest.mark.newest

UNTIED = GOLDEN / "layouts" / "untied_sharded"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TENSOR = Tensor("decoder", "model.norm.weight", (3,), "decoder/norm/scale", None, "none")


def held(array: np.ndarray) -> Streamed:
    return Streamed(array.shape, array.dtype, lambda start, stop: array[start:stop])


# --- Onto a mesh ---


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (1, 4, 1, 2), (2, 2, 2, 1)])
def test_published_weights_are_read_straight_onto_a_mesh(shape):
    """No device gets more than its part, and together they hold what numpy reads."""
    mesh = make_mesh(MeshConfig(*shape))
    _, expected = read_hf(UNTIED)
    config, params = read_hf(UNTIED, mesh)
    where = flatten(abstract_params(config, mesh))
    for path, array in flatten(params).items():
        assert array.sharding == where[path].sharding, path
        assert np.array_equal(array, flatten(expected)[path]), path
    assert not all(
        array.sharding.is_fully_replicated for array in jax.tree.leaves(params)
    ) or shape == (8, 1, 1, 1)


def test_a_streamed_checkpoint_is_restored_in_another_dtype_onto_a_mesh(tmp_path):
    from_hf(UNTIED, tmp_path / "ours")
    config, expected = read_hf(UNTIED)
    abstract = abstract_params(config, make_mesh(MeshConfig(fsdp=4, tensor=2)), "bfloat16")
    params = load_params(tmp_path / "ours", abstract)
    for path, array in flatten(params).items():
        assert array.sharding == flatten(abstract)[path].sharding, path
        assert np.array_equal(array, flatten(expected)[path].astype(ml_dtypes.bfloat16)), path


# --- Blocks ---


@pytest.mark.parametrize("shape", [(5, 64, 8), (40, 8), (2048,), (3, 4), (7, 3, 5)], ids=str)
def test_blocks_are_small_and_add_up(shape, monkeypatch, tmp_path):
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 1024)
    whole = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    leaf = held(whole)
    blocks = list(leaf.blocks())
    assert np.array_equal(np.concatenate([block for _, block in blocks]), whole)
    assert all(len(block) == 1 or block.nbytes <= 1024 for _, block in blocks)
    assert np.prod(leaf.chunk) * 4 <= 1024
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(0, {"params": {"tower": {"x": leaf}}}, {})
        checkpoints.wait()
        saved = SavedTree(checkpoints.directory / "0" / "params").open("tower/x")
        assert np.array_equal(saved.read().result(), whole)
        assert saved.chunk_layout.read_chunk.shape == leaf.chunk


def test_training_checkpoints_have_a_layer_a_chunk_too(monkeypatch, tmp_path):
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 1 << 16)
    whole = np.random.default_rng(0).normal(size=(6, 128, 128)).astype(np.float32)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(0, {"params": {"x": jax.numpy.asarray(whole)}}, {})
        checkpoints.wait()
        saved = SavedTree(checkpoints.directory / "0" / "params").open("x")
        assert saved.chunk_layout.read_chunk.shape[0] == 1
        assert np.array_equal(saved[4].read().result(), whole[4])


def test_an_error_on_the_way_leaves_no_step(tmp_path):
    def fail(start, stop):
        raise OSError("no such sector")

    with Checkpoints(tmp_path, keep=1) as checkpoints:
        with pytest.raises(Exception, match="no such sector"):
            checkpoints.save(0, {"params": {"x": Streamed((4, 2), np.dtype(np.float32), fail)}}, {})
            checkpoints.wait()
        assert checkpoints.latest is None


# --- Rounding ---


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["F32", "BF16", "F16"])
def test_rounding_between_all_dtypes(dtype, name):
    array = np.array([1.0, -3.140625, 60000.0], dtype)
    assert np.allclose(
        round_to(array, name, TENSOR).astype(np.float64), array.astype(np.float64), rtol=2**-8
    )


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_number_too_large_for_a_dtype_is_named(dtype):
    array = np.array([1.0, 1e6, -2.0], dtype)
    with pytest.raises(
        ConversionError,
        match=r"decoder model.norm.weight reaches .*, too much for F16; choose another --dtype",
    ):
        round_to(array, "F16", TENSOR)
    infinite = np.array([1.0, np.inf, np.nan], dtype)
    assert np.array_equal(
        round_to(infinite, "F16", TENSOR), infinite.astype(np.float16), equal_nan=True
    )


# --- Killed ---

KILLED = """
import os, signal, sys
import convert.hf.files, convert.to_hf, convert.from_hf
from lclm_jax.checkpoint.streaming import SavedTree
kind, left = {kind}, {left}
name = "read" if kind is convert.hf.files.FileTensor else "open"
original = getattr(kind, name)
def counted(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
setattr(kind, name, counted)
{call}
"""


def run_killed(kind: str, left: int, call: str) -> int:
    code = KILLED.format(kind=kind, left=left, call=call)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=False
    ).returncode


@pytest.mark.parametrize("left", [0, 30, 80])
def test_a_killed_conversion_leaves_nothing_that_looks_complete(left, published, tmp_path, caplog):
    source, converted = published(), tmp_path / "ours"
    killed = run_killed(
        "convert.hf.files.FileTensor",
        left,
        f"convert.from_hf.from_hf({str(source)!r}, {str(converted)!r})",
    )
    assert killed == -signal.SIGKILL
    (unfinished,) = tmp_path.glob(".ours.*.partial")
    assert not converted.exists()
    from_hf(source, converted)  # what the killed one left is no obstacle, and is named
    assert f"{unfinished} was never finished" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [unfinished.name, "ours"]
    assert all(line.passed for line in compare_tensors(source, converted))
    back = tmp_path / "back"
    assert (
        run_killed("SavedTree", left, f"convert.to_hf.to_hf({str(converted)!r}, {str(back)!r})")
        == -signal.SIGKILL
    )
    assert not back.exists()
    to_hf(converted, back)
    visible = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert sorted(visible) == ["back", "ours"]


# --- A hub ---


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the Hugging Face hub: the list of a repository's files, and the files."""

    def __init__(self, directory: Path, asked: list[str], *arguments):
        self.directory, self.asked = directory, asked
        super().__init__(*arguments)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        self.asked.append(path)
        files = {
            str(file.relative_to(self.directory)): file
            for file in self.directory.rglob("*")
            if file.is_file()
        }
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if path.startswith("/api/models/someone/lclm") and not name:
            listing = [
                {"rfilename": file, "type": "file", "path": file, "oid": "0", "size": 1}
                for file in files
            ]
            tree = "/tree/" in path
            self.answer(
                json.dumps(
                    listing if tree else {"id": "someone/lclm", "sha": COMMIT, "siblings": listing}
                ).encode(),
                {},
            )
        elif name in files:
            content = files[name].read_bytes()
            self.answer(
                content,
                {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT},
            )
        else:
            self.send_error(404)

    def answer(self, content: bytes, headers: dict[str, str]):
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format, *arguments):
        """The test reads `asked` instead."""


@pytest.fixture
def hub(published):
    """Address and requests of a hub that has someone/lclm."""
    directory = published()
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked, directory
    server.shutdown()


def convert_from(address: str, name: str, destination: Path) -> subprocess.CompletedProcess:
    caches = {
        "HF_HOME": str(destination.parent / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment = {
        **os.environ,
        **caches,
        "HF_ENDPOINT": address,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-m", "convert.from_hf", name, str(destination)]
    return subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", check=False
    )


def test_a_repository_is_downloaded_at_a_commit_and_converted(hub, tmp_path):
    address, asked, directory = hub
    done = convert_from(address, "someone/lclm", tmp_path / "ours")
    assert done.returncode == 0, done.stderr
    provenance = json.loads((tmp_path / "ours" / "provenance.json").read_text(encoding="utf-8"))
    assert (provenance["source"], provenance["revision"]) == ("someone/lclm", COMMIT)
    weights = hashlib.sha256((directory / "decoder" / "model.safetensors").read_bytes()).hexdigest()
    assert provenance["files"]["decoder/model.safetensors"]["sha256"] == weights
    assert all(line.passed for line in compare_tensors(directory, tmp_path / "ours"))
    assert any("model.safetensors" in path for path in asked) and not any(
        "pytorch_model.bin" in path for path in asked
    )


def test_a_repository_that_is_not_there_is_named(hub, tmp_path):
    done = convert_from(hub[0], "someone/else", tmp_path / "ours")
    assert done.returncode == 2
    assert (
        "someone/else: no such directory, and revision main could not be downloaded from the hub"
        in done.stderr
    )
    assert not (tmp_path / "ours").exists()


def test_a_directory_has_no_revision(published, tmp_path):
    with pytest.raises(
        ConversionError, match="is a directory and has no revisions, got --revision v1"
    ):
        from_hf(published(), tmp_path / "ours", revision="v1")
