"""The result of a cell: what was trained, on how much, and its losses on held-out examples."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lclm_jax.sweeps.cells import Level

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]  # by stream and view


@dataclass(frozen=True)
class CellResult:
    """A trained cell.

    Attributes:
        cell: its name.
        levels: the level of every factor.
        config: of its run, as nested dicts.
        control: True where the decoder was trained on contexts as plain text.
        parameters: of encoder, adapter and decoder, embeddings included.
        matrix_parameters: of the layers of encoder and decoder, without embeddings.
        tokens: sums over training: trained_tokens, context_tokens, decoder_tokens, latents.
        flops: model FLOPs of training.
        steps: of all stages.
        seconds: of training steps, on the devices in `device`.
        scores: loss in nats per token, accuracy and number of tokens by stream and view.
        device: kind and number of devices.
        versions: of this package and of jax.
    """

    cell: str
    levels: Mapping[str, Level]
    config: Mapping[str, Any]
    control: bool
    parameters: Mapping[str, int]
    matrix_parameters: Mapping[str, int]
    tokens: Mapping[str, int]
    flops: float
    steps: int
    seconds: float
    scores: Scores
    device: str
    versions: Mapping[str, str]

    @property
    def ratio(self) -> int:
        """Tokens per latent."""
        return self.config["model"]["compression"]["ratio"]

    @property
    def text_tokens(self) -> int:
        """Tokens that training read, in contexts and beside them."""
        tokens = self.tokens
        return tokens["context_tokens"] + tokens["decoder_tokens"] - tokens["latents"]

    def mean(self, quantity: str, view: str, streams: tuple[str, ...] = ()) -> float:
        """Return loss (nats per token) or accuracy in a view, over all trained tokens of streams.

        No streams: of all. Raises KeyError for a view or stream without a score.
        """
        scores = [self.scores[stream][view] for stream in streams or tuple(self.scores)]
        tokens = sum(score["tokens"] for score in scores)
        return sum(score[quantity] * score["tokens"] for score in scores) / tokens

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "CellResult":
        """Read `to_dict`."""
        return cls(**fields)
