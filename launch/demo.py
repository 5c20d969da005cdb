"""From nothing to a trained, compressing model and a report about it; whatever is there already is reused.

python -m launch.demo --config configs/tiny.py
"""

import argparse
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

from configs.lclm_0p6b_4b_16x import config as published
from convert.from_hf import from_hf
from convert.to_hf import to_hf
from lclm_jax.checkpoint.steps import Checkpoints
from lclm_jax.cli import read_config, run
from lclm_jax.config import Config, ModelConfig
from lclm_jax.costs.work import compressed_cost, uncompressed_cost
from lclm_jax.data.loading import PackedBatches, StageData
from lclm_jax.evaluation.held_out import (
    Tests,
    continuation_loss,
    continuation_samples,
    question_accuracy,
    reconstruction_accuracy,
    reconstruction_samples,
)
from lclm_jax.files.atomic import write_whole
from lclm_jax.files.directories import locked
from lclm_jax.files.reading import read_json
from lclm_jax.inference.language_model import LanguageModel, load
from lclm_jax.model.lclm import LCLM, apply
from lclm_jax.progress import track
from lclm_jax.reports.run import write_report
from lclm_jax.training.loop import train

PASSAGES = 100


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/tiny.py")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    config, names = read_config(arguments.config, arguments.set)
    directory = Path(config.run.directory)
    exports = directory.with_name(f"{directory.name}.hf")  # an export never lies in its source
    with locked(exports):
        names["prepare"](config)
        run_directory = train(config)
        with Checkpoints(run_directory) as checkpoints:
            step = checkpoints.latest
        evaluation = run_directory / "evaluation.json"
        if not evaluation.exists() or read_json(evaluation).get("step") != step:
            tests = names.get("EVALUATED", Tests())
            result = evaluate(load(run_directory), config, tests) | {
                "step": step,
                "seconds": time.perf_counter() - begun,
            }
            write_whole(evaluation, json.dumps(result, indent=2))
        exported = exports / str(step)
        if not exported.with_suffix(".json").exists():
            result = json.dumps(round_trip(run_directory, exported, config), indent=2)
            write_whole(run_directory / "round_trip.json", result)
            write_whole(exported.with_suffix(".json"), result)
        report = write_report(run_directory)
    logging.info(
        "done after %.0f s; the report is %s", time.perf_counter() - begun, report.resolve()
    )


def evaluate(model: LanguageModel, config: Config, tests: Tests) -> dict:
    """Everything the report shows of the trained model, on held-out documents."""
    directory, data = config.data.directory, config.data
    assert data.reconstruction is not None, "the demo reconstructs passages of set lengths"
    shortest, longest = data.reconstruction
    accuracy = [
        reconstruction_accuracy(model, directory, source, data, lengths, PASSAGES, track)
        for source in tests.passages
        for lengths in tests.lengths or ((shortest // 2, shortest // 2), (shortest, longest))
    ]
    questions, answers = None, []
    if tests.questions:
        questions, answers = question_accuracy(
            model, directory, tests.questions, data, tests.asked, track
        )
    return {
        "parameters": {
            name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in model.params.items()
        },
        "ratio": model.config.compression.ratio,
        "window": model.config.compression.window,
        "reconstruction": accuracy,
        "continuation": [
            continuation_loss(model, directory, source, data, PASSAGES, track)
            for source in tests.continued
        ],
        "questions": questions,
        "cost": {
            "this model": costs(model.config, [2**k for k in range(6, 14)]),
            "published 0.6B + 4B, ratio 16": costs(
                published().model, [2**k for k in range(10, 21)]
            ),
        },
        "samples": {
            "reconstruction": [
                sample
                for source in tests.passages
                for sample in reconstruction_samples(model, directory, source, data, 4)
            ],
            "continuation": [
                sample
                for source in tests.continued[:1]
                for sample in continuation_samples(model, directory, source, data, 4)
            ],
            "questions": answers[:8],
        },
    }


def costs(config: ModelConfig, lengths: list[int]) -> list[dict]:
    """Cost of reading contexts of these lengths, plain and compressed."""
    return [
        {
            "tokens": n,
            "plain": asdict(uncompressed_cost(n, config)),
            "compressed": asdict(compressed_cost(n, config)),
        }
        for n in lengths
    ]


def round_trip(run_directory: Path, exported: Path, config: Config) -> dict:
    """Exports to the published layout, reads that back, and compares the logits of one batch of held-out rows."""
    if not exported.exists():
        to_hf(run_directory, exported)
    returned = exported.parent / f"{exported.name}.back"
    if not returned.exists():
        from_hf(exported, returned)
    before, after = load(run_directory), load(returned)
    stage = StageData(config, config.stages[-1], before.tokenizer)
    batch = next(iter(PackedBatches(stage.mix_streams("held"))))
    first, second = (np.asarray(logits(model, batch)) for model in (before, after))
    files = list(exported.rglob("*.safetensors"))
    return {
        "directory": str(exported),
        "tensors": len(jax.tree.leaves(before.params)),
        "bytes": sum(file.stat().st_size for file in files),
        "largest_logit_difference": float(np.max(np.abs(first - second))),
        "identical": bool(np.array_equal(first, second)),
    }


def logits(model: LanguageModel, batch) -> jax.Array:
    hidden = apply(model.config, model.params, batch)
    return apply(model.config, model.params, hidden, method=LCLM.logits)


if __name__ == "__main__":
    run(main)
