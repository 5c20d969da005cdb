"""Validation during training: held-out examples scored in every view of their contexts.

The views are latents, full text, and no contexts. They have the same examples, packed into batches
of the shape that is trained on, so that a pod reads them as it reads its training data.
"""

import time
from collections.abc import Callable, Mapping

import jax

from lclm_jax.data.loading import StageData, StreamReader
from lclm_jax.data.records import VIEWS, Span, View, measure
from lclm_jax.distributed.sharding import batch_sharding, own_rows
from lclm_jax.scoring import Score, Scorer, pack_full_rows
from lclm_jax.training.clock import StepClock
from lclm_jax.training.stage import StageRun
from lclm_jax.training.step_info import Hook, StepInfo
from lclm_jax.typing import Params

ViewScores = dict[str, dict[str, Score]]  # by stream and view


class Validation:
    """Held-out examples of a stage's streams, packed in every view, with a program to score them.

    The examples are the same whatever the views. The mesh must be in scope when it is called.
    """

    def __init__(self, data: StageData, mesh: jax.sharding.Mesh, views: Mapping[str, View] = VIEWS):
        config, rows = data.config, data.config.data.batch_rows
        records = held_out_records(data, config.run.validation_examples)
        own = own_rows(batch_sharding(mesh), rows)
        self.streams = [stream.name for stream in data.stage.streams]
        self.batches = {
            name: pack_full_rows(
                [(stream, view(record)) for stream, record in records],
                config.model,
                data.tokenizer.memory,
                data.budget,
                rows,
                own,
            )
            for name, view in views.items()
        }
        loss_chunk = config.run.loss_chunk
        self.scorer = Scorer(config.model, len(self.streams), loss_chunk, mesh, rows)

    def __call__(self, params: Params) -> ViewScores:
        """Return the scores of every stream that has held-out examples, by view."""
        results: ViewScores = {}
        for view, batches in self.batches.items():
            for stream, score in zip(self.streams, self.scorer(params, batches), strict=True):
                if score.tokens:
                    results.setdefault(stream, {})[view] = score
        return results


def validate_every(stage_run: StageRun, clock: StepClock, flush: Callable[[], None]) -> Hook:
    """Return a hook that validates every `run.validate_every` steps and at the last one.

    It does nothing where the setting is 0, nor at a step after which the run stops.
    """
    run, stage = stage_run.run, stage_run.stage
    every = run.config.run.validate_every
    if not every:
        return lambda info: None
    with clock.outside():
        validate = Validation(stage_run.data, run.mesh)

    def hook(info: StepInfo):
        if info.stopping or not info.due(every):
            return
        flush()
        with clock.outside():
            streams = scores_to_dict(validate(info.state.params))
        run.journal.validation(
            {"stage": stage.name, "step": info.step, "time": time.time(), "streams": streams}
        )

    return hook


def scores_to_dict(scores: ViewScores) -> dict[str, dict[str, dict[str, float]]]:
    """Return the scores as a line of the run's journal has them."""
    return {
        stream: {view: score.to_dict() for view, score in views.items()}
        for stream, views in scores.items()
    }


def held_out_records(data: StageData, limit: int) -> list[tuple[int, list[Span]]]:
    """Return (stream number, record) of the first `limit` held-out examples of every stream.

    Examples that do not fit into a row in every view are passed over. Contexts are compressed,
    even where the stage trains on them as plain text.
    """
    records: list[tuple[int, list[Span]]] = []
    for number, stream in enumerate(data.stage.streams):
        source = data.open_source(stream.source, "held")
        reader = StreamReader(data, number, source).compressing()
        count = 0
        for i in range(len(source)):
            record = reader.record(i)
            if record and _fits_in_every_view(record, data):
                records.append((number, record))
                count += 1
            if count == limit:
                break
    return records


def _fits_in_every_view(record: list[Span], data: StageData) -> bool:
    sizes = [measure(view(record), data.config.model) for view in VIEWS.values()]
    return all(data.budget.fits(size) and size.trained for size in sizes)
