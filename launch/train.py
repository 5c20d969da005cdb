"""Train the stages of a config; a run that was interrupted continues.

python -m launch.train --config configs/tiny.py --set stages.adapter.steps=100
python -m launch.train --config configs/tiny.py --stage adapter   # one stage: its name or number
echo 5 > RUN_DIR/profile                                  # during training: trace the next 5 steps
"""

import logging
from functools import partial
from pathlib import Path

from lclm_jax.cli import add_config_arguments, make_parser, run
from lclm_jax.compilation import enable_cache
from lclm_jax.distributed.job import join
from lclm_jax.distributed.processes import once
from lclm_jax.experiment import load_experiment
from lclm_jax.files.run_layout import PROGRAMS
from lclm_jax.training.loop import train


def main():
    parser = make_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--stage", help="train only this stage, by name or number from 0")
    arguments = parser.parse_args()

    join()
    experiment = load_experiment(arguments.config, arguments.set)
    config = experiment.config
    if experiment.prepare is not None:
        once("prepare the data", partial(experiment.prepare, config))

    enable_cache(Path(config.run.directory) / PROGRAMS)  # a restarted run compiles nothing again
    directory = train(config, arguments.stage)
    logging.info("trained; the checkpoint is %s", directory)


if __name__ == "__main__":
    run(main, cache=False)
