"""Measure speed and memory of the converter, both ways, on random weights of the published shapes.

    python -m launch.bench.convert DIRECTORY

Every step is a process of its own and ends when its data are on disk. Before each conversion a
plain copy of the same files is timed for comparison. Disk speeds vary, so there are several rounds
and the medians count. At most two copies of the checkpoint are on disk at a time (2 x 9.3 GB for
0.6B + 4B in bf16).
"""

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from rich.table import Table

from configs.lclm_0p6b_4b_16x import config as published_config
from convert.hf.config import write_compression, write_tower
from convert.hf.files import NewTensor, read_json, write_json
from convert.hf.mapping import NUMPY_DTYPES, published_tensors
from convert.hf.provenance import PROVENANCE, hash_file
from convert.to_hf import TOWERS, write_parts
from lclm_jax.cli import make_parser, path, run, setting, show_table
from lclm_jax.config import ModelConfig
from lclm_jax.config.settings import Size
from lclm_jax.errors import UserError
from lclm_jax.files.directories import new_directory
from lclm_jax.model.params import parameter_shapes
from lclm_jax.progress import track

GIB = 2**30


@dataclass(frozen=True)
class Figure:
    """Seconds and peak memory of a step."""

    seconds: float
    peak: int  # resident bytes


@dataclass(frozen=True)
class Pair:
    """A conversion, and a plain copy of its input just before it."""

    name: str
    copy: Figure
    conversion: Figure

    @property
    def share(self) -> float:
        """Speed of the conversion relative to the copy."""
        return self.copy.seconds / self.conversion.seconds


@dataclass(frozen=True)
class Result:
    """Measurements of all rounds, and the size of what was converted."""

    size: int  # bytes of the checkpoint
    largest: int  # bytes of its largest tensor
    pairs: list[Pair]


def bench(directory: Path, config: ModelConfig, rounds: int, dtype: str = "BF16") -> Result:
    """Write a random checkpoint and convert it from and to Hugging Face files `rounds` times.

    Each round starts from the files that the round before wrote. Raises UserError if they are not
    equal, byte by byte, to the first.
    """
    if directory.exists():
        raise FileExistsError(f"{directory} exists; name a new directory or remove it first")
    directory.mkdir(parents=True)
    source, converted = directory / "source", directory / "ours"
    largest = write_random(source, config, dtype)
    size = sum(file.stat().st_size for file in source.rglob("*.safetensors"))
    pairs = []
    for _ in range(rounds):
        pairs.append(compare("from_hf", source, converted))
        hashes = read_json(converted / PROVENANCE)["files"]
        shutil.rmtree(source)
        pairs.append(compare("to_hf", converted, source))
        shutil.rmtree(converted)
        differing = [
            name
            for name, expected in track(list(hashes.items()), "comparing")
            if hash_file(source / name) != expected
        ]
        if differing:
            raise UserError(
                "expected the same files after converting both ways, these differ: "
                f"{', '.join(differing)}"
            )
    shutil.rmtree(directory)
    return Result(size, largest, pairs)


def compare(module: str, source: Path, destination: Path) -> Pair:
    """Time a plain copy of `source` and then its conversion to `destination`."""
    copy = measure(["cp", "-r", str(source), str(destination)])
    shutil.rmtree(destination)
    return Pair(
        module,
        copy,
        measure([sys.executable, "-m", f"convert.{module}", str(source), str(destination)]),
    )


def measure(command: list[str]) -> Figure:
    """Run a command until its data are on disk. Raises UserError if it fails."""
    os.sync()
    started = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    os.sync()
    if status:
        raise UserError(
            f"{' '.join(command)} failed with status {os.waitstatus_to_exitcode(status)}"
        )
    return Figure(time.perf_counter() - started, usage.ru_maxrss * 1024)


def write_random(directory: Path, config: ModelConfig, dtype: str) -> int:
    """Write a checkpoint of random weights in the published format, without tokenizers.

    Returns the size of its largest tensor in bytes.
    """
    noise = (
        np.random.default_rng(0).normal(size=1 << 22).astype(np.float32).astype(NUMPY_DTYPES[dtype])
    )
    parts: dict[str, list[NewTensor]] = {"decoder": [], "encoder": [], "adapter": []}
    for tensor in published_tensors(parameter_shapes(config)):
        parts[tensor.part].append(
            NewTensor(tensor.key, tensor.shape, dtype, repeat(noise, math.prod(tensor.shape)))
        )
    with new_directory(directory) as partial_directory:
        for _ in track(write_parts(partial_directory, parts), "making a checkpoint"):
            pass
        for part in TOWERS:
            write_json(
                partial_directory / part / "config.json",
                write_tower(getattr(config, part), part, "bfloat16", None),
            )
        for name, values in zip(
            ("model_config.json", "processor_config.json"), write_compression(config), strict=True
        ):
            write_json(partial_directory / name, values)
    return max(tensor.size for tensors in parts.values() for tensor in tensors)


def repeat(noise: np.ndarray, count: int) -> list[Callable[[], np.ndarray]]:
    """Return functions that make `count` numbers, block by block.

    Each block begins at another offset in the noise, so that no two tensors are equal.
    """
    return [
        partial(_roll, noise, count + start, count - start) for start in range(0, count, len(noise))
    ]


def _roll(noise: np.ndarray, shift: int, count: int) -> np.ndarray:
    return np.roll(noise, shift)[:count]


def main():
    parser = make_parser(__doc__)
    parser.add_argument("directory", type=path, help="new directory to work in; removed afterwards")
    parser.add_argument("--rounds", type=setting(Size), default=3)
    arguments = parser.parse_args()
    result = bench(arguments.directory, published_config().model, arguments.rounds)
    table = Table(
        "step", "copy, MB/s", "conversion, MB/s", "share of the copy's speed", "peak RSS, MiB"
    )
    for pair in result.pairs:
        table.add_row(*_row(pair.name, result.size, [pair]))
    for name in ("from_hf", "to_hf"):
        table.add_row(
            *_row(
                f"{name}, median", result.size, [pair for pair in result.pairs if pair.name == name]
            )
        )
    show_table(table)
    limit, peak = 3 * result.largest + GIB, max(pair.conversion.peak for pair in result.pairs)
    sys.stdout.write(
        f"{result.size / 1e9:.1f} GB, largest tensor {result.largest / 2**20:.0f} MiB; "
        f"peak memory {peak / 2**20:.0f} MiB, limit {limit / 2**20:.0f} MiB; "
        "files converted both ways are byte-equal\n"
    )
    if peak > limit:
        raise UserError(
            f"expected at most {limit / 2**20:.0f} MiB of memory (3 x the largest tensor + 1 GiB), "
            f"a conversion used {peak / 2**20:.0f} MiB"
        )


def _row(name: str, size: int, pairs: Sequence[Pair]) -> tuple[str, ...]:
    copy = median(size / 1e6 / pair.copy.seconds for pair in pairs)
    conversion = median(size / 1e6 / pair.conversion.seconds for pair in pairs)
    share, peak = median(pair.share for pair in pairs), max(pair.conversion.peak for pair in pairs)
    return name, f"{copy:.0f}", f"{conversion:.0f}", f"{share:.0%}", f"{peak / 2**20:.0f}"


if __name__ == "__main__":
    run(main)
