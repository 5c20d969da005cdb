"""Trains, or continues to train, what a config describes.

python -m launch.train --config configs/tiny.py --set stages.adapter.steps=100
python -m launch.train --config configs/tiny.py --stage adapter       # that stage alone, by name or number from 0
echo 5 > RUN_DIR/profile                                              # while it runs: traces the next 5 steps
"""

import argparse
import logging
from pathlib import Path

from lclm_jax.cli import read_config, run
from lclm_jax.compilation import enable_cache
from lclm_jax.distributed.job import join
from lclm_jax.distributed.processes import once
from lclm_jax.training.loop import train


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a file in configs/")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting; repeatable",
    )
    parser.add_argument("--stage", help="run this stage alone")
    arguments = parser.parse_args()
    join()
    config, names = read_config(arguments.config, arguments.set)
    if "prepare" in names:
        once("prepare the data", lambda: names["prepare"](config))
    enable_cache(Path(config.run.directory) / "programs")  # for when it is started again
    directory = train(config, arguments.stage)
    logging.info("trained; the checkpoint is %s", directory)


if __name__ == "__main__":
    run(main, cache=False)
