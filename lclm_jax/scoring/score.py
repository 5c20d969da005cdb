"""Scores of records in several views: loss and accuracy over their trained tokens."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax

from lclm_jax.batch import Batch
from lclm_jax.config import ModelConfig
from lclm_jax.data.records import VIEWS, Span, View
from lclm_jax.data.text.tokenizer import MemoryTokens
from lclm_jax.distributed.sharding import batch_sharding, global_batch, replicated
from lclm_jax.scoring.losses import sum_by_group, token_losses
from lclm_jax.scoring.packing import pack_single_records
from lclm_jax.typing import Array, Params

LOSS_CHUNK = 1024  # positions whose logits exist at once


@dataclass(frozen=True)
class Score:
    """Sums over the trained tokens of some records."""

    nll: float = 0.0  # nats
    correct: float = 0.0  # tokens that were the model's best guess
    tokens: float = 0.0

    def __add__(self, other: "Score") -> "Score":
        return Score(self.nll + other.nll, self.correct + other.correct, self.tokens + other.tokens)

    @property
    def loss(self) -> float:
        """Nats per token; NaN without tokens."""
        return self.nll / self.tokens if self.tokens else math.nan

    @property
    def accuracy(self) -> float:
        """The share of tokens that were the model's best guess."""
        return self.correct / self.tokens if self.tokens else math.nan

    def to_dict(self) -> dict[str, float]:
        """Return loss, accuracy and number of tokens."""
        return {"loss": self.loss, "accuracy": self.accuracy, "tokens": self.tokens}


class Scorer:
    """A compiled program that scores batches, each group of records apart.

    An example's group is its number in `batch.streams`. With a mesh, batches are a host's own rows
    of global batches of `rows` rows, and the mesh must be in scope.
    """

    def __init__(
        self,
        config: ModelConfig,
        groups: int,
        loss_chunk: int = LOSS_CHUNK,
        mesh: jax.sharding.Mesh | None = None,
        rows: int | None = None,
    ):
        self.groups, self.mesh, self.rows = groups, mesh, rows
        self._program = _compile(config, groups, loss_chunk, mesh)

    def __call__(self, params: Params, batches: Iterable[Batch]) -> list[Score]:
        """Return the score of each group over all batches."""
        scores = [Score()] * self.groups
        for batch in batches:
            columns = jax.device_get(self._program(params, self._to_devices(batch)))
            for group, sums in enumerate(zip(*columns, strict=True)):
                scores[group] += Score(*map(float, sums))
        return scores

    def _to_devices(self, batch: Batch) -> Any:
        if self.mesh is None:
            return batch
        assert self.rows is not None  # as with every mesh
        return global_batch(batch, batch_sharding(self.mesh), self.rows)


@lru_cache
def _compile(
    config: ModelConfig, groups: int, loss_chunk: int, mesh: jax.sharding.Mesh | None
) -> Callable[[Params, Batch], tuple[Array, Array, Array]]:
    program = partial(_score_batch, config=config, groups=groups, loss_chunk=loss_chunk)
    # Replicated, so that every process can read the sums.
    return jax.jit(program, out_shardings=replicated(mesh) if mesh else None)


def _score_batch(
    params: Params, batch: Batch, config: ModelConfig, groups: int, loss_chunk: int
) -> tuple[Array, Array, Array]:
    _, nll, correct = token_losses(params, batch, config, loss_chunk)
    return sum_by_group(batch, nll, correct, groups)


def score(
    params: Params,
    records: Sequence[Sequence[Span]],
    config: ModelConfig,
    memory: MemoryTokens,
    views: Mapping[str, View] = VIEWS,
    progress: Callable[[Sequence[Batch], str], Iterable[Batch]] = lambda batches, _: batches,
) -> dict[str, list[Score]]:
    """Return the score of every record in every view, by the view's name.

    `progress` is called with the batches of a view and its name, and yields the batches.
    """
    scorer = Scorer(config, len(records))
    scores = {}
    for name, view in views.items():
        viewed = [(number, view(record)) for number, record in enumerate(records)]
        batches = pack_single_records(viewed, config, memory)
        scores[name] = scorer(params, progress(batches, name))
    return scores
