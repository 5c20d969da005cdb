"""A store with several processes, processes that are killed, and a disk that is full."""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lclm_jax.checkpoint.model_files import save_model
from lclm_jax.inference.language_model import load
from lclm_jax.inference.store import Store, StoreError
from lclm_jax.inference.store.locks import writing
from lclm_jax.inference.store.objects import Objects
from tests.support.paths import ROOT
from tests.support.prose import PROSE

TEXT = PROSE[:1200]
KILLS = 4
MAX_SECONDS = 120


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model_config, noisy, tokenizer):
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, model_config, tokenizer, noisy)
    return directory


@pytest.fixture
def store(tmp_path, checkpoint):
    return Store(tmp_path / "store", load(checkpoint))


@pytest.fixture
def start(store, checkpoint):
    """`start(seed, count)` starts a process that adds documents; it is ready when this returns."""
    processes = []

    def start_writer(*arguments):
        command = [sys.executable, "-m", "tests.support.store_writer", checkpoint, store.directory]
        process = subprocess.Popen(
            [*map(str, [*command, *arguments])],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": ""},
            encoding="utf-8",
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start_writer
    for process in processes:
        process.kill()
        process.wait()


def check_whole(store):
    """Every document is read, with latents for its text."""
    assert store.verify() == []
    for entry in store.ls():
        latents = Store(store.directory, store.model).get(entry.name)
        assert len(latents.vectors) == entry.latents and len(latents.text) == entry.characters


def test_processes_write_and_read_side_by_side(store, start):
    with ThreadPoolExecutor() as pool:
        writers = list(pool.map(lambda seed: start(seed, 25), range(2)))
        while any(writer.poll() is None for writer in writers):
            for entry in store.ls():
                latents = Store(store.directory, store.model).get(entry.name)
                assert len(latents.vectors) == latents.entry.latents
            time.sleep(0.05)
    assert [writer.stdout.read() for writer in writers] == ["done\n"] * 2
    check_whole(store)
    assert len(store.ls()) == 7


def test_a_killed_process_leaves_whole_documents(store, start):
    rng = random.Random(0)
    for seed in range(KILLS):
        writer = start(seed, 1000)
        time.sleep(rng.uniform(0, 1.5))
        writer.send_signal(signal.SIGKILL)
        writer.wait(MAX_SECONDS)
        check_whole(store)
    store.gc()
    check_whole(store)
    assert len(store.ls()) > 3 and store.gc().unfinished == 0


class Killed(BaseException):
    """The end of a process."""


def test_wherever_a_process_ends_what_was_there_stays(store, monkeypatch):
    """The process ends before every single write of an update in turn."""
    store.add_text("prose", TEXT[:400])
    original = Objects.write
    for writes in range(1000):
        left = [writes]

        def write(self, values, left=left):
            for key, value in values.items():
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                original(self, {key: value})

        monkeypatch.setattr(Objects, "write", write)
        try:
            store.add_text("prose", TEXT)
        except Killed:
            fresh = Store(store.directory, store.model)
            assert fresh.verify() == [] and fresh["prose"].text == TEXT[:400]
            assert len(fresh["prose"].vectors) == fresh["prose"].entry.latents
            fresh.gc()
            continue
        break
    assert writes > 20 and store["prose"].text == TEXT


def test_a_full_disk_is_named_and_costs_nothing(store, start):
    store.add_text("document 0", TEXT)
    writer = start(0, 3, 1000)  # windows are smaller, texts are larger
    lines = writer.stdout.read().splitlines()
    assert len(lines) > 1 and lines[-1] == "done"
    message = f"cannot write in {store.directory}: File too large; free some space"
    assert all(message in line for line in lines[:-1])
    check_whole(store)
    assert store["document 0"].text == TEXT


def test_nothing_is_cleaned_up_beside_a_writer(store):
    with (
        writing(store.directory),
        writing(store.directory),
        pytest.raises(StoreError, match="is being written"),
    ):
        store.gc()
    store.gc()
