"""Few programs serve every prompt, and a second process compiles none."""

import json
import os
import subprocess
import sys

import pytest

from lclm_jax.checkpoint.model_files import save_model
from tests.support.paths import ROOT

pytestmark = pytest.mark.image

MOST = 12  # programs for thirty documents and thirty settings


def test_thirty_documents_share_a_handful_of_programs(tmp_path, model_config, noisy, tokenizer):
    save_model(tmp_path / "model", model_config, tokenizer, noisy)

    def run() -> dict:
        arguments = [sys.executable, "-m", "tests.support.programs"]
        arguments += [str(tmp_path / "model"), str(tmp_path / "cache")]
        # One device, as users have: the options that split it into eight are of the other tests.
        environment = {**os.environ, "XLA_FLAGS": "", "LCLM_JAX_CHECK_TYPES": "0"}
        done = subprocess.run(
            arguments, capture_output=True, encoding="utf-8", env=environment, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first, second = run(), run()
    assert first["lengths"][0] < 100 and first["lengths"][1] > 5000, first
    assert 0 < first["compiled"] <= MOST
    assert second["missed"] == 0
