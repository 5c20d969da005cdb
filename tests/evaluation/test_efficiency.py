"""Seconds to the first token and peak memory of a tiny model."""

import dataclasses
import json

import pytest

from lclm_jax.config import ConfigError
from lclm_jax.evaluation import efficiency
from lclm_jax.evaluation.efficiency import Case, EfficiencySettings, measure_efficiency
from lclm_jax.evaluation.first_token import random_tokens, time_first_token
from lclm_jax.evaluation.views import View
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.progress import without_progress

LATENTS, TEXT = View("latents", 4), View("text")
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5 bytes\nand more"


@pytest.fixture(scope="module")
def model(model_config, params, tokenizer):
    return LanguageModel(model_config, params, tokenizer)


@pytest.fixture
def settings(model):
    return EfficiencySettings.for_model(model, (80, 33), (LATENTS, TEXT), repeats=2)


@pytest.fixture
def rounds(monkeypatch):
    """The view and the length of every round so far."""
    read = []

    def time_round(model, view, context, *arguments, **settings):
        read.append((view.label, len(context)))
        return time_first_token(model, view, context, *arguments, **settings)

    monkeypatch.setattr(efficiency, "time_first_token", time_round)
    return read


def measure(model, settings, file):
    return measure_efficiency(model, settings, file, without_progress)


def test_a_row_for_every_view_of_every_length(model, settings, rounds, tmp_path):
    file = tmp_path / "new" / "efficiency.jsonl"
    rows = measure(model, settings, file)
    cases = [("latents 4x", 80), ("latents 4x", 33), ("text", 80), ("text", 33)]
    assert [(row["view"], row["length"]) for row in rows] == cases
    for row in rows:
        parts = row["compress_seconds"] + row["prefill_seconds"]
        assert row["first_token_seconds"] == pytest.approx(parts) and row["prefill_seconds"] > 0
        assert row["standard_deviation"] >= 0 and row["median_seconds"] > 0
        assert row["peak_bytes"] > 0 and row["peak_is_exact"]
        assert row["failure"] is None
        assert (row["device"], row["source"]) == ("cpu", "measured")
        assert (row["repeats"], row["warm_ups"], row["question_tokens"]) == (2, 1, 62)
    assert [row["windows_at_once"] for row in rows] == [16, 16, None, None]
    assert [row["compress_seconds"] > 0 for row in rows] == [True, True, False, False]
    assert rounds[::3] == [cases[1], cases[0], cases[3], cases[2]], "few positions come first"
    written = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert sorted(map(str, written)) == sorted(map(str, rows))


def test_rows_of_the_file_are_not_measured_again(model, settings, rounds, tmp_path):
    file = tmp_path / "efficiency.jsonl"
    first = measure(model, settings, file)
    rounds.clear()
    assert measure(model, settings, file) == first and rounds == []

    longer = dataclasses.replace(settings, lengths=(33, 48))
    rows = measure(model, longer, file)
    assert {length for _, length in rounds} == {48} and rows[0] == first[1]
    rounds.clear()
    measure(model, dataclasses.replace(settings, views=(LATENTS,), warm_ups=0), file)
    assert len(rounds) == 2 * 2, "another protocol is another row"
    rounds.clear()
    measure(model, dataclasses.replace(settings, views=(TEXT,), windows_at_once=3), file)
    assert rounds == [], "text has no windows"

    last = file.read_text(encoding="utf-8").splitlines()[-1]
    file.write_text(file.read_text(encoding="utf-8")[:-5], encoding="utf-8")
    measure(model, dataclasses.replace(settings, views=(LATENTS,), warm_ups=0), file)
    length = json.loads(last)["length"]
    assert rounds == [("latents 4x", length)] * 2, "its line was cut off"


def test_rows_of_other_shapes_are_measured(model, settings, rounds, tmp_path):
    file = tmp_path / "efficiency.jsonl"
    settings = dataclasses.replace(settings, views=(TEXT,), lengths=(33,))
    measure(model, settings, file)
    rounds.clear()
    decoder = dataclasses.replace(model.config.decoder, rope_theta=1e4)
    config = dataclasses.replace(model.config, decoder=decoder)
    measure(LanguageModel(config, model.params, model.tokenizer), settings, file)
    assert len(rounds) == 3


@pytest.mark.parametrize("error", [RuntimeError(OUT_OF_MEMORY), MemoryError()])
def test_a_context_without_enough_memory_has_the_reason(
    error, model, settings, monkeypatch, tmp_path
):
    def time_round(model, view, context, *arguments, **settings):
        if view == TEXT and len(context) == 33:
            raise error
        return time_first_token(model, view, context, *arguments, **settings)

    monkeypatch.setattr(efficiency, "time_first_token", time_round)
    rows = measure(model, settings, tmp_path / "efficiency.jsonl")
    assert [row["failure"] is None for row in rows] == [True, True, True, False]
    reason = str(error).partition("\n")[0] or "MemoryError"
    assert rows[3]["failure"] == reason and rows[3]["first_token_seconds"] is None
    assert measure(model, settings, tmp_path / "efficiency.jsonl") == rows


def test_other_errors_are_raised(model, settings, monkeypatch, tmp_path):
    def time_round(*_, **__):
        raise RuntimeError("INTERNAL")

    monkeypatch.setattr(efficiency, "time_first_token", time_round)
    with pytest.raises(RuntimeError, match="INTERNAL"):
        measure(model, settings, tmp_path / "efficiency.jsonl")


def test_a_context_beyond_the_decoders_positions_has_the_reason(model, settings, rounds, tmp_path):
    limit = model.config.decoder.max_positions
    settings = dataclasses.replace(
        settings, lengths=(33, limit), views=(TEXT,), warm_ups=0, repeats=1
    )
    short, long = measure(model, settings, tmp_path / "efficiency.jsonl")
    assert short["failure"] is None and short["standard_deviation"] is None
    assert f"up to {limit} positions, got {limit + 62} + 1" in long["failure"]
    assert long["first_token_seconds"] is long["peak_bytes"] is None
    assert rounds == [("text", 33)]


@pytest.mark.parametrize("view", [LATENTS, TEXT])
def test_positions_are_those_of_the_prompt(view, model, settings):
    context, question = (random_tokens(model.config, count) for count in (77, 62))
    first = time_first_token(model, view, context, question, windows_at_once=3)
    assert first.state.lengths == [Case(view, 77).positions(model.config, settings)]
    assert first.seconds == first.compress_seconds + first.prefill_seconds


def test_windows_of_a_pass(model, encoded):
    context, question = (random_tokens(model.config, count) for count in (16 * 23, 5))
    for windows_at_once in (3, 16, 20):
        time_first_token(model, LATENTS, context, question, windows_at_once=windows_at_once)
    assert encoded == [*[3] * 7, 1, 1, 16, 4, *[1] * 3, 20, *[1] * 3]


def test_an_upper_bound_of_the_peak_is_marked(model, settings, monkeypatch, tmp_path):
    """The peak of a device grows only."""
    peaks = iter([100, 200, 200, 200])
    monkeypatch.setattr(efficiency, "peak_memory", lambda _: next(peaks))
    monkeypatch.setattr(efficiency, "read_peak", lambda _: next(peaks))
    settings = dataclasses.replace(settings, lengths=(33,), warm_ups=0, repeats=1)
    rows = measure(model, settings, tmp_path / "efficiency.jsonl")
    assert [(row["peak_bytes"], row["peak_is_exact"]) for row in rows] == [
        (200, True),
        (200, False),
    ]


def test_settings(model):
    paper = EfficiencySettings((4096,), (TEXT,))
    assert (paper.warm_ups, paper.repeats, paper.windows_at_once) == (20, 30, 128)
    here = EfficiencySettings.for_model(model, [4096], [TEXT], repeats=None, warm_ups=7)
    assert (here.warm_ups, here.repeats, here.windows_at_once) == (7, 3, 16)
    with pytest.raises(ConfigError, match="of the views latents and text, got first 4x"):
        EfficiencySettings((4096,), (TEXT, View("first", 4)))
    with pytest.raises(ConfigError, match="repeats must be an integer"):
        EfficiencySettings((4096,), (TEXT,), repeats=0)
