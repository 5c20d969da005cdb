"""The PyTorch side of the comparison: transformers' Qwen3 with its fastest attention."""

import gc
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from launch.bench.accelerator.agreement import Agreement, relative_error
from launch.bench.accelerator.comparison import (
    DECODE,
    ENCODE,
    FIRST_TOKEN,
    TOLERANCES,
    TRAIN,
    Inputs,
    Task,
    make_inputs,
    read_outputs,
)
from launch.bench.accelerator.record import Record, Result
from launch.bench.accelerator.sizes import Sizes
from launch.bench.accelerator.weights import FACTORS, LARGEST, LAYERS, STEP, is_scale, seed_of
from lclm_jax.config import ModelConfig
from lclm_jax.evaluation.timing import middle
from lclm_jax.model.params import parameter_shapes

MAX_UINT32 = 0xFFFFFFFF


def read_modules():
    """Import torch, if it is installed."""
    if importlib.util.find_spec("torch"):
        import launch.bench.torch_side  # noqa: F401


def run(sizes: Sizes, record: Record, exchange: Path):
    """Compare each task with lclm_jax, then time it; without torch, measure nothing."""
    record.measure("torch", versions)
    if not importlib.util.find_spec("torch"):
        return
    inputs = make_inputs(sizes)
    names = (ENCODE, FIRST_TOKEN, DECODE)
    if any(name not in record.measurements for name in names):
        serving(sizes, record, exchange, inputs)
        gc.collect()
        _torch().cuda.empty_cache()
    training(sizes, record, exchange, inputs)


def serving(sizes: Sizes, record: Record, exchange: Path, inputs: Inputs):
    """Compare and time encoding, first token and decoding."""
    from launch.bench.torch_side import Inference

    device, dtype = choose_device(), sizes.model.dtype
    plain = build(sizes.model, dtype, device)
    side = Inference(plain, inputs.work, device)
    tasks: dict[str, tuple[Callable[[], Callable[[], Any]], Any]] = {
        ENCODE: (side.encode, None),
        FIRST_TOKEN: (side.first_scores, None),
        DECODE: (side.decode, None),
    }
    for name, (prepare, _) in tasks.items():
        call = partial(compare, sizes, exchange, name, lambda prepare=prepare: prepare()())
        record.measure(f"agreement: {name}", call)
        record.measure(name, partial(time_task, prepare))


def training(sizes: Sizes, record: Record, exchange: Path, inputs: Inputs):
    """Compare and time the training step."""
    if TRAIN not in record.measurements:
        record.measure(f"agreement: {TRAIN}", partial(check_loss, sizes, exchange, inputs))
        record.measure(TRAIN, partial(train, inputs), 8.0)


# --- measurements ---


class Versions(Result):
    """Versions of the packages in use; empty without torch."""

    def __init__(self, versions: dict[str, str]):
        self.versions = versions

    def to_dict(self) -> dict[str, Any]:
        return {"installed": bool(self.versions), **self.versions}


def versions() -> Versions:
    """Return the versions of torch and transformers, the attention and the device used."""
    if not importlib.util.find_spec("torch"):
        return Versions({})
    import transformers

    return Versions(
        {
            "torch": _torch().__version__,
            "transformers": transformers.__version__,
            "attention": choose_attention(),
            "device": choose_device(),
        }
    )


def compare(sizes: Sizes, exchange: Path, name: str, call: Callable[[], Any]) -> Agreement:
    """Compare an output of both sides.

    For decoded tokens the error is the share that differs. Published sizes allow any share: where
    two tokens have nearly the same score, rounding decides.
    """
    expected = read_outputs(exchange, "ours")[name]
    output = to_numpy(call()).reshape(expected.shape)
    if name == DECODE:
        shares = {"different tokens": float(np.mean(expected != output))}
        return Agreement.of(shares, {"different tokens": 0.0 if sizes.tiny else 1.0})
    return agreement(expected, output, sizes.model.dtype)


def agreement(expected: np.ndarray, output: np.ndarray, dtype: str) -> Agreement:
    """Compare arrays by their relative error."""
    errors = {"difference": relative_error(output, expected)}
    return Agreement.of(errors, {"difference": TOLERANCES[dtype]})


def time_task(prepare: Callable[[], Callable[[], Any]]) -> Task:
    """Time the function that `prepare` returns; it is called before every round, untimed."""
    rounds: list[float] = []
    seconds(prepare())
    while len(rounds) < 3 or (len(rounds) < 9 and sum(rounds) < 3.0):
        rounds.append(seconds(prepare()))
    return Task(middle(rounds), rounds)


def check_loss(sizes: Sizes, exchange: Path, inputs: Inputs) -> Agreement:
    """Compare the first loss of the training step."""
    side = trainer(inputs, "examples", recompute=True)
    loss = to_numpy(side.loss())
    expected = read_outputs(exchange, "ours")[TRAIN]
    return agreement(expected.reshape(1), loss.reshape(1), sizes.model.dtype)


def train(inputs: Inputs) -> Task:
    """Time the training step with each way to read a packed row and return the faster.

    Layers are recomputed only if the step does not fit in memory otherwise. Raises MemoryError if
    it does not fit at all.
    """
    tasks = [
        task
        for packing in packings()
        if (task := _train(inputs, packing, False) or _train(inputs, packing, True))
    ]
    if not tasks:
        raise MemoryError("expected the training step to fit the device in PyTorch, it does not")
    return min(tasks, key=lambda task: task.seconds)


def _train(inputs: Inputs, packing: str, recompute: bool) -> Task | None:
    """Time the training step; return None if it does not fit in memory."""
    torch = _torch()
    gc.collect()
    torch.cuda.empty_cache()
    try:
        side = trainer(inputs, packing, recompute)
        for _ in range(2):
            side.step()
        rounds = [seconds(side.step) for _ in range(5)]
    except torch.OutOfMemoryError:
        return None
    finally:
        side = None
    note = f"packed row read as {packing}, layers {'recomputed' if recompute else 'kept'}"
    return Task(middle(rounds), rounds, note)


def trainer(inputs: Inputs, packing: str, recompute: bool) -> Any:
    """Return a trainer with float32 weights that computes in the model's dtype."""
    from launch.bench.torch_side import Training

    config, device = inputs.case.model, choose_device()
    model = build(config, "float32", device)
    return Training(model, inputs.work, device, config.dtype, packing, recompute)


# --- torch ---


def _torch() -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    return torch


def choose_device() -> str:
    return "cuda" if _torch().cuda.is_available() else "cpu"


def packings() -> tuple[str, ...]:
    """Return the ways to read a packed row; flash attention does not take masks."""
    return ("examples",) if choose_attention() == "flash_attention_2" else ("examples", "mask")


def choose_attention() -> str:
    """Return flash_attention_2 if it is installed and there is a GPU, else PyTorch's own."""
    flash = importlib.util.find_spec("flash_attn") is not None and choose_device() == "cuda"
    return "flash_attention_2" if flash else "sdpa"


def seconds(call: Callable[[], Any]) -> float:
    """Return the seconds of a call until the device has finished."""
    wait = _torch().cuda.synchronize if choose_device() == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - started


def to_numpy(tensor: Any) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()


def build(config: ModelConfig, dtype: str, device: str) -> Any:
    """Return the PyTorch model with the weights of `random_params`, made on its device."""
    from convert.hf.mapping import TRANSFORMS, published_tensors
    from launch.bench.torch_side import PlainLCLM

    torch = _torch()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = PlainLCLM(config, choose_attention(), dtype)
    finally:
        torch.set_default_dtype(torch.float32)
    parts = {part: getattr(model, part).state_dict() for part in ("encoder", "adapter", "decoder")}
    shapes = parameter_shapes(config)
    with torch.no_grad():
        for tensor in published_tensors(shapes):
            place = parts[tensor.part][tensor.key]
            if is_scale(tensor.path):
                place.fill_(1.0)
                continue
            shape = shapes[tensor.path]
            stacked = f"/{LAYERS}/" in tensor.path
            own = shape[1:] if stacked else shape
            values = hashed(seed_of(tensor.path, tensor.layer), int(np.prod(own)), device)
            inputs = TRANSFORMS[tensor.transform]
            if inputs is not None:
                values = values.reshape(int(np.prod(own[:inputs])), -1).T
            place.copy_(values.reshape(place.shape))
    return model


def hashed(seed: int, count: int, device: str) -> Any:
    """Return the `count` weights that `weights.random_params` makes from this seed."""
    torch = _torch()

    def mix(x: Any) -> Any:
        for factor, shift in zip(FACTORS, (16, 13), strict=True):
            x = ((x ^ (x >> shift)) * factor) & MAX_UINT32
        return x ^ (x >> 16)

    parts = []
    for start in range(0, count, 1 << 26):
        index = torch.arange(start, min(count, start + (1 << 26)), dtype=torch.int64, device=device)
        bits = mix(mix(index) ^ seed) >> 24
        parts.append(((2 * bits - LARGEST).to(torch.float32) * STEP).to(torch.bfloat16))
    return torch.cat(parts)
