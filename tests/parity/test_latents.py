"""Latents of tokens, against windows, pooling and adapter written in torch."""

import pytest

torch = pytest.importorskip("torch")

import json
import shutil
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from reference import GOLDEN, SETTINGS, Reference, make_tower, publish

from convert.from_hf import read_hf
from lclm_jax.batch import Batch
from lclm_jax.config import ModelConfig
from lclm_jax.data.loading import RowBudget, assemble, fill_row
from lclm_jax.data.records import Context, Plain, Span, lay_out
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.inference.compressor import WINDOWS_AT_ONCE
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.model.lclm import LCLM, apply
from lclm_jax.typing import Params

close = partial(np.testing.assert_allclose, atol=2e-5, rtol=0)
TEXT_TOKENS = 380  # those below are text, not control tokens


def settings(
    ratio: int,
    window: int,
    mask: str = "causal",
    overlap: int = 0,
    pooling: str = "mean",
    **adapter,
) -> dict:
    changed = {
        "compression_ratio": ratio,
        "encoder_window_size": window,
        "encoder_mask_type": mask,
        "boundary_overlap": overlap,
        "pooling": pooling,
    }
    return {**SETTINGS, **changed, **adapter}


AFTER, BEFORE = {"adapter_type": "mlp_attn"}, {"adapter_type": "attn_mlp"}
MLP_CASES = {
    "mean": settings(4, 16),
    "mean-ratio-1": settings(1, 4),
    "mean-one-latent-a-window": settings(8, 8, "bidirectional"),
    "mean-bidirectional": settings(8, 32, "bidirectional"),
    "mean-overlap": settings(4, 16, overlap=5),
    "mean-bidirectional-overlap": settings(4, 16, "bidirectional", overlap=5),
    "mean-overlap-wider-than-window": settings(2, 8, "bidirectional", overlap=19),
    "eos": settings(4, 16, pooling="eos"),
    "eos-bidirectional": settings(2, 12, "bidirectional", pooling="eos"),
    "eos-overlap": settings(4, 16, overlap=6, pooling="eos"),
    "eos-bidirectional-overlap": settings(4, 16, "bidirectional", overlap=3, pooling="eos"),
    "concat": settings(4, 16, pooling="concat"),
    "concat-bidirectional-overlap": settings(3, 12, "bidirectional", overlap=7, pooling="concat"),
}
ATTENTION_CASES = {
    "after": settings(4, 16, **AFTER),
    "after-two-layers": settings(8, 16, "bidirectional", overlap=4, **AFTER, num_adapter_layers=2),
    "after-eos": settings(4, 16, pooling="eos", **AFTER),
    "after-concat": settings(4, 16, pooling="concat", **AFTER),
    "before": settings(4, 16, "bidirectional", **BEFORE),
    "before-two-layers": settings(2, 8, overlap=3, **BEFORE, num_adapter_layers=2),
    "before-eos": settings(4, 16, "bidirectional", overlap=5, pooling="eos", **BEFORE),
}
ALL_CASES = MLP_CASES | ATTENTION_CASES
PACKED_CASES = (
    "mean",
    "mean-bidirectional-overlap",
    "eos-bidirectional-overlap",
    "concat",
    *ATTENTION_CASES,
)


def make_towers(tied: bool = True) -> tuple[torch.nn.Module, torch.nn.Module]:
    common = {"head_dim": 12, "max_position_embeddings": 512}
    decoder = {
        "hidden_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    encoder = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    }
    return (
        make_tower(
            1,
            **common,
            **decoder,
            intermediate_size=64,
            vocab_size=390,
            theta=5e6,
            tie_word_embeddings=tied,
        ),
        make_tower(
            2,
            head=False,
            **common,
            **encoder,
            intermediate_size=48,
            vocab_size=383,
            rms_norm_eps=1e-4,
        ),
    )


@dataclass(frozen=True)
class Case:
    """One published checkpoint as torch and as we read it."""

    reference: Reference
    model: LanguageModel

    @property
    def config(self) -> ModelConfig:
        return self.model.config


def read_case(reference: Reference) -> Case:
    config, params = read_hf(reference.directory)
    tokenizer = Tokenizer.load(reference.directory / "decoder")
    return Case(reference, LanguageModel(replace(config, remat="none"), params, tokenizer))


@pytest.fixture(scope="module", params=ALL_CASES)
def case(request, tmp_path_factory) -> Case:
    directory = tmp_path_factory.mktemp("published") / request.param
    return read_case(publish(directory, *make_towers(), settings=ALL_CASES[request.param]))


def random_tokens(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, TEXT_TOKENS, length).astype(np.int32)


@pytest.mark.parametrize(
    "name",
    [path.name for path in sorted((GOLDEN / "cases").iterdir()) if (path / "adapter").exists()],
)
def test_restatement_equals_the_original(name, tmp_path):
    """The other tests rest on this: the original computed the same from the same checkpoints."""
    shutil.copytree(GOLDEN / "base", tmp_path / name)
    shutil.copytree(GOLDEN / "cases" / name, tmp_path / name, dirs_exist_ok=True)
    reference = Reference(tmp_path / name)
    inputs = json.loads((tmp_path / name / "inputs.json").read_text(encoding="utf-8"))
    outputs = np.load(tmp_path / name / "outputs.npz")
    for i, context in enumerate(inputs["memory_token_ids"]):
        pooled, latents = reference.compress(np.array(context))
        close(pooled, outputs[f"latents_{i}"])
        close(latents, outputs[f"adapted_{i}"])
    close(reference.compress(np.zeros(0, int))[1], outputs["empty_adapted"])
    adapted = [outputs[f"adapted_{i}"] for i in range(len(inputs["memory_token_ids"]))]
    logits = reference.decoder(
        inputs_embeds=reference.embed(inputs["input_ids"], adapted)[None]
    ).logits[0]
    close(logits.detach()[outputs["logit_positions"]], outputs["logits"])


def lengths_of(config: ModelConfig) -> list[int]:
    """Return lengths around every border of groups and windows.

    They fill one window or four, to compile few programs.
    """
    ratio, window = config.compression.ratio, config.compression.window
    return [
        0,
        1,
        ratio,
        min(ratio + 1, window),
        window - 1,
        window,
        2 * window + 1,
        3 * window - 1,
        4 * window,
    ]


def test_latents_of_every_length(case):
    for length in lengths_of(case.config):
        tokens = random_tokens(length, seed=length)
        _, expected = case.reference.compress(tokens)
        close(case.model.compress_tokens(tokens).vectors, expected, err_msg=f"{length} tokens")


@pytest.mark.parametrize("name", ["mean-ratio-1", "eos-overlap", "before-two-layers", "after-eos"])
def test_latents_of_more_windows_than_one_pass_takes(name, tmp_path):
    case = read_case(publish(tmp_path / name, *make_towers(), settings=ALL_CASES[name]))
    tokens = random_tokens(case.config.compression.window * (WINDOWS_AT_ONCE + 3) + 1)
    close(case.model.compress_tokens(tokens).vectors, case.reference.compress(tokens)[1])


@pytest.mark.parametrize("name", ["mean-bidirectional-overlap", "after-eos"])
def test_latents_of_one_model_at_several_ratios(name, tmp_path):
    """Training at several ratios is ours; each ratio means what the published format says."""
    case = read_case(publish(tmp_path / name, *make_towers(), settings=ALL_CASES[name]))
    compression = replace(case.config.compression, ratios=(2, 16))
    model = LanguageModel(
        replace(case.config, compression=compression), case.model.params, case.model.tokenizer
    )
    for ratio in (2, 4, 16):
        tokens = random_tokens(3 * compression.window + 5)
        close(
            model.compress_tokens(tokens, ratio).vectors,
            case.reference.compress(tokens, ratio)[1],
            err_msg=f"ratio {ratio}",
        )


# --- Latents in the decoder: examples packed into one row against each one alone ---


@partial(jax.jit, static_argnames="config")
def run(params: Params, batch: Batch, config: ModelConfig):
    return apply(config, params, apply(config, params, batch), method=LCLM.logits)[0]


def make_records(window: int) -> list[list[Span]]:
    """Return three examples whose contexts share windows with each other and with others."""
    text = [Plain(random_tokens(3, seed=i)) for i in range(4)]
    context = [Context(random_tokens(n, seed=n)) for n in (window // 2, 1, window + 2, 0, 3)]
    return [
        [text[0], context[0], text[1], context[1], text[2]],
        [context[2], text[3]],
        [text[1], context[3], text[0], context[4]],
    ]


@pytest.mark.parametrize("case", PACKED_CASES, indirect=True)
def test_logits_of_packed_examples(case):
    config, memory = case.config, case.model.tokenizer.memory
    records = make_records(config.compression.window)
    examples = [lay_out(record, config, memory) for record in records]
    logits, start = (
        run(
            case.model.params,
            assemble([fill_row(RowBudget.for_model(config, 160, 8), examples)]),
            config,
        ),
        0,
    )
    for record, example in zip(records, examples, strict=True):
        contexts = [span for span in record if isinstance(span, Context)]
        latents = [case.reference.compress(span.tokens)[1].numpy() for span in contexts]
        embedded = case.reference.embed(example.tokens, latents)
        expected = case.reference.decoder(inputs_embeds=embedded[None]).logits[0].detach()
        close(logits[start : start + len(example)], expected)
        start += len(example)
