"""Train a small model from scratch, evaluate it, export it and report; reuse finished steps.

python -m launch.demo --config configs/tiny.py
"""

import logging
import time
from pathlib import Path

from configs.lclm_0p6b_4b_16x import config as published_config
from convert.verify.export import verify_export
from lclm_jax.checkpoint.steps import Checkpoints
from lclm_jax.cli import add_config_arguments, make_parser, run
from lclm_jax.evaluation.held_out.suite import evaluate, is_evaluated, write_evaluation
from lclm_jax.experiment import load_experiment
from lclm_jax.files.directories import locked
from lclm_jax.inference.language_model import load
from lclm_jax.reports.run import write_report
from lclm_jax.training.loop import train


def main():
    parser = make_parser(__doc__)
    add_config_arguments(parser, default="configs/tiny.py")
    arguments = parser.parse_args()

    start = time.perf_counter()
    experiment = load_experiment(arguments.config, arguments.set)
    config = experiment.config
    run_directory = Path(config.run.directory)
    exports = run_directory.with_name(f"{run_directory.name}.hf")  # must not lie in its source
    with locked(exports):
        if experiment.prepare is not None:
            experiment.prepare(config)
        run_directory = train(config)
        with Checkpoints(run_directory) as checkpoints:
            step = checkpoints.latest

        if not is_evaluated(run_directory, step):
            model = load(run_directory)
            results = evaluate(model, config, experiment.evaluation, published_config().model)
            seconds = time.perf_counter() - start
            write_evaluation(run_directory, results | {"step": step, "seconds": seconds})
        verify_export(run_directory, exports / str(step), config)
        report = write_report(run_directory)

    seconds = time.perf_counter() - start
    logging.info("done after %.0f s; the report is %s", seconds, report.resolve())


if __name__ == "__main__":
    run(main)
