"""The compiler's figures of first tokens, for this machine's devices in place of a TPU slice."""

import dataclasses
import json

import jax
import pytest

from lclm_jax.capacity import efficiency, measure
from lclm_jax.capacity.efficiency import compress_program, estimate_efficiency, prefill_program
from lclm_jax.config import CompressionConfig
from lclm_jax.costs.chips import parse_slice
from lclm_jax.evaluation.efficiency import Case, EfficiencySettings
from lclm_jax.evaluation.views import View
from lclm_jax.progress import without_progress

pytestmark = pytest.mark.newest

ONE_CHIP, TWO_CHIPS = parse_slice("v5e:1x1"), parse_slice("v5e:1x2")
VIEWS = (View("latents", 4), View("latents", 8), View("text"))


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """Slices are this machine's devices; also the programs that are compiled."""
    programs = []

    def measure_program(program):
        programs.append(program)
        return measure.measure_program(program)

    for module in (measure, efficiency):
        monkeypatch.setattr(module, "slice_devices", lambda target: jax.devices()[: target.chips])
    monkeypatch.setattr(efficiency, "measure_program", measure_program)
    efficiency.measure_once.cache_clear()
    return programs


@pytest.fixture
def config(model_config):
    compression = CompressionConfig(ratio=4, window=16, ratios=(8,))
    return dataclasses.replace(model_config, compression=compression)


@pytest.fixture
def settings():
    return EfficiencySettings((64, 600), VIEWS, windows_at_once=32)


def test_rows_of_a_slice(config, settings, compiled, tmp_path):
    file = tmp_path / "efficiency.jsonl"
    rows = estimate_efficiency(config, settings, TWO_CHIPS, file, without_progress)
    assert [(row["view"], row["length"]) for row in rows] == [
        (view.label, length) for view in VIEWS for length in (64, 600)
    ]
    for row in rows:
        assert (row["source"], row["device"], row["failure"]) == ("compiler", "v5e:1x2", None)
        assert 0 < row["least_seconds"] <= row["first_token_seconds"]
        parts = row["compress_seconds"] + row["prefill_seconds"]
        assert row["first_token_seconds"] == pytest.approx(parts)
        assert row["peak_bytes"] > 0 and row["standard_deviation"] is None
        assert "jax" in row["compiler"]
    assert [row["compress_seconds"] > 0 for row in rows] == [True] * 4 + [False] * 2
    assert rows[0]["compress_seconds"] == rows[2]["compress_seconds"]
    assert rows[5]["prefill_seconds"] > rows[4]["prefill_seconds"]
    assert len(compiled) == 6 + 2, "each pass of the encoder once"

    compiled.clear()
    assert estimate_efficiency(config, settings, TWO_CHIPS, file, without_progress) == rows
    assert compiled == [] and len(file.read_text(encoding="utf-8").splitlines()) == 6


def test_programs_are_those_of_the_prompt(config, settings):
    case = Case(View("latents", 8), 600)
    program = prefill_program(config, settings, ONE_CHIP, case)
    assert program.latents == 75
    assert program.prompt.lengths == [case.positions(config, settings)]
    text = prefill_program(config, settings, ONE_CHIP, Case(View("text"), 600))
    assert text.latents == 0 and text.prompt.lengths == [662] and text.prompt.slots.max() == -1

    program, passes = compress_program(config, settings, ONE_CHIP, 600)  # 38 windows
    assert (program.windows_at_once, passes, len(program.calls())) == (32, 2, 1)
    program, passes = compress_program(config, settings, ONE_CHIP, 64)
    assert (program.windows_at_once, passes) == (4, 1)


def test_peaks_contain_the_weights_of_both_towers(config, settings, compiled, tmp_path):
    settings = dataclasses.replace(settings, lengths=(64,))
    latents, _, text = estimate_efficiency(
        config, settings, ONE_CHIP, tmp_path / "efficiency.jsonl", without_progress
    )
    parameters = 4 * measure.count_parameters(config)
    assert latents["peak_bytes"] > parameters and text["peak_bytes"] > parameters


def test_what_does_not_fit_says_so(config, settings, tmp_path):
    chip = dataclasses.replace(ONE_CHIP.chip, memory_bytes=2**20)
    target = dataclasses.replace(ONE_CHIP, chip=chip)
    limit = dataclasses.replace(config.decoder, max_positions=500)
    config = dataclasses.replace(config, decoder=limit)
    settings = dataclasses.replace(settings, views=(View("text"),))
    file = tmp_path / "efficiency.jsonl"
    short, long = estimate_efficiency(config, settings, target, file, without_progress)
    assert "of every chip, which has 0.0" in short["failure"] and short["peak_bytes"] > 2**20
    assert "up to 500 positions, got 662 + 1" in long["failure"]
    assert short["first_token_seconds"] is long["first_token_seconds"] is None
    assert json.loads(file.read_text(encoding="utf-8").splitlines()[0]) == short
