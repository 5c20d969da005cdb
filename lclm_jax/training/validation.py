"""What a model in training makes of held-out examples, read as latents, as full text and without their contexts.

The same examples in every view, packed into batches of the shape that is trained on, so that a pod reads them as it trains.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax

from lclm_jax.batch import Batch
from lclm_jax.config import Config, StageConfig
from lclm_jax.data.loading import PackedRow, StageData, StreamReader, assemble, choose_row, fill_row
from lclm_jax.data.records import VIEWS, Span, lay_out, measure
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.distributed.sharding import batch_sharding, global_batch, own_rows, replicated
from lclm_jax.training.step import STREAM_SUMS, Metrics, read_losses, stream_sums
from lclm_jax.typing import Params

Figures = dict[str, dict[str, dict[str, float]]]  # stream -> view -> loss, accuracy, tokens


class Validation:
    """Held-out examples of a stage's streams in batches, and the program that reads them. Needs a mesh in scope when called."""

    def __init__(
        self, config: Config, stage: StageConfig, tokenizer: Tokenizer, mesh: jax.sharding.Mesh
    ):
        self.config, self.stage, self.mesh = config, stage, mesh
        data = StageData(config, stage, tokenizer)
        records = held_out_records(data)
        rows = own_rows(batch_sharding(mesh), config.data.batch_rows)
        self.batches = {view: pack(records, see, data, rows) for view, see in VIEWS.items()}
        self._read = jax.jit(
            partial(_sums, config=config, count=len(stage.streams)), out_shardings=replicated(mesh)
        )

    def __call__(self, params: Params) -> Figures:
        figures: Figures = {}
        for view, batches in self.batches.items():
            whole = (
                global_batch(own, batch_sharding(self.mesh), self.config.data.batch_rows)
                for own in batches
            )
            read = [jax.device_get(self._read(params, batch)) for batch in whole]
            for number, stream in enumerate(self.stage.streams):
                nll, correct, tokens = (
                    sum(float(sums[key][number]) for sums in read) for key in STREAM_SUMS
                )
                if tokens:
                    told = {"loss": nll / tokens, "accuracy": correct / tokens, "tokens": tokens}
                    figures.setdefault(stream.name, {})[view] = told
        return figures


def _sums(params: Params, batch: Batch, config: Config, count: int) -> Metrics:
    return stream_sums(batch, *read_losses(params, batch, config)[1:], count)


def held_out_records(data: StageData) -> list[tuple[int, list[Span]]]:
    """(stream, record) of the first held-out examples of every stream that fit into a row in every view.

    Contexts are contexts, even where the stage trains on them as plain text.
    """
    config, budget = data.config, data.budget
    records: list[tuple[int, list[Span]]] = []
    for number, stream in enumerate(data.stage.streams):
        held = data.open_source(stream.source, "held")
        reader, found = StreamReader(data, number, held).compressing(), 0
        for i in range(len(held)):
            record = reader.record(i)
            sizes = [measure(see(record), config.model) for see in VIEWS.values()] if record else []
            if sizes and all(budget.fits(size) and size.trained for size in sizes):
                records.append((number, record))
                found += 1
            if found == config.run.validation_examples:
                break
    return records


def pack(
    records: Sequence[tuple[int, list[Span]]],
    see: Callable[[Sequence[Span]], Sequence[Span]],
    data: StageData,
    rows: Sequence[int],
) -> list[Batch]:
    """These rows of as many batches as the records take in a view; the last is filled up with empty rows."""
    config, budget = data.config, data.budget
    memory = data.tokenizer.memory
    examples = [lay_out(see(record), config.model, memory, number) for number, record in records]
    sizes = [measure(see(record), config.model) for _, record in records]
    waiting, packed = list(range(len(examples))), []
    while waiting:
        chosen, packer = choose_row([sizes[i] for i in waiting], budget)
        packed.append(PackedRow(budget, [examples[waiting[i]] for i in chosen], packer.offsets))
        waiting = [number for i, number in enumerate(waiting) if i not in chosen]
    packed += [fill_row(budget, [])] * (-len(packed) % config.data.batch_rows)
    starts = range(0, len(packed), config.data.batch_rows)
    return [assemble([packed[start + row] for row in rows]) for start in starts]
