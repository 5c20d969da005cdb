"""Parity with the PyTorch original, on the checkpoints and cases in tests/data/golden."""

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from convert.from_hf import read_hf
from convert.hf.mapping import ConversionError
from convert.verify.golden import Subject, Tolerance, check, replay
from lclm_jax.data.records import Context, Plain, Span, lay_out
from lclm_jax.data.text.tokenizer import TURN_END, Tokenizer
from lclm_jax.inference.language_model import LanguageModel
from tests.support.paths import GOLDEN

pytestmark = pytest.mark.image

CASES = tuple(sorted(path.name for path in (GOLDEN / "cases").iterdir()))
LAYOUTS = {"bf16_config457": ("bfloat16", True), "untied_sharded": ("float32", False)}
# The arrays of every case, beside a latents_<i> and adapted_<i> for each context and a gradient for
# each parameter.
QUANTITIES = {
    *("empty_latent", "empty_adapted", "hidden_last", "logits", "logsumexp", "argmax", "loss"),
    *(
        "grad_norm_decoder",
        "grad_norm_encoder",
        "grad_norm_adapter",
        "greedy",
        "greedy_logits",
        "greedy_rep1.1",
    ),
}


@dataclass(frozen=True)
class Case:
    """A golden case and our model made from its checkpoint."""

    source: Path

    @cached_property
    def inputs(self) -> dict:
        return json.loads((self.source / "inputs.json").read_text(encoding="utf-8"))

    @cached_property
    def outputs(self) -> dict:
        return dict(np.load(self.source / "outputs.npz"))

    @cached_property
    def model(self) -> LanguageModel:
        return LanguageModel(*read_hf(self.source), Tokenizer.load(self.source / "decoder"))

    @cached_property
    def subject(self) -> Subject:
        tokenizer = self.model.tokenizer
        return Subject.of(
            self.model.config, self.model.params, tokenizer.memory.marker, (tokenizer.id(TURN_END),)
        )


@pytest.fixture(scope="module", params=CASES)
def case(request, published) -> Case:
    return Case(published(request.param))


def test_every_quantity_is_the_originals(case):
    checks = replay(case.source, case.subject)
    assert [result for result in checks if not result.passed] == []
    names = {result.name for result in checks}
    contexts = range(len(case.inputs["memory_token_ids"]))
    assert names >= QUANTITIES | {
        f"{kind}_{i}" for kind in ("latents", "adapted") for i in contexts
    }
    assert names >= {f"gradnorm/{name}" for name in case.inputs["param_grad_norms"]}
    assert ("packed hidden_last" in names) == (case.source / "packed_inputs.json").exists()


def test_a_record_is_laid_out_as_the_originals_prompt(case):
    example = lay_out(as_record(case.inputs), case.model.config, case.model.tokenizer.memory)
    labels = np.array(case.inputs["labels"])
    assert example.tokens.tolist() == case.inputs["input_ids"]
    assert np.array_equal(example.weights[:-1], labels[1:] != -100)
    assert np.array_equal(
        example.targets[:-1][example.weights[:-1] > 0], labels[1:][labels[1:] != -100]
    )


def as_record(values: dict) -> list[Span]:
    """A decoder's token ids and labels as the record they were made of."""
    record: list[Span] = []
    begin = 0
    for (start, end), context in zip(
        values["memory_positions"], values["memory_token_ids"], strict=True
    ):
        record += as_plain(values, begin, start - 1)
        record.append(Context(np.array(context)))
        begin = end + 1
    return record + as_plain(values, begin, len(values["input_ids"]))


def as_plain(values: dict, begin: int, end: int) -> list[Span]:
    return [
        Plain(np.array([values["input_ids"][t]]), values["labels"][t] != -100)
        for t in range(begin, end)
    ]


def test_one_text_at_a_time_has_the_same_latents(case):
    for i, context in enumerate([*case.inputs["memory_token_ids"], []]):
        expected = case.outputs.get(f"adapted_{i}", case.outputs["empty_adapted"])
        latents = case.model.compress_tokens(np.array(context, np.int32)).vectors
        np.testing.assert_allclose(latents, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_file_layouts(name):
    source = GOLDEN / "layouts" / name
    config, params = read_hf(source)
    dtype, tied = LAYOUTS[name]
    assert (config.dtype, config.decoder.tied, "head" in params) == (dtype, tied, not tied)
    assert (config.encoder.rope_theta, config.decoder.rope_theta) == (1e6, 5e6)
    assert {
        result.name: result.passed for result in replay(source, Subject.of(config, params))
    } == {
        "logits": True,
        "latents": True,
    }


# --- The replay itself must be able to fail ---


@pytest.fixture
def layout(tmp_path) -> tuple[Path, Subject]:
    source = Path(shutil.copytree(GOLDEN / "layouts" / "bf16_config457", tmp_path / "layout"))
    return source, Subject.of(*read_hf(source))


def test_a_changed_parameter_fails(layout):
    source, subject = layout
    subject.params["encoder"]["norm"]["scale"] += 0.01
    assert [result.passed for result in replay(source, subject)] == [False, False]


def test_an_unknown_quantity_is_named(layout):
    source, subject = layout
    np.savez(
        source / "outputs.npz",
        **np.load(source / "outputs.npz"),
        entropy=np.zeros(3),
        latents_x=np.zeros(3),
    )
    with pytest.raises(
        ConversionError, match="cannot be replayed: entropy, latents_x; add them to RULES"
    ):
        replay(source, subject)


def test_a_quantity_without_its_inputs_is_named(layout):
    source, subject = layout
    np.savez(source / "outputs.npz", **np.load(source / "outputs.npz"), greedy=np.zeros(3, int))
    with pytest.raises(ConversionError, match="greedy needs 'prompt_input_ids'"):
        replay(source, subject)


def test_missing_files_are_named(tmp_path, layout):
    with pytest.raises(FileNotFoundError, match=r"inputs\.json: no such file"):
        replay(tmp_path, layout[1])
    (layout[0] / "outputs.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"outputs\.npz: no such file; a golden case has"):
        replay(*layout)


@pytest.mark.parametrize(
    "values", [[1.0, np.nan], [1.0], [1.0, 2.1]], ids=["not a number", "another shape", "too far"]
)
def test_what_fails_a_check(values):
    assert not check("x", np.array(values), np.array([1.0, 2.0]), Tolerance()).passed
    assert check("x", np.array([1.0, 2.0001]), np.array([1.0, 2.0]), Tolerance()).passed
