"""Trains configs/tiny.py for 100 steps and prints a hash of the parameters of every component.

    python -m tests.training_hash runs/hash

Equal lines before and after a change of the code show that the change computes the same program.
Compare runs of one machine and one environment only: another compiler rounds differently.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from lclm_jax.checkpoint.model_files import read_model
from lclm_jax.checkpoint.steps import load_params
from lclm_jax.config import MeshConfig
from lclm_jax.distributed.sharding import make_mesh
from lclm_jax.model.params import abstract_params, flatten

STEPS = {"language": 20, "adapter": 20, "encoder": 20, "decoder": 20, "sft": 20}


def train(directory: Path):
    """Runs `launch.train` in `directory`; finished work there is used again."""
    settings = {f"stages.{stage}.steps": steps for stage, steps in STEPS.items()}
    settings |= {"run.directory": directory / "run", "data.directory": directory / "data"}
    assignments = [word for key in settings for word in ("--set", f"{key}={settings[key]}")]
    command = ("-m", "launch.train", "--config", "configs/tiny.py", *assignments)
    subprocess.run((sys.executable, *command), check=True)


def hash_components(directory: Path) -> dict[str, str]:
    """sha256 of names, dtypes, shapes and bytes of a checkpoint's parameters, by component."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    flat = flatten(load_params(directory, abstract_params(read_model(directory), mesh)))
    digests = {}
    for path in sorted(flat):
        digest = digests.setdefault(path.split("/")[0], hashlib.sha256())
        array = np.asarray(flat[path])
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return {component: digest.hexdigest() for component, digest in digests.items()}


def main():
    directory = Path(sys.argv[1])
    train(directory)
    for component, digest in hash_components(directory / "run").items():
        sys.stdout.write(f"{component:<8} {digest}\n")


if __name__ == "__main__":
    main()
