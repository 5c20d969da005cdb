"""Trains, or continues to train, what a config describes.

python -m launch.train --config configs/tiny.py --set stages.adapter.steps=100
"""

import argparse
import logging

from launch.job import join
from lclm_jax.command import read_config, run
from lclm_jax.processes import once
from lclm_jax.train import train


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a file in configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; repeatable")
    arguments = parser.parse_args()
    join()
    config, names = read_config(arguments.config, arguments.set)
    if "prepare" in names:
        once("prepare the data", lambda: names["prepare"](config))
    directory = train(config)
    logging.info("trained; the checkpoint is %s", directory)


if __name__ == "__main__":
    run(main)
