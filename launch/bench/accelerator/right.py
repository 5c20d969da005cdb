"""Correctness checks of a device: attention, golden cases, training, checkpoints."""

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from convert.from_hf import read_hf
from convert.verify.golden import Check, Subject, replay
from launch.bench.accelerator.agreement import Agreement, relative_error
from launch.bench.accelerator.backends import attention_backends, reference_backend
from launch.bench.accelerator.inference import answer
from launch.bench.accelerator.record import Record, Result
from launch.bench.accelerator.rows import (
    segments_of,
    small_tokenizer,
    training_row,
)
from launch.bench.accelerator.sizes import Sizes, TrainingCase
from launch.bench.accelerator.weights import random_params
from lclm_jax.batch import Batch, Places
from lclm_jax.checkpoint.model_files import save_model
from lclm_jax.checkpoint.steps import load_params
from lclm_jax.config import (
    CompressionConfig,
    Config,
    MeshConfig,
    ModelConfig,
    StageConfig,
    TransformerConfig,
)
from lclm_jax.data.text.tokenizer import TURN_END, Tokenizer
from lclm_jax.distributed.sharding import make_mesh, one_device
from lclm_jax.evaluation.first_token import random_tokens
from lclm_jax.inference.language_model import LanguageModel, load
from lclm_jax.model.attention import Cache, attend_after
from lclm_jax.model.params import Flat, flatten
from lclm_jax.training.optim import split_trained
from lclm_jax.training.state import TrainState, init_state
from lclm_jax.training.step import gradients_of, train_step
from lclm_jax.typing import Array

COMPILING_THREADS = 8
# Largest relative errors of the output and of the gradients.
ATTENTION_TOLERANCES = {"float32": (1e-4, 1e-4), "bfloat16": (1e-2, 2e-2)}
TRAINING_STEPS = 3
# Largest relative errors of training on the device against the CPU.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
ANSWER_TOKENS = 32
GOLDEN = Path(__file__).parents[3] / "tests" / "data" / "golden"
SMALL_LAYOUT = GOLDEN / "layouts" / "bf16_config457"  # a case with few quantities
EXACT = "highest"  # float32 products without rounding; JAX's default on GPUs rounds them


@dataclass(frozen=True)
class GoldenCase(Result):
    """Result of replaying a case of the PyTorch original."""

    quantities: int
    failed: list[str]  # names, each with its largest error
    passed: bool


@dataclass(frozen=True)
class AttentionCase:
    """A comparison of a back end with the reference."""

    backend: str
    length: int
    causal: bool
    dtype: str

    @property
    def name(self) -> str:
        kind = "causal" if self.causal else "bidirectional"
        return f"attention {self.backend} {self.length} {kind} {self.dtype}"


def run(sizes: Sizes, record: Record):
    """Run all checks in threads, since most of their time is compilation.

    The most informative checks start first. Checkpoints are written by the main thread.
    """
    model = small_model(sizes)
    golden = sorted(path.name for path in (GOLDEN / "cases").iterdir())
    checks: dict[str, Callable[[], Result]] = {
        case.name: partial(check_attention, sizes, case) for case in attention_cases(sizes)
    }
    for tokens, dtype in ((1, "bfloat16"), (300, "bfloat16"), (1, "float32"), (300, "float32")):
        name = f"attention of {tokens} tokens after a cache, {dtype}"
        checks[name] = partial(check_cache, sizes, tokens, dtype)
    checks["training step, device and CPU"] = partial(check_training, model)
    checks["greedy tokens, device and CPU"] = partial(check_answer, model)
    if sizes.tiny:
        checks[f"golden {SMALL_LAYOUT.name}"] = partial(check_golden_layout, SMALL_LAYOUT)
    else:
        checks |= {f"golden {name}": partial(check_golden, name) for name in golden}
    with ThreadPoolExecutor(1 if sizes.tiny else COMPILING_THREADS) as threads:
        submitted = [threads.submit(record.measure, *check) for check in checks.items()]
        for future in submitted:
            future.result()
        record.measure("checkpoint written and read", partial(check_checkpoint, model))
        record.measure("load() onto named devices", partial(check_load, model))


# --- attention ---


def attention_cases(sizes: Sizes) -> list[AttentionCase]:
    """Return the cases of every back end.

    The model's own back end gets every length, each with two of the four combinations of direction
    and dtype; the others get one length.
    """
    kinds = [(True, "bfloat16"), (True, "float32"), (False, "bfloat16"), (False, "float32")]
    cases = []
    for order, backend in enumerate(attention_backends()):
        for number, length in enumerate(sizes.lengths[: 1 if order else None]):
            for causal, dtype in (kinds[number % 4], kinds[(number + 3) % 4]):
                cases.append(AttentionCase(backend, length, causal, dtype))
    return cases


def check_attention(sizes: Sizes, case: AttentionCase) -> Agreement:
    """Compare output and gradients with the reference in float32 on the CPU."""
    q, k, v, weights, places = attention_inputs(sizes, case)
    with jax.default_matmul_precision(EXACT):
        results = outputs(attention_backends()[case.backend], q, k, v, weights, places, case.causal)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    inputs = jax.device_put((*wide, weights, places), jax.devices("cpu")[0])
    expected = outputs(reference_backend(), *inputs, causal=case.causal)
    names = ("output", "dq", "dk", "dv")
    errors = {
        name: relative_error(x, y) for name, x, y in zip(names, results, expected, strict=True)
    }
    output, gradients = ATTENTION_TOLERANCES[case.dtype]
    return Agreement.of(errors, dict(zip(names, (output, *[gradients] * 3), strict=True)))


def attention_inputs(
    sizes: Sizes, case: AttentionCase
) -> tuple[Array, Array, Array, Array, Places]:
    """Return random queries, keys, values and output weights, and the places of two rows.

    The first row packs examples with padding at the end; one example fills the second row.
    """
    rng, length = np.random.default_rng(case.length), case.length
    heads, kv_heads, width = sizes.heads
    packed = segments_of([length // 3, length // 5, length // 3 - 7], length)
    whole = segments_of([length], length)
    places = Places(*(np.stack(pair) for pair in zip(packed, whole, strict=True)))
    shapes = ((2, length, heads, width), *[(2, kv_heads, length, width)] * 2)
    q, k, v = (jnp.asarray(rng.normal(size=shape), case.dtype) for shape in shapes)
    weights = rng.normal(size=shapes[0]) * (places.segments > 0)[..., None, None]
    return q, k, v, jnp.asarray(weights, jnp.float32), jax.tree.map(jnp.asarray, places)


def outputs(backend: Callable, q, k, v, weights, places: Places, causal: bool) -> tuple[Array, ...]:
    """Return attention, zero at padding, and the gradients of a random projection of it."""

    def projected(q, k, v):
        attended = backend(q, k, v, places, causal, ("batch", "length")).astype(jnp.float32)
        attended = jnp.where((places.segments > 0)[..., None, None], attended, 0.0)
        return jnp.sum(attended * weights), attended

    gradients, attended = jax.jit(jax.grad(projected, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return attended, *gradients


def check_cache(sizes: Sizes, tokens: int, dtype: str) -> Agreement:
    """Compare attention of tokens after a cache, of which they read one layer, with the CPU."""
    rng, (heads, kv_heads, width) = np.random.default_rng(tokens), sizes.heads
    rows, length, end = 2, 1024, 777
    cached = (3, rows, kv_heads, length, width)
    own = (rows, kv_heads, tokens, width)
    shapes = ((rows, tokens, heads, width), own, own, cached, cached)
    q, k, v, keys, values = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    columns = np.broadcast_to(np.arange(length), (rows, length)).astype(np.int32)
    cache = Cache(keys, values, Places(np.ones_like(columns), columns), jnp.int32(end))
    after = np.broadcast_to(np.arange(end, end + tokens), (rows, tokens)).astype(np.int32)
    queries = Places(np.ones_like(after), after)

    def read(q, k, v, cache):
        return attend_after(q, (k, v), queries, cache, jnp.int32(1), True)

    results = {}
    for name, mesh in meshes().items():
        kind = dtype if name == "device" else "float32"
        inputs = jax.tree.map(
            lambda x, kind=kind: x.astype(kind) if x.dtype == dtype else x, (q, k, v, cache)
        )
        inputs = jax.device_put(inputs, mesh.devices.flat[0])
        with jax.set_mesh(mesh), jax.default_matmul_precision(EXACT):
            results[name] = jax.device_get(jax.jit(read)(*inputs))
    error = relative_error(results["device"], results["cpu"])
    return Agreement.of({"output": error}, {"output": ATTENTION_TOLERANCES[dtype][0]})


# --- a small model, on the device and on the CPU ---


def small_model(sizes: Sizes) -> ModelConfig:
    """Return a float32 model of the published kind, small enough for a CPU."""
    if sizes.tiny:
        return sizes.model
    tower = {"vocab": 2048, "head_dim": 64, "heads": 8, "kv_heads": 2, "initializer_range": 0.02}
    encoder = TransformerConfig(width=256, layers=3, mlp=768, **tower)
    decoder = TransformerConfig(width=384, layers=4, mlp=1152, **tower)
    return ModelConfig(
        encoder, decoder, CompressionConfig(ratio=16, window=256), dtype="float32", remat="none"
    )


def meshes() -> dict[str, jax.sharding.Mesh]:
    """Return the meshes to compare: the device and the CPU."""
    return {"device": one_device(), "cpu": make_mesh(MeshConfig(), jax.devices("cpu")[:1])}


def check_training(config: ModelConfig) -> Agreement:
    """Compare gradients, and the losses of a few steps, with the CPU."""
    window = config.compression.window
    case = TrainingCase("check", config, ("encoder", "adapter", "decoder"))
    whole = case.config(positions=4 * window, windows=4)
    (stage,) = whole.stages
    batch = training_row(whole, small_tokenizer())
    results = {}
    for name, mesh in meshes().items():
        with jax.set_mesh(mesh), jax.default_matmul_precision(EXACT):
            params = random_params(config, "float32", mesh)
            state = init_state(params, stage, whole.optimizer)
            results[name] = jax.device_get(jax.jit(partial(learn, whole, stage))(state, batch))
    (gradients, losses), (expected, expected_losses) = results["device"], results["cpu"]
    worst = dict.fromkeys(("encoder", "adapter", "decoder"), 0.0)
    for path in gradients:
        part = path.split("/")[0]
        worst[part] = max(worst[part], relative_error(gradients[path], expected[path]))
    errors = {f"gradients of {part}": error for part, error in worst.items()}
    errors["losses"] = relative_error(losses, expected_losses)
    limits = dict.fromkeys(errors, GRADIENT_TOLERANCE) | {"losses": LOSS_TOLERANCE}
    return Agreement.of(errors, limits)


def learn(
    config: Config, stage: StageConfig, state: TrainState, batch: Batch
) -> tuple[Flat, Array]:
    """Return the gradients of the first step, and the losses of TRAINING_STEPS steps."""
    gradients = gradients_of(*split_trained(state.params, stage), batch, config, stage)[2]

    def step(state: TrainState, _: None) -> tuple[TrainState, Array]:
        state, metrics = train_step(state, batch, config=config, stage=stage)
        return state, metrics["loss"]

    return gradients, jax.lax.scan(step, state, length=TRAINING_STEPS)[1]


def check_answer(config: ModelConfig) -> Agreement:
    """Compare the tokens decoded after a compressed context with the CPU."""
    context, question = texts(config)
    results = {}
    for name, mesh in meshes().items():
        with jax.default_matmul_precision(EXACT):
            params = random_params(config, "float32", mesh)
            model = LanguageModel(config, params, small_tokenizer(), mesh)
            results[name] = answer(model, context, question, ANSWER_TOKENS)
    return Agreement.of(*different(results["device"], results["cpu"]))


def different(
    result: np.ndarray, expected: np.ndarray
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the share of tokens that differ, and its limit of zero."""
    return {"different tokens": float(np.mean(result != expected))}, {"different tokens": 0.0}


def texts(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return a context that ends inside a window, and a question."""
    context = random_tokens(config, 5 * config.compression.window + 37)
    return context, random_tokens(config, 29, seed=1)


def check_checkpoint(config: ModelConfig) -> Agreement:
    """Compare every array of a checkpoint with what was written."""
    params = random_params(config, "float32", one_device())
    with tempfile.TemporaryDirectory() as directory:
        save_model(directory, config, small_tokenizer(), params)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
        )
        read = flatten(load_params(directory, abstract))
    unequal = [path for path, x in flatten(params).items() if not np.array_equal(x, read[path])]
    return Agreement.of({"unequal arrays": float(len(unequal))}, {"unequal arrays": 0.0})


def check_load(config: ModelConfig) -> Agreement:
    """Compare the answer of a model loaded onto given devices with that of the saved model."""
    params = random_params(config, config.dtype, one_device())
    context, question = texts(config)
    model = LanguageModel(config, params, small_tokenizer())
    expected = answer(model, context, question, ANSWER_TOKENS)
    with tempfile.TemporaryDirectory() as directory:
        save_model(directory, config, model.tokenizer, params)
        loaded = load(directory, devices=jax.devices()[:1])
        result = answer(loaded, context, question, ANSWER_TOKENS)
    return Agreement.of(*different(result, expected))


# --- the PyTorch original ---


def check_golden(name: str) -> GoldenCase:
    """Replay a golden case of the PyTorch original on this device."""
    with tempfile.TemporaryDirectory() as directory, jax.default_matmul_precision(EXACT):
        source = Path(directory) / name
        shutil.copytree(GOLDEN / "base", source)
        shutil.copytree(GOLDEN / "cases" / name, source, dirs_exist_ok=True)
        tokenizer = Tokenizer.load(source / "decoder")
        config, params = read_hf(source)
        stop = (tokenizer.id(TURN_END),)
        subject = Subject.of(config, params, tokenizer.memory.marker, stop)
        return judge(replay(source, subject))


def check_golden_layout(source: Path) -> GoldenCase:
    """Replay a golden case without a tokenizer."""
    with jax.default_matmul_precision(EXACT):
        return judge(replay(source, Subject.of(*read_hf(source))))


def judge(checks: list[Check]) -> GoldenCase:
    failed = [f"{check.name}: {check.error:.3g}" for check in checks if not check.passed]
    return GoldenCase(len(checks), failed, not failed)
