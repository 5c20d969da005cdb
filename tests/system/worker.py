"""The program and the config of the processes in test_processes.py.

`python tests/system/worker.py CONFIG DIRECTORY DATA,FSDP,CONTEXT,TENSOR ...` computes loss and
gradients of the parameters in DIRECTORY on these meshes; process 0 writes them, every process its
rows. As `--config tests/system/worker.py` it is the config in $TEST_CONFIG; with
$TEST_SIGNAL=PROCESS:STAGE:STEP:SIGNAL a process of its training sends itself a signal after that
step, or SIGKILL as it begins to save it.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from lclm_jax.checkpoint.steps import Checkpoints
from lclm_jax.config import Config, MeshConfig
from lclm_jax.config.values import from_dict
from lclm_jax.data.loading import PackedBatches, StageData
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.distributed import stopping
from lclm_jax.distributed.job import join
from lclm_jax.distributed.sharding import (
    batch_sharding,
    global_batch,
    make_mesh,
    own_rows,
    replicated,
)
from lclm_jax.model.params import abstract_params, unflatten
from lclm_jax.training.metrics import MetricsReader
from lclm_jax.training.optim import split_trained
from lclm_jax.training.step import objective


def read(path: str) -> Config:
    return from_dict(Config, json.loads(Path(path).read_text(encoding="utf-8")))


def config() -> Config:
    if disturbance := os.environ.get("TEST_SIGNAL"):
        process, *when, name = disturbance.split(":")
        if process == os.environ["JAX_PROCESS_ID"]:
            _disturb(when, signal.Signals[name])
    return read(os.environ["TEST_CONFIG"])


def _disturb(when: list[str], number: signal.Signals):
    """Send a signal at a step of a stage.

    A request to stop goes to the parent process, as a cluster sends it, and has arrived when the
    step begins.
    """

    def send(process: int):
        Path(os.environ["TEST_CONFIG"]).with_suffix(f".{number.name}").write_text(
            str(time.time()), encoding="utf-8"
        )
        os.kill(process, number)

    requests, init, save = [], stopping.StopRequest.__init__, Checkpoints.save
    read = MetricsReader.__call__

    def remember(self):
        init(self)
        requests.append(self)

    def read_and_ask(self, info):
        read(self, info)
        if [info.stage_run.stage.name, str(info.step + 1)] == when:
            send(os.getppid())
            while not requests[-1].asked:
                time.sleep(0.01)

    def save_or_die(self, step, trees, metadata):
        if [metadata["stage"], str(metadata["stage_step"])] == when:
            send(os.getpid())
        save(self, step, trees, metadata)

    if number == signal.SIGKILL:
        Checkpoints.save = save_or_die
    else:
        MetricsReader.__call__, stopping.StopRequest.__init__ = read_and_ask, remember


def compute(config: Config, directory: Path, shape: tuple[int, ...]):
    stage, tokenizer = config.stages[1], Tokenizer.load(Path(config.data.directory) / "tokenizer")
    mesh = make_mesh(MeshConfig(*shape))
    where, name = batch_sharding(mesh), "-".join(map(str, shape))
    rows = own_rows(where, config.data.batch_rows)
    own = next(iter(PackedBatches(StageData(config, stage, tokenizer).mix_streams(), rows)))
    np.savez(directory / f"{name}.rows{jax.process_index()}.npz", rows=rows, tokens=own.tokens)
    values = unflatten(dict(np.load(directory / "params.npz")))
    with jax.set_mesh(mesh):
        params = jax.tree.map(
            lambda x, like: jax.make_array_from_callback(
                x.shape, like.sharding, lambda index: x[index]
            ),
            values,
            abstract_params(config.model, mesh),
        )
        trained, frozen = split_trained(params, stage)
        run = jax.jit(
            jax.value_and_grad(partial(objective, config=config), has_aux=True),
            out_shardings=replicated(mesh),
        )
        (loss, _), gradients = jax.device_get(
            run(trained, frozen, global_batch(own, where, config.data.batch_rows))
        )
    if jax.process_index() == 0:
        np.savez(directory / f"{name}.npz", **gradients, loss=loss)


if __name__ == "__main__":
    join()
    for text in sys.argv[3:]:
        compute(read(sys.argv[1]), Path(sys.argv[2]), tuple(map(int, text.split(","))))
