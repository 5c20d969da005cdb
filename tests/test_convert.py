"""Conversion in both directions, and parity with the PyTorch original on the checkpoints in tests/data/golden."""

import json
import shutil
import sys
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import convert.from_hf
import convert.to_hf
from convert.from_hf import from_hf, read_hf
from convert.hf_config import read_compression, read_tower
from convert.hf_files import find_published, list_tower, new_directory
from convert.mapping import (
    TABLE,
    TRANSFORMS,
    ConversionError,
    parameter_shapes,
    publish_params,
    published_tensors,
    to_ours,
    to_published,
)
from convert.to_hf import to_hf
from lclm_jax.checkpoint import load_params, read_model_files, save_model
from lclm_jax.command import run as run_command
from lclm_jax.config import CompressionConfig, MeshConfig, ModelConfig, TransformerConfig
from lclm_jax.data.batch import Batch
from lclm_jax.data.packing import Budget, Row, assemble
from lclm_jax.data.spans import Context, Example, Plain, Span, lay_out
from lclm_jax.data.tokens import MEMORY_SLOT, TURN_END, Tokenizer
from lclm_jax.generate import Prompt, Sampling, choose, decode_step, generate_tokens, prefill
from lclm_jax.language_model import LanguageModel, load
from lclm_jax.loss import token_losses
from lclm_jax.model.lclm import LCLM, output_table
from lclm_jax.optim import flatten, unflatten
from lclm_jax.sharding import make_mesh
from lclm_jax.state import abstract_params
from lclm_jax.typing import Params

GOLDEN = Path(__file__).parent / "data" / "golden"
BF16, SHARDED = GOLDEN / "layouts" / "bf16_config457", GOLDEN / "layouts" / "untied_sharded"
CASES = ("c01_mean_bi_mlp_r16", "c03_mean_causal_mlp_r4", "c05_eos_causal_mlp_r4", "c07_concat_causal_mlp_r4")
SAMPLINGS = {"greedy": Sampling(), "greedy_rep1.1": Sampling(repetition_penalty=1.1)}
ATTENTION_CASES = ("c09_mean_bi_mlpattn_r16", "c10_mean_bi_attnmlp_o16_r16")
close = partial(np.testing.assert_allclose, atol=2e-4, rtol=0)


# --- Golden cases: the same inputs through our code ---


def complete(name: str, directory: Path) -> Path:
    """The published checkpoint of a case: the shared towers beside its own adapter and settings."""
    shutil.copytree(GOLDEN / "base", directory)
    shutil.copytree(GOLDEN / "cases" / name, directory, dirs_exist_ok=True)
    return directory


def as_record(values: dict) -> list[Span]:
    """A decoder's token ids and labels as the record they were made of."""
    record: list[Span] = []
    begin = 0
    for (start, end), context in zip(values["memory_positions"], values["memory_token_ids"], strict=True):
        record += as_plain(values, begin, start - 1)
        record.append(Context(np.array(context)))
        begin = end + 1
    return record + as_plain(values, begin, len(values["input_ids"]))


def as_plain(values: dict, begin: int, end: int) -> list[Span]:
    labels = values.get("labels", values["input_ids"])
    return [Plain(np.array([values["input_ids"][t]]), labels[t] != -100) for t in range(begin, end)]


def as_row(examples: list[Example], config: ModelConfig) -> Batch:
    """These examples packed into one row. All rows have one shape, so that each model is compiled once."""
    row = Row(Budget(128, 10, config.window_length, config.compression.latents_per_window))
    for example in examples:
        seats = row.find(example)
        assert seats is not None
        row.add(example, seats)
    return assemble([row])


# These are compiled for longer than they run, so the compiler need not try hard.
compiled = partial(jax.jit, static_argnames="config", compiler_options={"xla_backend_optimization_level": 0})


@compiled
def run(params: Params, batch: Batch, config: ModelConfig):
    """Pooled encoder states and latents [M, .], hidden states [T, D] and logits [T, V] of a batch of one row."""
    model = LCLM(config)
    apply = partial(model.apply, {"params": params})
    pooled = apply(batch.windows, method=lambda m, windows: m.pool(m.encode(windows), windows.groups))
    hidden = apply(batch)
    return pooled[0], apply(batch.windows, method=LCLM.compress)[0], hidden[0], apply(hidden, method=LCLM.logits)[0]


@compiled
def loss_and_gradients(params: Params, batch: Batch, config: ModelConfig):
    def objective(params):
        hidden = LCLM(config).apply({"params": params}, batch)
        nll, _ = token_losses(hidden, output_table(params, config), batch.targets, batch.weights, 1024)
        return jnp.sum(nll * batch.weights) / jnp.sum(batch.weights)

    return jax.value_and_grad(objective)(params)


@dataclass(frozen=True)
class Case:
    """A golden case: what the original was given and computed, and our model made from its checkpoint."""

    name: str
    source: Path

    @cached_property
    def inputs(self) -> dict:
        return json.loads((self.source / "inputs.json").read_text())

    @cached_property
    def outputs(self) -> dict:
        return dict(np.load(self.source / "outputs.npz"))

    @cached_property
    def model(self) -> LanguageModel:
        config, params = read_hf(self.source)
        return LanguageModel(replace(config, remat="none"), params, Tokenizer.load(self.source / "decoder"))

    @cached_property
    def example(self) -> Example:
        return lay_out(as_record(self.inputs), self.model.config, self.model.tokenizer.memory)

    @cached_property
    def batch(self) -> Batch:
        return as_row([self.example], self.model.config)

    @cached_property
    def results(self):
        pooled, latents, hidden, logits = jax.device_get(run(self.model.params, self.batch, self.model.config))
        return pooled, latents, hidden[: len(self.example)], logits[: len(self.example)]

    @cached_property
    def gradients(self):
        return jax.device_get(loss_and_gradients(self.model.params, self.batch, replace(self.model.config, remat="full")))

    @property
    def prompt(self) -> Prompt:
        """The prompt without the target, and the latents in the order of its slots."""
        length = len(self.inputs["prompt_input_ids"])
        latents = self.results[1][self.batch.slots[self.batch.slots >= 0]]
        return Prompt(
            self.example.tokens[None, :length], self.example.slots[None, :length], latents[None], np.array([length], np.int32)
        )


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> Case:
    return Case(request.param, complete(request.param, tmp_path_factory.mktemp("golden") / request.param))


def test_golden_layout(case):
    assert case.example.tokens.tolist() == case.inputs["input_ids"]
    labels = np.array(case.inputs["labels"])
    assert np.array_equal(case.example.weights[:-1], labels[1:] != -100)
    assert np.array_equal(case.example.targets[:-1][case.example.weights[:-1] > 0], labels[1:][labels[1:] != -100])
    assert case.inputs["prompt_input_ids"] == case.inputs["input_ids"][: len(case.inputs["prompt_input_ids"])]


def test_golden_latents(case):
    pooled, latents, _, _ = case.results
    order = case.batch.slots[case.batch.slots >= 0]
    ends = np.cumsum(case.inputs["latent_counts"])
    assert ends[-1] == len(order)
    for i, rows in enumerate(np.split(order, ends[:-1])):
        close(pooled[rows], case.outputs[f"latents_{i}"])
        close(latents[rows], case.outputs[f"adapted_{i}"])


def test_golden_latents_of_one_text_at_a_time(case):
    for i, context in enumerate(case.inputs["memory_token_ids"]):
        close(case.model.compress_tokens(np.array(context)).vectors, case.outputs[f"adapted_{i}"])


def test_golden_empty_context(case):
    memory = case.model.tokenizer.memory
    example = lay_out([Context(np.array([], np.int32)), Plain(np.array([1]))], case.model.config, memory)
    pooled, latents, _, _ = run(case.model.params, as_row([example], case.model.config), case.model.config)
    close(pooled[:1], case.outputs["empty_latent"])
    close(latents[:1], case.outputs["empty_adapted"])
    close(case.model.compress_tokens(np.array([], np.int32)).vectors, case.outputs["empty_adapted"])


def test_golden_decoder(case):
    _, _, hidden, logits = case.results
    close(hidden, case.outputs["hidden_last"])
    close(logits[case.outputs["logit_positions"]], case.outputs["logits"])
    close(jax.nn.logsumexp(logits, axis=-1), case.outputs["logsumexp"])
    assert np.array_equal(logits.argmax(axis=-1), case.outputs["argmax"])


def test_golden_loss_and_gradients(case):
    loss, gradients = case.gradients
    close(loss, case.outputs["loss"])
    published = publish_params(gradients)
    for part, tensors in published.items():
        norm = np.sqrt(sum(np.square(tensor, dtype=np.float64).sum() for tensor in tensors.values()))
        np.testing.assert_allclose(norm, case.outputs[f"grad_norm_{part}"], rtol=1e-3)
    named = {f"{part}.{key}": tensor for part, tensors in published.items() for key, tensor in tensors.items()}
    assert named.keys() == case.inputs["param_grad_norms"].keys()
    for name, norm in case.inputs["param_grad_norms"].items():
        np.testing.assert_allclose(np.linalg.norm(named[name]), norm, rtol=1e-3, atol=1e-6, err_msg=name)
    for name in (name.removeprefix("grad/") for name in case.outputs if name.startswith("grad/")):
        np.testing.assert_allclose(named[name], case.outputs[f"grad/{name}"], rtol=1e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_golden_generation(case, name):
    """The original was forbidden to end its turn: we agree up to where we would, which is once, in the last case."""
    end, key = case.model.tokenizer.id(TURN_END), jax.random.key(0)
    tokens, counts = generate_tokens(case.model.params, case.prompt, case.model.config, 24, (), key, SAMPLINGS[name])
    ours, theirs = tokens[0].tolist(), case.outputs[name].tolist()
    agreed = ours.index(end) if end in ours else 24
    assert agreed == (20 if (case.name, name) == (CASES[3], "greedy_rep1.1") else 24)
    assert ours[:agreed] == theirs[:agreed]
    assert counts.tolist() == [24]


@pytest.mark.parametrize("name", SAMPLINGS)
def test_golden_generation_without_an_end(tmp_path, name):
    """The last case again, one step at a time, with the end of the turn forbidden as it was in the original."""
    case = Case(CASES[3], complete(CASES[3], tmp_path / "source"))
    config, params, tokens = case.model.config, case.model.params, []
    logits, cache = prefill(params, case.prompt, config, 24)
    seen = jnp.zeros(logits.shape, bool)
    for step in range(24):
        allowed = logits.at[:, case.model.tokenizer.id(TURN_END)].set(-jnp.inf)
        token = choose(allowed, seen, jax.random.key(0), SAMPLINGS[name])
        seen = seen.at[0, token[0]].set(True)
        tokens.append(int(token[0]))
        logits, cache = decode_step(params, token, case.prompt.lengths + step, cache, config)
    assert tokens == case.outputs[name].tolist()


def test_golden_greedy_logits(case):
    """Scores at the first, second and last step, from one pass over the prompt and its greedy continuation."""
    length = len(case.inputs["prompt_input_ids"])
    values = {**case.inputs, "input_ids": case.inputs["prompt_input_ids"] + case.outputs["greedy"].tolist()}
    values.pop("labels")
    example = lay_out(as_record(values), case.model.config, case.model.tokenizer.memory)
    _, _, _, logits = run(case.model.params, as_row([example], case.model.config), case.model.config)
    close(logits[np.array([0, 1, 23]) + length - 1], case.outputs["greedy_logits"])


def test_golden_packed_row(tmp_path):
    """Three documents in one row, with pads. The original's positions run on over the row; relative ones are the same."""
    case = Case(CASES[0], complete(CASES[0], tmp_path / "source"))
    values = json.loads((case.source / "packed_inputs.json").read_text())
    outputs = np.load(case.source / "packed_outputs.npz")
    examples, start = [], 0
    for length in values["sample_lens"]:
        spans = [(i, at) for i, at in enumerate(values["memory_positions"]) if start <= at[0] < start + length]
        document = {
            "input_ids": values["input_ids"][start : start + length],
            "labels": values["labels"][start : start + length],
            "memory_positions": [(at[0] - start, at[1] - start) for _, at in spans],
            "memory_token_ids": [values["memory_token_ids"][i] for i, _ in spans],
        }
        examples.append(lay_out(as_record(document), case.model.config, case.model.tokenizer.memory))
        start += length
    batch = as_row(examples, case.model.config)
    assert batch.tokens[0, :start].tolist() == values["input_ids"][:start]
    _, _, hidden, _ = run(case.model.params, batch, case.model.config)
    close(hidden[:start], outputs["hidden_last"])
    loss, gradients = loss_and_gradients(case.model.params, batch, replace(case.model.config, remat="full"))
    close(loss, outputs["loss"])
    for part in ("decoder", "encoder", "adapter"):
        squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients[part]))
        np.testing.assert_allclose(np.sqrt(squares), outputs[f"grad_norm_{part}"], rtol=1e-3)


@pytest.mark.parametrize("source, dtype, tied", [(BF16, "bfloat16", True), (SHARDED, "float32", False)])
def test_golden_file_layouts(source, dtype, tied):
    config, params = read_hf(source)
    assert (config.dtype, config.decoder.tied, "head" in params) == (dtype, tied, not tied)
    assert (config.encoder.rope_theta, config.decoder.rope_theta) == (1e6, 5e6)
    config = replace(config, dtype="float32", remat="none")
    inputs, outputs = json.loads((source / "inputs.json").read_text()), np.load(source / "outputs.npz")
    tokens = np.array(inputs["input_ids"])
    record = as_record(inputs)
    slot, start, end = tokens[inputs["memory_positions"][0][0]], tokens[1], tokens[3]
    memory = replace(Tokenizer.load(GOLDEN / "base" / "decoder").memory, start=int(start), end=int(end), slot=int(slot))
    example = lay_out(record, config, memory)
    assert example.tokens.tolist() == inputs["input_ids"]
    batch = as_row([example], config)
    pooled, _, _, logits = run(params, batch, config)
    close(pooled[batch.slots[batch.slots >= 0]], outputs["latents"])
    close(logits[: len(tokens)], outputs["logits"])


@pytest.mark.parametrize("name", ATTENTION_CASES)
def test_attention_adapters_are_refused(name):
    with pytest.raises(ConversionError, match=r"adapter_type '(mlp_attn|attn_mlp)' is not supported; supported: mlp"):
        read_compression(GOLDEN / "cases" / name)


# --- Round trips ---


def tensors_of(source: Path) -> dict[str, np.ndarray]:
    """Every stored tensor of a published checkpoint, in its stored dtype."""
    return {
        f"{file.parent.name}/{key}": tensor for file in source.rglob("*.safetensors") for key, tensor in load_file(file).items()
    }


def test_published_round_trip_is_byte_equal(tmp_path):
    source = complete(CASES[0], tmp_path / "source")
    assert from_hf(source, tmp_path / "ours") == tmp_path / "ours"
    to_hf(tmp_path / "ours", tmp_path / "back")
    before, after = tensors_of(source), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype and after[key].shape == tensor.shape, key
        assert after[key].tobytes() == tensor.tobytes(), key
    for part in ("decoder", "encoder"):
        old, new = (json.loads((root / part / "config.json").read_text()) for root in (source, tmp_path / "back"))
        shared = set(old) & set(new)
        assert {"architectures", "model_type", "rope_parameters", "head_dim", "tie_word_embeddings"} <= shared
        assert {key: old[key] for key in shared} == {key: new[key] for key in shared}
        old, new = (json.loads((root / part / "tokenizer.json").read_text()) for root in (source, tmp_path / "back"))
        assert old == new
    assert read_compression(source) == read_compression(tmp_path / "back")


def random_model(tied: bool) -> tuple[ModelConfig, Params]:
    encoder = TransformerConfig(383, 16, 2, 4, 1, 6, 24, rope_theta=1e4, norm_eps=1e-5, causal=False, max_positions=128)
    decoder = TransformerConfig(390, 20, 3, 4, 2, 8, 28, rope_theta=5e6, tied=tied, max_positions=256)
    compression = CompressionConfig(ratio=4, window=16, pooling="concat", overlap=2)
    config = ModelConfig(encoder, decoder, compression, dtype="float32")
    random = np.random.default_rng(3)
    return config, unflatten(
        {path: random.normal(size=shape).astype(np.float32) for path, shape in parameter_shapes(config).items()}
    )


@pytest.mark.parametrize("tied", [True, False])
def test_our_round_trip_keeps_params_and_logits(tied, tmp_path):
    config, params = random_model(tied)
    tokenizer = Tokenizer.load(GOLDEN / "base" / "decoder")
    save_model(tmp_path / "ours", config, tokenizer, params)
    to_hf(tmp_path / "ours", tmp_path / "published")
    from_hf(tmp_path / "published", tmp_path / "back")
    assert read_model_files(tmp_path / "back")[0] == config
    assert read_model_files(tmp_path / "back")[1].definition == tokenizer.definition
    back = load_params(tmp_path / "back", abstract_params(config, make_mesh(MeshConfig(), jax.devices()[:1])))
    assert flatten(back).keys() == flatten(params).keys()
    assert all(jnp.array_equal(before, flatten(back)[path]) for path, before in flatten(params).items())
    example = lay_out([Plain(np.array([5, 6])), Context(np.arange(21)), Plain(np.array([7]))], config, tokenizer.memory)
    batch = as_row([example], config)
    assert jnp.array_equal(run(params, batch, config)[3], run(back, batch, config)[3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "ours", "published"]


def test_converted_checkpoint_loads_and_generates(tmp_path):
    from_hf(complete(CASES[1], tmp_path / "source"), tmp_path / "ours")
    model = load(tmp_path / "ours")
    assert isinstance(model.complete([model.compress("a brown fox"), "The number"], max_tokens=2), str)


def test_transformers_reads_what_we_write(tmp_path):
    transformers = pytest.importorskip("transformers")
    config, params = random_model(tied=False)
    save_model(tmp_path / "ours", config, Tokenizer.load(GOLDEN / "base" / "decoder"), params)
    to_hf(tmp_path / "ours", tmp_path / "published")
    read = transformers.AutoConfig.from_pretrained(tmp_path / "published" / "decoder")
    assert isinstance(read, transformers.Qwen3Config)
    assert (read.head_dim, read.rope_parameters["rope_theta"], read.tie_word_embeddings) == (8, 5e6, False)
    encoder = transformers.AutoTokenizer.from_pretrained(tmp_path / "published" / "encoder")
    decoder = transformers.AutoTokenizer.from_pretrained(tmp_path / "published" / "decoder")
    assert len(decoder) - len(encoder) == 3
    assert MEMORY_SLOT in decoder.get_vocab() and MEMORY_SLOT not in encoder.get_vocab()


# --- The table ---


def test_table_covers_every_parameter():
    shapes = parameter_shapes(random_model(tied=False)[0])
    assert {tensor.path for tensor in published_tensors(shapes)} == set(shapes) == {rule.ours for rule in TABLE}
    with pytest.raises(ConversionError, match=r"no rule .* decoder/bias; add rows to TABLE"):
        published_tensors({**shapes, "decoder/bias": (3,)})


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_are_inverse(transform):
    ours = np.arange(2 * 3 * 4.0).reshape({"none": (24,), "transpose": (6, 4)}.get(transform, (2, 3, 4)))
    assert np.array_equal(to_ours(to_published(ours, transform), transform, ours.shape), ours)


def test_transforms_of_heads():
    """Torch's output row n * H + h is head n, dimension h; our einsums then give what `x @ weight.T` gives."""
    weight, x = np.arange(24.0).reshape(6, 4), np.arange(4.0)
    np.testing.assert_array_equal(np.einsum("D,DNH->NH", x, to_ours(weight, "split_heads", (4, 2, 3))).ravel(), weight @ x)
    weight, x = weight.T, np.arange(6.0)
    ours = to_ours(weight, "join_heads", (2, 3, 4))
    np.testing.assert_array_equal(np.einsum("NH,NHD->D", x.reshape(2, 3), ours), weight @ x)


# --- What is refused ---


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of a tiny checkpoint to damage."""
    return Path(shutil.copytree(BF16, tmp_path / "in" / "source"))


def edit_tensors(file: Path, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit_json(file: Path, **changes):
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_every_wrong_tensor_is_named_and_nothing_written(source, tmp_path):
    def decoder(tensors):
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
        tensors["model.layers.2.input_layernorm.weight"] = np.ones(32, np.float32)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.norm.weight"] = np.ones(31, np.float32)
        tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.int64)

    def encoder(tensors):
        tensors["model.norm.weight"] = tensors["norm.weight"]

    def adapter(tensors):
        tensors["fc1.weight"] = np.ascontiguousarray(tensors["fc1.weight"].T)
        del tensors["fc2.bias"]

    edit_tensors(source / "decoder" / "model.safetensors", decoder)
    edit_tensors(source / "encoder" / "model.safetensors", encoder)
    edit_tensors(source / "adapter" / "adapter.safetensors", adapter)
    with pytest.raises(ConversionError) as caught:
        from_hf(source, tmp_path / "out" / "ours")
    message = str(caught.value)
    for line in (
        "8 tensors do not fit",
        "decoder model.layers.0.self_attn.q_proj.bias: unknown, got [32]",
        "decoder model.layers.2.input_layernorm.weight: unknown, got [32]",
        "decoder model.layers.1.mlp.up_proj.weight: missing, expected [40, 32]",
        "decoder model.norm.weight: expected [32], got [31]",
        "decoder model.layers.0.self_attn.q_norm.weight: expected dtype F32, BF16, F16, got I64",
        "encoder norm.weight: stored 2 times, expected once",
        "adapter fc1.weight: expected [32, 16], got [16, 32]",
        "adapter fc2.bias: missing, expected [32]",
    ):
        assert line in message
    assert not list((tmp_path / "out").iterdir())


def test_a_tensor_in_two_shards_is_a_duplicate(tmp_path):
    source = Path(shutil.copytree(SHARDED, tmp_path / "source"))
    edit_tensors(
        source / "decoder" / "model-00005-of-00005.safetensors",
        lambda tensors: tensors.update({"model.norm.weight": np.ones(32, np.float32)}),
    )
    with pytest.raises(ConversionError, match=r"decoder model.norm.weight: stored 2 times, expected once"):
        read_hf(source)


def test_a_missing_shard_is_named(tmp_path):
    source = Path(shutil.copytree(SHARDED, tmp_path / "source"))
    (source / "decoder" / "model-00002-of-00005.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names shards that are not there: model-00002-of-00005.safetensors"):
        read_hf(source)


def test_a_truncated_file_is_named(source):
    file = source / "decoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConversionError, match=r"model.safetensors is not a whole safetensors file"):
        read_hf(source)


def test_a_tied_head_may_be_stored_if_it_is_equal(source):
    file = source / "decoder" / "model.safetensors"
    edit_tensors(file, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    _, params = read_hf(source)
    assert "head" not in params
    edit_tensors(file, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] + 1}))
    with pytest.raises(ConversionError, match=r"lm_head.weight: differs from model.embed_tokens.weight, but tie_word_embeddings"):
        read_hf(source)


def test_an_existing_destination_is_left_alone(tmp_path):
    (tmp_path / "ours").mkdir()
    with pytest.raises(FileExistsError, match="ours exists; name a new directory or remove it first"):
        from_hf(BF16, tmp_path / "ours")
    with pytest.raises(FileExistsError, match="ours exists"):
        to_hf(tmp_path / "absent", tmp_path / "ours")
    assert not list((tmp_path / "ours").iterdir())


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "ours") as directory:
        (directory / "half").write_text("written")
        assert not (tmp_path / "ours").exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_missing_parts_are_named(source):
    shutil.rmtree(source / "adapter")
    (source / "model_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter/adapter.safetensors, no model_config.json"):
        read_hf(source)


def test_a_checkpoint_without_tokenizer_is_refused_by_from_hf_only(tmp_path):
    read_hf(BF16)
    with pytest.raises(FileNotFoundError, match="no tokenizer here"):
        from_hf(BF16, tmp_path / "ours")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_must_serve_both_towers(tmp_path):
    source = complete(CASES[0], tmp_path / "source")
    shutil.copy(source / "encoder" / "tokenizer.json", source / "decoder" / "tokenizer.json")
    with pytest.raises(ConversionError, match=r"has no <\|memory_start\|>"):
        from_hf(source, tmp_path / "ours")
    shutil.copy(GOLDEN / "base" / "decoder" / "tokenizer.json", source / "decoder" / "tokenizer.json")
    definition = json.loads((source / "encoder" / "tokenizer.json").read_text())
    definition["added_tokens"].pop(0)
    (source / "encoder" / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ConversionError, match="is not the decoder's without its memory tokens"):
        from_hf(source, tmp_path / "ours")


# --- Settings ---


def test_settings_that_would_change_the_model_are_refused(source):
    edit_json(
        source / "decoder" / "config.json", hidden_act="gelu", attention_bias=True, head_dim=None, rope_scaling={"type": "yarn"}
    )
    with pytest.raises(ConversionError, match=r"head_dim is missing; hidden_act must be 'silu'.*attention_bias.*rotary scaling"):
        read_tower(source / "decoder" / "config.json", causal=True)
    edit_json(source / "model_config.json", pooling="max", encoder_mask_type=None)
    with pytest.raises(
        ConversionError, match="encoder_mask_type is missing; pooling must be one of mean, eos, concat, got 'max'"
    ):
        read_compression(source)


def test_a_processor_of_another_ratio_is_refused(source):
    (source / "processor_config.json").write_text(json.dumps({"compression_ratio": 16, "use_memory_wrapping": False}))
    with pytest.raises(ConversionError, match=r"use_memory_wrapping=False, expected True.*compression_ratio=16, expected 4"):
        read_compression(source)


def test_older_names(source, tmp_path):
    older = tmp_path / "model-bst16-r4" / "checkpoint_200"
    older.mkdir(parents=True)
    shutil.copytree(source / "decoder", older / "llm")
    shutil.copytree(source / "encoder", older / "embedder")
    (older / "projectors").mkdir()
    shutil.copy(source / "adapter" / "adapter.safetensors", older / "projectors" / "code_adapter.safetensors")
    settings = {"chunk_size": 4, "pooling": "summary_mean", "encoder_mask_type": "causal"}
    (older.parent / "model_config.json").write_text(json.dumps(settings))
    (older.parent / "checkpoint_30" / "llm").mkdir(parents=True)
    (older.parent / "checkpoint_last").mkdir()
    config, params = read_hf(older.parent)
    expected, same = read_hf(source)
    assert find_published(older.parent).decoder == older / "llm"
    assert config == expected
    assert all(np.array_equal(array, flatten(same)[path]) for path, array in flatten(params).items())


@pytest.mark.parametrize("older, pooling", [("summary_mean", "mean"), ("summary_concat", "concat"), ("summary", "eos")])
def test_older_poolings(older, pooling, source):
    edit_json(source / "model_config.json", pooling=older)
    assert read_compression(source)[0].pooling == pooling
    edit_json(source / "model_config.json", pooling=None, **{older: True})
    assert read_compression(source)[0].pooling == pooling


def test_encoder_keys_with_prefix(source):
    _, expected = read_hf(source)
    file = source / "encoder" / "model.safetensors"
    save_file({f"model.{key}": tensor for key, tensor in load_file(file).items()}, file)
    _, params = read_hf(source)
    assert all(np.array_equal(array, flatten(expected)[path]) for path, array in flatten(params).items())


def test_dtypes_may_differ_from_tensor_to_tensor(source):
    _, expected = read_hf(source)

    def change(tensors):
        for key, dtype in zip(sorted(tensors), ["float16", "float32", "bfloat16"] * len(tensors), strict=False):
            tensors[key] = tensors[key].astype(dtype)

    edit_tensors(source / "decoder" / "model.safetensors", change)
    assert {tensor.dtype for tensor in list_tower(source / "decoder")} == {"F16", "F32", "BF16"}
    config, params = read_hf(source)
    assert config.dtype == "bfloat16"
    for path, array in flatten(params).items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, flatten(expected)[path], rtol=1e-3, atol=1e-7)


# --- Commands ---


def command(module, monkeypatch, *arguments) -> int:
    """Exit status of `python -m module arguments`."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    try:
        run_command(module.main)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_commands_say_where_the_result_lies(tmp_path, capsys, monkeypatch):
    source = complete(CASES[0], tmp_path / "source")
    assert command(convert.from_hf, monkeypatch, source, tmp_path / "ours") == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'ours'}\n"
    assert command(convert.to_hf, monkeypatch, tmp_path / "ours", tmp_path / "back") == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'back'}\n"


@pytest.mark.parametrize("module", [convert.from_hf, convert.to_hf])
def test_commands_report_errors_in_one_line(module, tmp_path, capsys, monkeypatch):
    assert command(module, monkeypatch, tmp_path / "absent", tmp_path / "new") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and "absent" in said.err
    assert not list(tmp_path.iterdir())
