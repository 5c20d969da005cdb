"""Eight fake CPU devices, checked array types, and small models and tokenizers for every test."""

import os
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs here are compiled once and run once, so what counts is how soon they are compiled.
# Without XLA's fusion emitters that takes a third of the time; a later jaxlib cannot do without.
EMITTERS = " --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0" + EMITTERS
)
os.environ["LCLM_JAX_CHECK_TYPES"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["LCLM_JAX_CACHE"] = "off"
if "PYTEST_XDIST_WORKER" in os.environ:
    # It holds for this process; in those that tests start, other packages would write warnings.
    os.environ.pop("PYTHONWARNDEFAULTENCODING", None)

import dataclasses
import shutil
import signal
import sys
from pathlib import Path

import jax
import pytest

from convert.from_hf import from_hf
from lclm_jax.cli import run as run_command
from lclm_jax.config import (
    CompressionConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    ParameterGroup,
    RunConfig,
    StageConfig,
    Stream,
    TransformerConfig,
)
from lclm_jax.data.loading import PackedBatches, StageData
from lclm_jax.data.rows.raw_examples import example_text
from lclm_jax.data.synthetic.corpus import train_tokenizer
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.distributed import sharding
from lclm_jax.inference.compressor import Compressor
from lclm_jax.model.params import init_params
from tests.support.paths import GOLDEN, MODELS
from tests.support.prose import PROSE
from tests.support.records import with_noise, write_sources

# Compiled programs are kept for the next run of the tests, a directory for each worker, because
# JAX writes its cache without a lock. The key of a program is everything it was compiled from, so
# a change of the code compiles anew. Processes that tests start do not use it.
PROGRAMS = Path(__file__).parents[1] / "runs" / "tests"
SECONDS_WORTH_KEEPING = 0.3
# A compiled program takes several memory maps, and beyond the kernel's limit for a process (65,530)
# XLA ends it with a segmentation fault. One file of tests makes up to 8,000.
MAX_MEMORY_MAPS = 20_000
MEMORY_MAPS = Path("/proc/self/maps")
if os.environ.get("LCLM_TEST_CACHE") != "off":
    jax.config.update(
        "jax_compilation_cache_dir", str(PROGRAMS / os.environ.get("PYTEST_XDIST_WORKER", "main"))
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS_WORTH_KEEPING)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

FACTS = "Ada likes pears. Ben likes figs. Cy likes plums."
CHAT = {
    "messages": [
        {"role": "user", "content": [{"context": FACTS}, {"text": " Who likes figs?"}]},
        {"role": "assistant", "content": "Ben"},
    ]
}


@pytest.fixture(autouse=True)
def traced_anew():
    """Clears what JAX has traced, so that under `make mutants` every test reaches its functions."""
    if os.environ.get("MUTANT_UNDER_TEST"):
        jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Drop compiled programs after a file of tests once they take many memory maps."""
    yield
    if MEMORY_MAPS.exists() and len(MEMORY_MAPS.read_bytes().splitlines()) > MAX_MEMORY_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Return `published(name)`: copies the published checkpoint of a golden case.

    It has the shared towers and the case's own files.
    """

    def copy(name: str = "c01_mean_bi_mlp_r16") -> Path:
        directory = tmp_path_factory.mktemp("published") / name
        shutil.copytree(GOLDEN / "base", directory)
        return Path(shutil.copytree(GOLDEN / "cases" / name, directory, dirs_exist_ok=True))

    return copy


@pytest.fixture
def command(monkeypatch):
    """`command(module, *arguments)` is the exit status of `python -m module arguments`."""

    def status(module, *arguments) -> int:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        interrupts = signal.getsignal(signal.SIGINT)
        try:
            run_command(module.main)
        except SystemExit as stop:
            return int(stop.code or 0)
        finally:
            signal.signal(signal.SIGINT, interrupts)
        return 0

    return status


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([PROSE, example_text(CHAT)], vocab=512)


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    encoder = TransformerConfig(
        vocab=512, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=32
    )
    decoder = TransformerConfig(
        vocab=512, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=64, rope_theta=5e6
    )
    return ModelConfig(
        encoder, decoder, CompressionConfig(ratio=4, window=16), dtype="float32", remat="none"
    )


@pytest.fixture(scope="session")
def one_device():
    return sharding.one_device()


@pytest.fixture(scope="session")
def params(model_config, one_device):
    return init_params(model_config, one_device, seed=0)


@pytest.fixture(scope="session")
def noisy(params):
    return with_noise(params)


@pytest.fixture
def encoded(monkeypatch):
    """The numbers of windows of the encoder passes so far."""
    counts = []
    original = Compressor._encode_pass

    def encode(self, windows, size):
        counts.append(len(windows))
        return original(self, windows, size)

    monkeypatch.setattr(Compressor, "_encode_pass", encode)
    return counts


@pytest.fixture(scope="session")
def lookup(tmp_path_factory) -> Path:
    """The small model of this repository, which answers questions about pairs of words."""
    directory = tmp_path_factory.mktemp("lookup") / "model"
    from_hf(MODELS / "small", directory)
    return directory


@pytest.fixture(scope="session")
def sources(tmp_path_factory, tokenizer) -> Path:
    """A data directory with a few prepared examples of every kind and the tokenizer."""
    directory = tmp_path_factory.mktemp("data")
    passages = [PROSE[start : start + 400] for start in range(0, 20_000, 400)]
    rows = {"docs": ("code", [{"text": text} for text in passages]), "tasks": ("chat", [CHAT] * 20)}
    write_sources(directory, tokenizer, rows)
    return directory


@pytest.fixture
def config(config_once, tmp_path) -> Config:
    """A run of two short stages, in a directory of its own."""
    return dataclasses.replace(
        config_once, run=dataclasses.replace(config_once.run, directory=str(tmp_path / "run"))
    )


@pytest.fixture(scope="session")
def config_once(model_config, sources) -> Config:
    streams = (
        Stream("reconstruction", "docs", 0.5),
        Stream("interleaved", "docs", 0.3),
        Stream("sft", "tasks", 0.2),
    )
    frozen = (
        ParameterGroup("adapter/.*", 1e-3),
        ParameterGroup("encoder/.*", None),
        ParameterGroup("decoder/.*", None),
    )
    everything = (ParameterGroup("adapter/.*", 1e-3), ParameterGroup("(encoder|decoder)/.*", 1e-3))
    return Config(
        model=model_config,
        stages=(
            StageConfig("adapter", 4, frozen, streams, warmup_steps=1),
            StageConfig("all", 4, everything, streams, warmup_steps=1),
        ),
        data=DataConfig(
            directory=str(sources),
            batch_rows=8,
            row_positions=96,
            row_windows=4,
            packing_lookahead=40,
            request_wordings=1,
            crop_length=(24, 60),
            reconstruction_length=(8, 24),
            min_segment_length=8,
        ),
        mesh=MeshConfig(data=1, fsdp=1, tensor=1),
        run=RunConfig(save_every=2, log_every=1, validate_every=0, loss_chunk=256),
    )


@pytest.fixture(scope="session")
def one_batch(config_once, tokenizer):
    """The first global batch of the second stage."""
    return next(
        iter(PackedBatches(StageData(config_once, config_once.stages[1], tokenizer).mix_streams()))
    )
