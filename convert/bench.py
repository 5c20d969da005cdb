"""Speed and memory of the converter, both ways, on random weights of the published shapes: python -m convert.bench DIRECTORY

Every step is a process of its own; a plain copy of the same files in the same run is the yardstick. At most two copies of
the checkpoint are on disk at a time (2 x 9.2 GB for 0.6B + 4B in bf16).
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from configs.lclm_0p6b_4b import config as published_config
from convert.from_hf import PROVENANCE, hash_file
from convert.hf_config import write_compression, write_tower
from convert.hf_files import ADAPTER, NewTensor, new_directory, read_json, write_file, write_json, write_weights
from convert.mapping import NUMPY, parameter_shapes, published_tensors
from lclm_jax.command import run
from lclm_jax.config import ModelConfig
from lclm_jax.errors import UserError
from lclm_jax.progress import track

GIB = 2**30
TOWERS = ("decoder", "encoder")


@dataclass(frozen=True)
class Figure:
    """One step: what it took, and the most memory it held."""

    name: str
    seconds: float
    peak: int  # bytes resident


def bench(directory: Path, config: ModelConfig, dtype: str = "BF16") -> tuple[list[Figure], int, int]:
    """Makes a checkpoint of these shapes, copies it, converts it and converts it back. Returns the figures of the last
    three, the checkpoint's bytes and those of its largest tensor. Raises UserError when what comes back is not what was."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    source, copy, ours, back = (directory / name for name in ("source", "copy", "ours", "back"))
    largest = write_random(source, config, dtype)
    size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    figures = [measure("plain copy", ["cp", "-r", str(source), str(copy)])]
    shutil.rmtree(copy)
    figures.append(measure("from_hf", [sys.executable, "-m", "convert.from_hf", str(source), str(ours)]))
    shutil.rmtree(source)
    figures.append(measure("to_hf", [sys.executable, "-m", "convert.to_hf", str(ours), str(back)]))
    before = read_json(ours / PROVENANCE)["files"]
    differing = [name for name, was in track(list(before.items()), "comparing") if hash_file(back / name) != was]
    shutil.rmtree(directory)
    if differing:
        raise UserError(f"after both conversions these files are not what they were: {', '.join(differing)}")
    return figures, size, largest


def measure(name: str, command: Sequence[str]) -> Figure:
    """Runs a command until its data are on disk. Raises UserError when it fails."""
    os.sync()
    begun = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    os.sync()
    if status:
        raise UserError(f"{' '.join(command)} failed with status {os.waitstatus_to_exitcode(status)}")
    return Figure(name, time.perf_counter() - begun, usage.ru_maxrss * 1024)


def write_random(directory: Path, config: ModelConfig, dtype: str) -> int:
    """A published checkpoint of random weights, without tokenizers. Returns the bytes of its largest tensor."""
    noise = np.random.default_rng(0).normal(size=1 << 22).astype(np.float32).astype(NUMPY[dtype])
    parts: dict[str, list[NewTensor]] = {"decoder": [], "encoder": [], "adapter": []}
    for tensor in published_tensors(parameter_shapes(config)):
        parts[tensor.part].append(NewTensor(tensor.key, tensor.shape, dtype, partial(repeat, noise, int(np.prod(tensor.shape)))))
    with new_directory(directory) as partial_directory:
        writers = [write_weights(partial_directory / part, parts[part]) for part in TOWERS]
        for _ in track((size for writer in writers for size in writer), "making a checkpoint"):
            pass
        list(write_file(partial_directory / ADAPTER[0], parts["adapter"]))
        for part in TOWERS:
            write_json(partial_directory / part / "config.json", write_tower(getattr(config, part), part, "bfloat16", None))
        for name, values in zip(("model_config.json", "processor_config.json"), write_compression(config), strict=True):
            write_json(partial_directory / name, values)
    return max(tensor.size for tensors in parts.values() for tensor in tensors)


def repeat(noise: np.ndarray, count: int):
    """`count` numbers, in blocks, each block begun elsewhere in the noise so that no two tensors are the same by chance."""
    for start in range(0, count, len(noise)):
        yield np.roll(noise, count + start)[: count - start]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where to work; removed afterwards")
    arguments = parser.parse_args()
    figures, size, largest = bench(arguments.directory, published_config().model)
    limit = 3 * largest + GIB
    table = Table("step", "seconds", "MB/s", "share of the copy's speed", "peak RSS, MiB")
    for figure in figures:
        speed, share = size / 1e6 / figure.seconds, figures[0].seconds / figure.seconds
        table.add_row(figure.name, f"{figure.seconds:.1f}", f"{speed:.0f}", f"{share:.0%}", f"{figure.peak / 2**20:.0f}")
    Console().print(table)
    sys.stdout.write(
        f"{size / 1e9:.1f} GB, largest tensor {largest / 2**20:.0f} MiB, limit of the memory {limit / 2**20:.0f} MiB; "
        "what came back is byte-equal\n"
    )
    if max(figure.peak for figure in figures[1:]) > limit:
        raise UserError(f"a conversion held more than {limit / 2**20:.0f} MiB (3 x the largest tensor + 1 GiB)")


if __name__ == "__main__":
    run(main)
