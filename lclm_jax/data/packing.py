"""Best-fit packing of examples into rows with two budgets: decoder positions, and windows the encoder reads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.data.batch import Batch, Windows, empty_batch, empty_windows
from lclm_jax.data.spans import Example, Piece


@dataclass(frozen=True)
class Budget:
    """Capacity of one row."""

    positions: int  # decoder positions
    windows: int  # encoder windows
    window_length: int  # positions of a window
    window_latents: int  # latents of a window

    @classmethod
    def of(cls, config: ModelConfig, positions: int, windows: int) -> "Budget":
        """Room for so many decoder positions and windows of this model's."""
        return cls(positions, windows, config.window_length, config.compression.latents_per_window)

    def fits_alone(self, example: Example) -> bool:
        return Row(self).find(example) is not None


@dataclass
class Row:
    """A row being filled. `used` counts positions and latents taken in every window."""

    budget: Budget
    examples: list[Example] = field(default_factory=list)
    seats: list[list[tuple[int, int, int]]] = field(default_factory=list)  # per piece: window, first position, first latent
    length: int = 0
    used: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self):
        if self.used is None:
            self.used = np.zeros((self.budget.windows, 2), int)

    def find(self, example: Example) -> list[tuple[int, int, int]] | None:
        """Seats for every piece of the example, each in the fullest window that holds it; None when it does not fit."""
        if self.length + len(example) > self.budget.positions:
            return None
        capacity = np.array([self.budget.window_length, self.budget.window_latents])
        used = self.used.copy()
        seats = []
        for piece in example.pieces:
            size = np.array([len(piece.tokens), piece.latents])
            room = (used + size <= capacity).all(axis=1)
            if not room.any():
                return None
            window = int(np.argmax(np.where(room, used.sum(axis=1), -1)))
            seats.append((window, int(used[window, 0]), int(used[window, 1])))
            used[window] += size
        return seats

    def add(self, example: Example, seats: list[tuple[int, int, int]]):
        self.examples.append(example)
        self.seats.append(seats)
        self.length += len(example)
        for piece, (window, _, _) in zip(example.pieces, seats, strict=True):
            self.used[window] += (len(piece.tokens), piece.latents)


def fill_row(budget: Budget, examples: Iterable[Example]) -> Row:
    """A row that holds these examples. Raises ValueError when one does not fit."""
    row = Row(budget)
    for example in examples:
        seats = row.find(example)
        if seats is None:
            size = f"{len(example)} positions and {len(example.pieces)} windows"
            raise ValueError(f"expected examples that fit together in {budget}, got one more of {size}")
        row.add(example, seats)
    return row


def best_row(rows: Sequence[Row], example: Example) -> int | None:
    """The open row the example fits into with the fewest positions left over, the oldest of equals."""
    fitting = [i for i, row in enumerate(rows) if row.find(example) is not None]
    return min(fitting, key=lambda i: (-rows[i].length, i), default=None)


def assemble(rows: Sequence[Row]) -> Batch:
    """The arrays of packed rows."""
    budget = rows[0].budget
    windows = empty_windows(len(rows), budget.windows, budget.window_length, budget.window_latents)
    batch = empty_batch(len(rows), budget.positions, windows)
    for i, row in enumerate(rows):
        start = 0
        pieces_in = np.zeros(budget.windows, int)
        contexts: dict[tuple[int, int], int] = {}  # (example, context of it) -> its number in the row
        for number, (example, seats) in enumerate(zip(row.examples, row.seats, strict=True), start=1):
            here = slice(start, start + len(example))
            batch.tokens[i, here] = example.tokens
            batch.targets[i, here] = example.targets
            batch.weights[i, here] = example.weights
            batch.segments[i, here] = number
            batch.positions[i, here] = np.arange(len(example))
            batch.streams[i, here] = example.stream
            batch.slots[i, here] = _row_slots(example, seats, budget)
            for piece, (window, position, latent) in zip(example.pieces, seats, strict=True):
                pieces_in[window] += 1
                context = contexts.setdefault((number, piece.context), len(contexts) + 1)
                seat_piece(windows, (i, window, position, latent), piece, pieces_in[window], context)
            start = here.stop
    return batch


def _row_slots(example: Example, seats: list[tuple[int, int, int]], budget: Budget) -> np.ndarray:
    """The example's slots with its own latents renumbered to where their windows lie in the row."""
    numbers = [
        window * budget.window_latents + latent + np.arange(piece.latents)
        for piece, (window, _, latent) in zip(example.pieces, seats, strict=True)
    ]
    if not numbers:
        return example.slots
    return np.where(example.slots >= 0, np.concatenate(numbers)[example.slots], -1)


def seat_piece(windows: Windows, seat: tuple[int, int, int, int], piece: Piece, segment: int, context: int):
    """Writes a piece into `seat`: row, window, first position and first latent there."""
    row, window, position, latent = seat
    read, latents = (row, window, slice(position, position + len(piece.tokens))), slice(latent, latent + piece.latents)
    windows.tokens[read] = piece.tokens
    windows.segments[read] = segment
    windows.positions[read] = np.arange(len(piece.tokens))
    windows.groups[read] = np.where(piece.groups >= 0, piece.groups + latent, -1)
    windows.latent_segments[row, window, latents] = context
    windows.latent_positions[row, window, latents] = piece.first + np.arange(piece.latents)
