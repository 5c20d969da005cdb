"""Evaluate a trained model on held-out text, without training anything.

python -m launch.show --config configs/small.py --checkpoint tests/data/models/small
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from configs.lclm_0p6b_4b_16x import config as published_config
from convert.from_hf import from_hf
from lclm_jax.cli import add_checkpoint_argument, add_config_arguments, make_parser, path, run
from lclm_jax.config import ConfigError
from lclm_jax.evaluation.held_out.suite import evaluate
from lclm_jax.experiment import load_experiment
from lclm_jax.inference.language_model import load
from lclm_jax.reports.terminal import show_evaluation

MAX_QUESTIONS = 128
CHECKPOINT = Path("tests/data/models/small")


def main():
    parser = make_parser(__doc__)
    add_config_arguments(parser, default="configs/small.py")
    add_checkpoint_argument(parser, "a model in the published layout", CHECKPOINT)
    parser.add_argument(
        "--out", type=path, default="runs/show", help="directory for the held-out text"
    )
    arguments = parser.parse_args()

    settings = [*arguments.set, f"data.directory={arguments.out}"]
    experiment = load_experiment(arguments.config, settings)
    if experiment.prepare_held_out is None:
        raise ConfigError(
            f"{arguments.config} prepares no held-out text; expected Experiment("
            "prepare_held_out=...) as in configs/small.py"
        )
    with TemporaryDirectory() as directory:
        model = load(from_hf(arguments.checkpoint, Path(directory) / "converted"))
    experiment.prepare_held_out(experiment.config, model.tokenizer)

    evaluation = experiment.evaluation
    questions = min(evaluation.question_count, MAX_QUESTIONS)
    evaluation = replace(evaluation, question_count=questions)
    show_evaluation(evaluate(model, experiment.config, evaluation, published_config().model))


if __name__ == "__main__":
    run(main)
