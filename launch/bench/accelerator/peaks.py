"""Peak speeds of a device: matrix products, memory, and attention at the model's shapes."""

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp

from launch.bench.accelerator.backends import attention_backends, cudnn
from launch.bench.accelerator.record import Record, Result
from launch.bench.accelerator.rows import SHARES, segments_of
from launch.bench.accelerator.sizes import Sizes
from lclm_jax.batch import Places
from lclm_jax.config import TransformerConfig
from lclm_jax.costs.chips import find_chip
from lclm_jax.evaluation.memory import memory_limit
from lclm_jax.evaluation.timing import middle, pipelined
from lclm_jax.model.attention.shards import Backend
from lclm_jax.typing import Array
from lclm_jax.version import code_version

PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "flax", "numpy", "torch", "transformers")
COMPILING_THREADS = 8
NVIDIA_SMI_FIELDS = "name,driver_version,memory.total,power.limit,clocks.max.sm"


@dataclass(frozen=True)
class Machine(Result):
    """Device, packages and code of a run."""

    device: str
    platform: str
    memory_limit: int | None  # bytes
    nvidia: str  # from nvidia-smi
    data_sheet_flops: float | None  # per second, bfloat16
    data_sheet_memory_speed: float | None  # bytes per second
    python: str
    packages: dict[str, str]
    code: str


@dataclass(frozen=True)
class Speed(Result):
    """Median time of a program, and its speed."""

    seconds: float
    rounds: list[float]
    flops_per_second: float | None = None
    bytes_per_second: float | None = None


def run(sizes: Sizes, record: Record):
    record.measure("machine", machine)
    record.measure("matrix product, bfloat16", partial(measure_product, sizes.product))
    record.measure("memory", partial(measure_memory, sizes.copied))
    cases = attention_cases(sizes)
    missing = [name for name in cases if name not in record.measurements]
    with ThreadPoolExecutor(COMPILING_THREADS) as threads:
        compiling = {name: threads.submit(compile_attention, cases[name]) for name in missing}
    for name, program in compiling.items():
        record.measure(name, lambda program=program: measure_attention(program.result()))


def machine() -> Machine:
    device = jax.devices()[0]
    chip = find_chip(device.device_kind)
    return Machine(
        device.device_kind,
        device.platform,
        memory_limit(),
        nvidia_smi(),
        chip.peak_flops if chip else None,
        chip.memory_bandwidth if chip else None,
        platform.python_version(),
        {name: number for name in PACKAGES if (number := version_of(name))},
        code_version(),
    )


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def nvidia_smi() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", f"--query-gpu={NVIDIA_SMI_FIELDS}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def measure_product(size: int) -> Speed:
    """Time the product of two random square matrices."""
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    multiply = jax.jit(lambda a, b: a @ b)
    rounds = pipelined(lambda: multiply(a, b))
    return Speed(middle(rounds), rounds, flops_per_second=2 * size**3 / middle(rounds))


def measure_memory(size: int) -> Speed:
    """Time a pass over a large array that writes another; count bytes read and written."""
    x = jax.random.normal(jax.random.key(0), (size // 4,), jnp.float32)
    scale = jax.jit(lambda x: x * 1.5)
    rounds = pipelined(lambda: scale(x))
    return Speed(middle(rounds), rounds, bytes_per_second=2 * x.nbytes / middle(rounds))


@dataclass(frozen=True)
class AttentionCase:
    """Attention of rows of one length."""

    backend: Backend
    name: str
    rows: int
    length: int
    tower: TransformerConfig
    backward: bool


def attention_cases(sizes: Sizes) -> dict[str, AttentionCase]:
    """Return the model's back end at every shape, and others for comparison.

    The blocked back end runs forward only, and cuDNN only where a row is one example.
    """
    own = next(iter(attention_backends()))
    ways: dict[str, Backend] = dict(attention_backends())
    if jax.default_backend() == "gpu":
        ways["cudnn"] = cudnn
    cases = {}
    for way, backend in ways.items():
        for shape in sizes.attention:
            for backward in (False, True):
                if way != own and ((way != "cudnn" and backward) or "packed" in shape[0]):
                    continue
                kind = "forward and backward" if backward else "forward"
                case = AttentionCase(backend, *shape, backward)
                cases[f"attention {way}, {shape[0]}, {kind}"] = case
    return cases


@dataclass(frozen=True)
class AttentionProgram:
    """A compiled case, its inputs, and the model FLOPs of a call."""

    call: Any
    inputs: tuple[Array, ...]
    flops: float


def measure_attention(program: AttentionProgram) -> Speed:
    rounds = pipelined(lambda: program.call(*program.inputs))
    return Speed(middle(rounds), rounds, flops_per_second=program.flops / middle(rounds))


def compile_attention(case: AttentionCase) -> AttentionProgram:
    """Compile a case and count its model FLOPs.

    A causal query attends to the keys before it only, and the backward pass counts twice the
    forward pass.
    """
    rows, length, tower, backward = case.rows, case.length, case.tower, case.backward
    lengths = example_lengths(case.name, length)
    segments, positions = segments_of(lengths, length)
    places = Places(*(jnp.tile(x, (rows, 1)) for x in (segments, positions)))
    shapes = (
        (rows, length, tower.heads, tower.head_dim),
        *[(rows, tower.kv_heads, length, tower.head_dim)] * 2,
    )
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (
        jax.random.normal(key, shape, jnp.bfloat16)
        for key, shape in zip(keys[:3], shapes, strict=True)
    )
    given = jax.random.normal(keys[3], shapes[0], jnp.bfloat16)
    call = attention_call(case.backend, places, tower.causal, backward)
    inputs = (q, k, v, given)
    pairs = rows * sum(n * n / (2 if tower.causal else 1) for n in lengths)
    flops = 4 * pairs * tower.heads * tower.head_dim * (3 if backward else 1)
    return AttentionProgram(call.lower(*inputs).compile(), inputs, flops)


def example_lengths(name: str, length: int) -> list[int]:
    """Return the lengths of a row's examples: as in the training row if packed, else one."""
    return [int(share * length) for share in SHARES] if "packed" in name else [length]


def attention_call(attend: Backend, places: Places, causal: bool, backward: bool) -> Any:
    def forward(q: Array, k: Array, v: Array) -> Array:
        return attend(q, k, v, places, causal, ("batch", "length"))

    def both(q: Array, k: Array, v: Array, given: Array) -> object:
        attended, pull = jax.vjp(forward, q, k, v)
        return attended, pull(given.astype(attended.dtype))

    return jax.jit(both if backward else lambda q, k, v, _: forward(q, k, v))
