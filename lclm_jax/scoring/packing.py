"""Records to score as batches: packed as training packs them, or one in a row."""

from collections.abc import Sequence

from lclm_jax.batch import Batch
from lclm_jax.config import ModelConfig
from lclm_jax.data.loading import PackedRow, RowBudget, assemble, choose_row, fill_row
from lclm_jax.data.records import Span, lay_out, measure
from lclm_jax.data.text.tokenizer import MemoryTokens

ROWS_PER_BATCH = 16  # of single records

GroupedRecord = tuple[int, Sequence[Span]]  # the group whose score it counts for, and the record


def pack_full_rows(
    records: Sequence[GroupedRecord],
    config: ModelConfig,
    memory: MemoryTokens,
    budget: RowBudget,
    rows: int,
    own_rows: Sequence[int],
) -> list[Batch]:
    """Pack records into batches of `rows` rows, as training does; return `own_rows` of each.

    The last batch is filled up with empty rows.
    """
    examples = [lay_out(record, config, memory, group) for group, record in records]
    sizes = [measure(record, config) for _, record in records]
    waiting = list(range(len(examples)))
    packed: list[PackedRow] = []
    while waiting:
        chosen, packer = choose_row([sizes[i] for i in waiting], budget)
        packed.append(PackedRow(budget, [examples[waiting[i]] for i in chosen], packer.offsets))
        waiting = [number for i, number in enumerate(waiting) if i not in chosen]
    packed += [fill_row(budget, [])] * (-len(packed) % rows)
    starts = range(0, len(packed), rows)
    return [assemble([packed[start + row] for row in own_rows]) for start in starts]


def pack_single_records(
    records: Sequence[GroupedRecord], config: ModelConfig, memory: MemoryTokens
) -> list[Batch]:
    """Pack records into batches of one shape, each record in a row of its own."""
    if not records:
        return []
    examples = [lay_out(record, config, memory, group) for group, record in records]
    positions = max(map(len, examples))
    windows = max(1, max(len(example.pieces) for example in examples))
    budget = RowBudget.for_model(config, positions, windows)
    rows = [fill_row(budget, [example]) for example in examples]
    rows += [fill_row(budget, [])] * (-len(rows) % ROWS_PER_BATCH)
    starts = range(0, len(rows), ROWS_PER_BATCH)
    return [assemble(rows[start : start + ROWS_PER_BATCH]) for start in starts]
