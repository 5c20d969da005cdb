"""Programs of full size, compiled for slices that are not present; skipped without libtpu.

Each takes seconds. The training step takes minutes: `make capacity-report` compiles it, and fails
if its figures grew.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed: pip install -e '.[capacity]'",
    ),
]
GIB = 2**30
MILLION = ("--set", "model.compression.ratio=16", "--context", "1048576")


@pytest.fixture
def measure(tmp_path):
    """Return `measure(slice, job, *arguments)`: exit status and figures of launch.capacity.

    It runs without the XLA flags of this process.
    """

    def run(target, job, *arguments):
        figures = tmp_path / "figures.json"
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        command = [
            sys.executable,
            "-m",
            "launch.capacity",
            "--config",
            "configs/lclm_0p6b_4b_16x.py",
            "--slice",
            target,
            "--job",
            job,
        ]
        done = subprocess.run(
            [*command, "--json", figures, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode in (0, 3), done.stderr
        return done.returncode, json.loads(figures.read_text(encoding="utf-8"))

    return run


def test_a_million_tokens_on_one_v6e(measure):
    """The cache is neither copied nor gathered; for a kernel, that of one layer is."""
    status, decode = measure("v6e:1x1", "decode", *MILLION)
    assert status == 0 and decode["temp_bytes"] < 0.25 * GIB and decode["peak_bytes"] < 17 * GIB
    status, prefill = measure("v6e:1x1", "prefill", *MILLION)
    assert status == 0 and prefill["temp_bytes"] < 1.4 * GIB and prefill["peak_bytes"] < 18.5 * GIB
    assert prefill["cache"] == decode["cache"] == 2**16 + 2304 and prefill["chunk"] == 4096
    status, compress = measure("v6e:1x1", "compress")
    assert status == 0 and compress["peak_bytes"] < 1.5 * GIB


@pytest.mark.parametrize("mesh", ["tensor=4", "context=4"])
def test_a_million_tokens_on_four_v5e(measure, mesh):
    status, figures = measure(
        "v5e:2x2", "decode", *MILLION, "--set", "mesh.fsdp=1", "--set", f"mesh.{mesh}"
    )
    assert status == 0 and figures["peak_bytes"] < 4.5 * GIB
    assert figures["collective_bytes"] < 0.01 * GIB, "a token's activations, never a cache"


def test_a_million_tokens_do_not_fit_one_v5e(measure):
    status, figures = measure("v5e:1x1", "decode", *MILLION)
    assert status == 3 and not figures["fits"]
    assert figures["peak_bytes"] > figures["hbm_bytes"]


def test_a_training_step_of_a_miniature(measure):
    """Weights are gathered in bfloat16 and gradients reduced once.

    The activations of a miniature weigh more than those of a model.
    """
    tower = {"width": 512, "layers": 2, "kv_heads": 4, "heads": 4, "mlp": 1024, "vocab": 8192}
    towers = [
        f"model.{name}.{key}={value}"
        for name in ("encoder", "decoder")
        for key, value in tower.items()
    ]
    batch = ["data.batch_rows=16", "data.row_positions=2048", "data.row_windows=2"]
    status, figures = measure(
        "v5e:4x4", "train", *(part for setting in (*towers, *batch) for part in ("--set", setting))
    )
    assert status == 0 and figures["matmul_flops"] <= 1.2 * figures["model_flops"]
    assert figures["collective_bytes"] <= 0.85 * figures["fsdp_budget_bytes"]
    assert (
        sum(
            collective["bytes"]
            for collective in figures["collectives"]
            if collective["type"] == "f32"
        )
        < 0.01 * figures["collective_bytes"]
    )
    assert figures["peak_bytes"] < 0.1 * GIB
