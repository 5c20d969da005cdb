"""Exported models in transformers: the same logits and the same greedy text."""

import pytest

torch = pytest.importorskip("torch")

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from reference import GOLDEN, Reference, hidden_states, make_tower, publish
from transformers import AutoModel, AutoModelForCausalLM

from convert.from_hf import from_hf
from convert.to_hf import to_hf
from lclm_jax.batch import Places
from lclm_jax.checkpoint.model_files import save_model
from lclm_jax.config import AdapterConfig, CompressionConfig, ModelConfig, TransformerConfig
from lclm_jax.data.records import Context, Plain, Span, lay_out
from lclm_jax.data.text.tokenizer import MEMORY_END, MEMORY_SLOT, MEMORY_START, TURN_END, Tokenizer
from lclm_jax.inference.generation import generate_tokens
from lclm_jax.inference.language_model import LanguageModel, load
from lclm_jax.inference.prompts import Prompt
from lclm_jax.inference.sampling import Sampling
from lclm_jax.model.lclm import LCLM, apply
from lclm_jax.model.params import parameter_shapes, unflatten
from lclm_jax.typing import Params

ATOL = 5e-5
STEPS = 24
MARGIN = 5e-4  # smallest gap between best and second-best token; both sides agree on scores to ATOL
FACTS = (
    "Ada likes pears. Ben likes figs. Cy likes plums, and Dee likes nothing that grows on trees."
)
NEWS = "The quick brown fox jumps over the lazy dog, again and again, until the number 42 comes up."
ENCODER = TransformerConfig(
    383, 24, 2, 3, 1, 12, 48, rope_theta=1e6, norm_eps=1e-5, causal=False, max_positions=512
)
CONFIGS = {
    "tied": ModelConfig(
        ENCODER,
        TransformerConfig(386, 40, 3, 4, 2, 12, 72, rope_theta=5e6, max_positions=512),
        CompressionConfig(ratio=4, window=16, overlap=4),
        dtype="float32",
        remat="none",
    ),
    "untied": ModelConfig(
        ENCODER,
        TransformerConfig(
            401, 48, 2, 6, 3, 10, 64, rope_theta=1e4, norm_eps=1e-4, tied=False, max_positions=512
        ),
        CompressionConfig(ratio=2, window=8, pooling="concat"),
        dtype="float32",
        remat="none",
    ),
    "attention": ModelConfig(
        ENCODER,
        TransformerConfig(390, 40, 2, 4, 1, 12, 64, tied=False, max_positions=512),
        CompressionConfig(ratio=4, window=16, pooling="eos"),
        AdapterConfig("mlp_attn", layers=2),
        dtype="float32",
        remat="none",
    ),
    "llama": ModelConfig(
        TransformerConfig(
            383, 24, 1, 2, 2, 12, 48, qk_norm=False, norm_eps=1e-5, max_positions=512
        ),
        TransformerConfig(
            386, 40, 2, 4, 2, 16, 64, qk_norm=False, rope_theta=1e5, max_positions=512
        ),
        CompressionConfig(ratio=4, window=16),
        dtype="float32",
        remat="none",
    ),
}


# Found by trial: with these seeds no result of the tests hangs on a rounding error
# (`assert_sure_and_varied`).
SEEDS = {"tied": 1, "untied": 3, "attention": 0, "llama": 0}


def random_params(config: ModelConfig, seed: int) -> Params:
    """Large enough that what is read decides what is written; norms around one."""
    random, flat = np.random.default_rng(seed), {}
    for path, shape in parameter_shapes(config).items():
        scale = (
            random.uniform(0.5, 1.5, shape)
            if path.endswith("scale")
            else random.normal(0, 0.3, shape)
        )
        flat[path] = scale.astype(np.float32)
    return unflatten(flat)


@dataclass(frozen=True)
class Exported:
    """Our model, and transformers' reading of what we wrote of it."""

    model: LanguageModel
    reference: Reference


def export(config: ModelConfig, params: Params, directory: Path) -> Exported:
    save_model(directory / "ours", config, Tokenizer.load(GOLDEN / "base" / "decoder"), params)
    to_hf(directory / "ours", directory / "published")
    return Exported(load(directory / "ours"), Reference(directory / "published"))


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request, tmp_path_factory) -> Exported:
    config = CONFIGS[request.param]
    return export(
        config, random_params(config, SEEDS[request.param]), tmp_path_factory.mktemp(request.param)
    )


def random_tokens(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 380, (rows, length)).astype(np.int32)


# --- Weights and tokenizers ---


def test_decoder_logits(exported):
    config, params = exported.model.config, exported.model.params
    tokens = random_tokens(2, 20)
    places = Places(np.ones_like(tokens), np.tile(np.arange(20, dtype=np.int32), (2, 1)))
    nothing = np.zeros((2, 1, config.decoder.width), np.float32)
    hidden, _ = apply(
        config, params, tokens, np.full_like(tokens, -1), nothing, places, method=LCLM.decode
    )
    actual = apply(config, params, hidden, method=LCLM.logits)
    expected = hidden_states(exported.reference.decoder, input_ids=torch.from_numpy(tokens).long())[
        -1
    ]
    np.testing.assert_allclose(actual, expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("length", [0, 1, 7, 50])
def test_latents(exported, length):
    """The exported encoder, adapter and usage settings, read back from the files."""
    tokens = random_tokens(1, length)[0]
    actual, expected = (
        exported.model.compress_tokens(tokens).vectors,
        exported.reference.compress(tokens)[1],
    )
    np.testing.assert_allclose(actual, expected, atol=ATOL, rtol=0)


def test_tokenizers(exported):
    """Text, names of control tokens, and a chat.

    A text that spells a control token differs from transformers, on purpose.
    """
    tokenizer, reference = exported.model.tokenizer, exported.reference.tokenizer
    for text in (FACTS, NEWS, " Who?\n\n  It's 12,345 naïve “quotes” – ünïcödé 日本語 🙂\t"):
        assert tokenizer.encode(text).tolist() == reference.encode(text, add_special_tokens=False)
        assert tokenizer.decode(tokenizer.encode(text)) == reference.decode(reference.encode(text))
    for name in (MEMORY_START, MEMORY_END, MEMORY_SLOT, TURN_END):
        assert reference.encode(f"a{name}b", add_special_tokens=False) == [
            *tokenizer.encode("a").tolist(), tokenizer.id(name), *tokenizer.encode("b").tolist()
        ]  # fmt: skip
    assert (reference.eos_token_id, exported.reference.marker) == (
        tokenizer.id(TURN_END),
        tokenizer.memory.marker,
    )


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_there_and_back(kind, dtype, tmp_path):
    """save_pretrained, from_hf, to_hf and from_pretrained give the same model bit for bit."""
    shape = {
        "kind": kind,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
    }
    shape |= {
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "vocab_size": 390,
        "theta": 3e5,
        "rms_norm_eps": 1e-5,
    }
    towers = [
        make_tower(seed, head=head, tie_word_embeddings=False, **shape).to(dtype)
        for seed, head in ((1, True), (2, False))
    ]
    publish(tmp_path / "source", *towers, max_shard_size="30KB")
    from_hf(tmp_path / "source", tmp_path / "ours")
    to_hf(tmp_path / "ours", tmp_path / "back")
    for part, auto in (("decoder", AutoModelForCausalLM), ("encoder", AutoModel)):
        before, after = (
            auto.from_pretrained(tmp_path / root / part, dtype="auto")
            for root in ("source", "back")
        )
        assert type(after) is type(before) and after.dtype == before.dtype == dtype
        for field in (
            *shape.keys() - {"kind", "theta"},
            "rope_parameters",
            "tie_word_embeddings",
            "max_position_embeddings",
        ):
            assert getattr(after.config, field) == getattr(before.config, field), field
        weights = after.state_dict()
        assert weights.keys() == before.state_dict().keys()
        assert all(
            torch.equal(weights[name], tensor) for name, tensor in before.state_dict().items()
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_export_in_half_precision(dtype, tmp_path):
    """A float32 model exported in fewer bits: transformers reads our numbers rounded to nearest."""
    config = CONFIGS["tied"]
    params = random_params(config, SEEDS["tied"])
    save_model(tmp_path / "ours", config, Tokenizer.load(GOLDEN / "base" / "decoder"), params)
    to_hf(tmp_path / "ours", tmp_path / "published", dtype=dtype)
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path / "published" / "decoder", dtype="auto")
    assert decoder.dtype == getattr(torch, dtype)
    assert torch.equal(
        decoder.model.embed_tokens.weight,
        torch.from_numpy(params["decoder"]["table"]).to(decoder.dtype),
    )
    gate = torch.from_numpy(params["decoder"]["layers"]["mlp"]["gate"][1].T).to(decoder.dtype)
    assert torch.equal(decoder.model.layers[1].mlp.gate_proj.weight, gate)


# --- Greedy generation ---


@dataclass(frozen=True)
class Written:
    """Tokens of every row without the stop token, and the closest decision, by `generate`."""

    rows: list[list[int]]
    margin: float


def generate(
    reference: Reference, prompts: Sequence[torch.Tensor], stop: int | None = None, **settings
) -> Written:
    """Greedy tokens after prompt embeddings [t, D], padded on the left, with the exported settings.

    `stop` replaces the token at which these settings stop.
    """
    length = max(map(len, prompts))
    embedded = torch.stack(
        [torch.nn.functional.pad(prompt, (0, 0, length - len(prompt), 0)) for prompt in prompts]
    )
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    end = reference.decoder.generation_config.eos_token_id if stop is None else stop
    out = reference.decoder.generate(
        inputs_embeds=embedded,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=STEPS,
        output_scores=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        **({} if stop is None else {"eos_token_id": stop}),
        **settings,
    )
    rows, margin = [], np.inf
    for i, row in enumerate(out.sequences.tolist()):
        count = row.index(end) if end in row else len(row)
        rows.append(row[:count])
        for scores in out.scores[: count + 1]:
            best, second = scores[i].topk(2).values.tolist()
            margin = min(margin, best - second)
    return Written(rows, margin)


def assert_sure_and_varied(written: Written):
    """The test means something: the best token is clear of rounding, and not always the same."""
    assert written.margin > MARGIN
    assert all(len(set(row)) > len(row) // 4 for row in written.rows)


def latents_of(model: LanguageModel, text: str) -> np.ndarray:
    return model.compress_tokens(model.tokenizer.encode(text)).vectors


def slots(latents: np.ndarray) -> str:
    return MEMORY_START + MEMORY_SLOT * len(latents) + MEMORY_END


def read_prompt(exported: Exported, text: str, latents: list[np.ndarray]) -> torch.Tensor:
    """A prompt read by transformers' tokenizer, its placeholders replaced by our latents."""
    return exported.reference.embed(
        exported.reference.tokenizer.encode(text, add_special_tokens=False), latents
    )


def test_complete(exported):
    model = exported.model
    facts, news = latents_of(model, FACTS), latents_of(model, NEWS)
    for text, latents, parts in (
        ("Who likes figs?", [], ["Who likes figs?"]),
        (f"{slots(facts)} Who likes figs?", [facts], [model.compress(FACTS), " Who likes figs?"]),
        (
            f"Now: {slots(news)}{slots(facts)}",
            [news, facts],
            ["Now: ", model.compress(NEWS), model.compress(FACTS)],
        ),
    ):
        written = generate(exported.reference, [read_prompt(exported, text, latents)])
        assert_sure_and_varied(written)
        answer = exported.reference.tokenizer.decode(written.rows[0], skip_special_tokens=True)
        assert model.complete(parts, max_tokens=STEPS) == answer


def chat_prompt(exported: Exported) -> tuple[list[dict], torch.Tensor]:
    """A chat with two contexts, for `LanguageModel.chat` and for transformers."""
    contexts = [latents_of(exported.model, FACTS), latents_of(exported.model, NEWS)]
    actual, expected = (
        [
            {"role": "user", "content": f"Read this: {first} Who likes figs?"},
            {"role": "assistant", "content": "Ben."},
            {"role": "user", "content": f"{second}And who jumps?"},
        ]
        for first, second in (
            (f"{MEMORY_START}{FACTS}{MEMORY_END}", f"{MEMORY_START}{NEWS}{MEMORY_END}"),
            (slots(contexts[0]), slots(contexts[1])),
        )
    )
    rendered = exported.reference.tokenizer.apply_chat_template(
        expected, tokenize=False, add_generation_prompt=True
    )
    return actual, read_prompt(exported, rendered, contexts)


def test_chat_with_two_contexts(exported):
    messages, embedded = chat_prompt(exported)
    written = generate(exported.reference, [embedded])
    assert_sure_and_varied(written)
    answer = exported.reference.tokenizer.decode(written.rows[0], skip_special_tokens=True)
    assert exported.model.chat(messages, max_tokens=STEPS) == answer


def test_chat_ends_where_the_exported_settings_end_it(tmp_path):
    """With the rows of a token and of the end of turn exchanged in the head, the answer ends."""
    config = CONFIGS["untied"]
    params = random_params(config, SEEDS["untied"])
    first = export(config, params, tmp_path / "before")
    written = generate(first.reference, [chat_prompt(first)[1]]).rows[0]
    at = next(i for i in range(6, STEPS) if written[i] not in written[:i])
    swapped = np.arange(config.decoder.vocab)
    swapped[[first.model.tokenizer.id(TURN_END), written[at]]] = [
        written[at],
        first.model.tokenizer.id(TURN_END),
    ]
    exported = export(config, {**params, "head": params["head"][swapped]}, tmp_path / "after")
    messages, embedded = chat_prompt(exported)
    ended = generate(exported.reference, [embedded])
    assert ended.rows == [written[:at]]
    expected = exported.reference.tokenizer.decode(ended.rows[0], skip_special_tokens=True)
    assert exported.model.chat(messages, max_tokens=STEPS) == expected


def make_records(model: LanguageModel) -> list[list[Span]]:
    """Prompts of different lengths: context first, no context, two contexts, one token."""
    facts, news, question = (
        model.tokenizer.encode(text) for text in (FACTS, NEWS, " Who likes figs?")
    )
    return [
        [Context(facts), Plain(question)],
        [Plain(question)],
        [Plain(question), Context(news[:9]), Plain(question), Context(facts)],
        [Plain(question[:1])],
    ]


def read_records(exported: Exported, records: list[list[Span]]) -> list[torch.Tensor]:
    model, read = exported.model, []
    for record in records:
        tokens = lay_out(record, model.config, model.tokenizer.memory).tokens
        latents = [
            model.compress_tokens(span.tokens).vectors
            for span in record
            if isinstance(span, Context)
        ]
        read.append(exported.reference.embed(tokens, latents))
    return read


def as_prompt(exported: Exported, records: list[list[Span]]) -> Prompt:
    """The batch as `generate_tokens` takes it, padded on the right."""
    model = exported.model
    examples = [lay_out(record, model.config, model.tokenizer.memory) for record in records]
    lengths = np.array([len(example) for example in examples], np.int32)
    room = max(int(example.slots.max(initial=0)) for example in examples) + 1
    tokens, places = (
        np.zeros((len(records), lengths.max()), np.int32),
        np.full((len(records), lengths.max()), -1, np.int32),
    )
    latents = np.zeros((len(records), room, model.config.decoder.width), np.float32)
    for i, (record, example) in enumerate(zip(records, examples, strict=True)):
        tokens[i, : len(example)], places[i, : len(example)] = example.tokens, example.slots
        vectors = [
            model.compress_tokens(span.tokens).vectors
            for span in record
            if isinstance(span, Context)
        ]
        if vectors:
            joined = np.concatenate(vectors)
            latents[i, : len(joined)] = joined
    return Prompt.of_arrays(tokens, places, latents, lengths)


def our_rows(
    exported: Exported, prompt: Prompt, stop: int, sampling: Sampling = Sampling()
) -> list[list[int]]:
    model = exported.model
    tokens, counts = generate_tokens(
        model.params, prompt, model.config, STEPS, (stop,), sampling=sampling
    )
    return [
        row[:count].tolist()
        for row, count in zip(np.asarray(tokens), np.asarray(counts), strict=True)
    ]


def test_batch_of_mixed_lengths(exported):
    """Padded on the left there and on the right here.

    Then again with a token of the first row as the stop token.
    """
    records = make_records(exported.model)
    embedded, prompt = read_records(exported, records), as_prompt(exported, records)
    written = generate(exported.reference, embedded)
    assert_sure_and_varied(written)
    stops = exported.model.stops  # more than the reference's: <|endoftext|>, too
    answers = [list(takewhile(lambda token: token not in stops, row)) for row in written.rows]
    decode = exported.reference.tokenizer.decode
    texts = [decode(row, skip_special_tokens=True) for row in answers]
    assert exported.model.complete_records(records, STEPS) == texts
    stop = written.rows[0][len(written.rows[0]) // 2]
    stopped = generate(exported.reference, embedded, stop=stop)
    assert len(stopped.rows[0]) < len(written.rows[0])
    assert our_rows(exported, prompt, stop) == stopped.rows


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
@pytest.mark.parametrize("exported", ["untied"], indirect=True)
@pytest.mark.parametrize("penalty, least", [(1.3, 0), (1.0, 12), (1.1, 12)])
def test_repetition_penalty_and_least_tokens(exported, penalty, least):
    """Repetition penalty and least tokens, with the rows of transformers generated one by one.

    With prompt embeddings, transformers 5.23 treats as many new tokens of a row as its padding
    had as padding too, and exempts them from the penalty.
    """
    records = make_records(exported.model)
    embedded, prompt = read_records(exported, records), as_prompt(exported, records)
    stop = generate(exported.reference, embedded[:1]).rows[0][2]
    written = [
        generate(
            exported.reference, [result], stop, repetition_penalty=penalty, min_new_tokens=least
        )
        for result in embedded
    ]
    assert min(result.margin for result in written) > MARGIN
    sampling = Sampling(repetition_penalty=penalty, min_tokens=least)
    assert our_rows(exported, prompt, stop, sampling) == [result.rows[0] for result in written]
