"""Packing of examples into rows with two budgets: decoder positions, and windows the encoder reads.

Rows are planned from sizes alone; only who needs a row's arrays lays out its examples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lclm_jax.batch import Batch, Windows, empty_batch, empty_windows
from lclm_jax.config import ModelConfig
from lclm_jax.data.records.spans import Example, Piece, Size

Seat = tuple[int, int, int]  # of a piece: window, first position and first latent there
IN_TURN = (
    0.8  # share of a row, by the budget that is fuller, that goes to those that waited longest
)
TRIES = 40  # examples that are tried for a row in vain before it is full


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

    def holds(self, size: Size) -> bool:
        """Whether an example fits into a row of its own."""
        return size.positions <= self.positions and Seating(self).add(size.pieces)


@dataclass
class Seating:
    """Where the pieces of a row's examples lie in its windows."""

    budget: Budget
    pieces: list[Sequence[tuple[int, int]]] = field(
        default_factory=list
    )  # of every example: positions, latents
    seats: list[list[Seat]] = field(default_factory=list)  # the same
    used: list[tuple[int, int]] = field(
        default_factory=list
    )  # positions and latents of windows in use

    def add(self, pieces: Sequence[tuple[int, int]]) -> bool:
        """Seats the pieces of one more example, if there is a way to seat all; False and nothing changed, if not found."""
        used = self.used.copy()
        seats = _seat(pieces, used, self.budget)
        if seats is not None:
            self.pieces.append(pieces)
            self.seats.append(seats)
            self.used = used
            return True
        everything = [*self.pieces, pieces]
        owners = [
            (example, number)
            for example, some in enumerate(everything)
            for number in range(len(some))
        ]
        used = []
        seats = _seat(
            [everything[example][number] for example, number in owners], used, self.budget
        )
        if seats is None:
            return False
        self.pieces, self.used = everything, used
        self.seats = [[] for _ in everything]
        for (example, _), seat in zip(owners, seats, strict=True):
            self.seats[example].append(seat)
        return True


def _seat(
    pieces: Sequence[tuple[int, int]], used: list[tuple[int, int]], budget: Budget
) -> list[Seat] | None:
    """Each piece, the longest first, into the fullest window that holds it; None when one does not fit. Fills `used`."""
    seats: list[Seat] = [(0, 0, 0)] * len(pieces)
    for i in sorted(range(len(pieces)), key=lambda i: -pieces[i][0]):
        length, latents = pieces[i]
        best = -1
        for window, (positions, taken) in enumerate(used):
            fits = (
                positions + length <= budget.window_length
                and taken + latents <= budget.window_latents
            )
            if fits and (best < 0 or positions > used[best][0]):
                best = window
        if best < 0:
            if (
                len(used) == budget.windows
                or length > budget.window_length
                or latents > budget.window_latents
            ):
                return None
            best = len(used)
            used.append((0, 0))
        seats[i] = (best, *used[best])
        used[best] = (used[best][0] + length, used[best][1] + latents)
    return seats


def seat_pieces(pieces: Sequence[tuple[int, int]], config: ModelConfig) -> list[Seat]:
    """Seats for pieces of so many positions and latents, in as few windows as it finds; windows are
    numbered in the order in which they are first used."""
    seats = _seat(pieces, [], Budget.of(config, 0, len(pieces)))
    if seats is None:
        raise ValueError(f"expected pieces of at most a window, got {max(pieces)}")
    return seats


@dataclass(frozen=True)
class Row:
    """Examples of one row, and the seats of their pieces."""

    budget: Budget
    examples: Sequence[Example]
    seats: Sequence[Sequence[Seat]]


def choose_row(sizes: Sequence[Size], budget: Budget) -> tuple[list[int], Seating]:
    """The examples of the next row, the first of them always among these, and where their pieces lie.

    Most of a row goes to those that have waited longest, so that those who wait stay a fair sample of the data; the rest
    to those that fill it best.
    """
    needs = np.array([(size.positions, size.read) for size in sizes], float).reshape(-1, 2)
    capacity = np.array([budget.positions, budget.windows * budget.window_length], float)
    seating = Seating(budget)
    if not seating.add(sizes[0].pieces):
        raise ValueError(f"expected an example that fits into {budget}, got one of {sizes[0]}")
    chosen, left, kept = [0], capacity - needs[0], (1 - IN_TURN) * capacity
    for i in range(1, len(sizes)):
        if (left < kept).any():
            break
        if (left - needs[i] >= kept / 2).all() and seating.add(sizes[i].pieces):
            chosen.append(i)
            left = left - needs[i]
    return [*chosen, *_complete(sizes, needs, chosen, seating)], seating


def _complete(
    sizes: Sequence[Size], needs: np.ndarray, chosen: Sequence[int], seating: Seating
) -> list[int]:
    """Adds to a row of `chosen` until nothing more fits.

    Next comes the example that lies best along what is left of both budgets, a large one before a small one, less what it
    would leave of a window that nothing else may fit into.
    """
    budget, length = seating.budget, seating.budget.window_length
    capacity = np.array([budget.positions, budget.windows * length], float)
    left, free = capacity - needs[list(chosen)].sum(0), np.ones(len(sizes), bool)
    free[list(chosen)] = False
    whole, part = np.array([_pieces(size, length) for size in sizes]).reshape(-1, 2).T
    added, tries = [], 0
    while tries < TRIES:
        empty = budget.windows - len(seating.used)
        gaps = np.sort(
            [length - positions for positions, _ in seating.used] + [length] * min(empty, 1)
        )
        tightest = np.searchsorted(
            gaps, part
        )  # the smallest gap that holds the example's longest part of a window
        fits = (
            free
            & (needs <= left).all(axis=1)
            & (whole <= empty)
            & ((tightest < len(gaps)) | (part == 0))
        )
        if not fits.any():
            break
        rest = np.where(part > 0, np.append(gaps, length)[tightest] - part, 0)
        score = needs @ (left / capacity**2) - rest / capacity[1]
        best = int(np.argmax(np.where(fits, score, -np.inf)))
        free[best] = False
        if seating.add(sizes[best].pieces):
            added.append(best)
            left = left - needs[best]
        else:
            tries += 1
            # Who needs as much or more in every respect would not be seated either.
            free &= (whole < whole[best]) | (part < part[best]) | (needs[:, 1] < needs[best, 1])
    return added


def _pieces(size: Size, window_length: int) -> tuple[int, int]:
    """How many pieces take a whole window, and the length of the longest that does not."""
    parts = [length for length, _ in size.pieces if length < window_length]
    return len(size.pieces) - len(parts), max(parts, default=0)


def fill_row(budget: Budget, examples: Iterable[Example]) -> Row:
    """A row that holds these examples. Raises ValueError when they do not fit."""
    examples, seating = list(examples), Seating(budget)
    for number, example in enumerate(examples):
        pieces = [(len(piece.tokens), piece.latents) for piece in example.pieces]
        if sum(map(len, examples[: number + 1])) > budget.positions or not seating.add(pieces):
            size = f"{len(example)} positions and {len(example.pieces)} windows"
            raise ValueError(
                f"expected examples that fit together in {budget}, got one more of {size}"
            )
    return Row(budget, examples, seating.seats)


def assemble(rows: Sequence[Row]) -> Batch:
    """The arrays of packed rows."""
    budget = rows[0].budget
    windows = empty_windows(len(rows), budget.windows, budget.window_length, budget.window_latents)
    batch = empty_batch(len(rows), budget.positions, windows)
    for i, row in enumerate(rows):
        start = 0
        pieces_in = np.zeros(budget.windows, int)
        contexts: dict[
            tuple[int, int], int
        ] = {}  # (example, context of it) -> its number in the row
        for number, (example, seats) in enumerate(
            zip(row.examples, row.seats, strict=True), start=1
        ):
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
                seat_piece(
                    windows, (i, window, position, latent), piece, pieces_in[window], context
                )
            start = here.stop
    return batch


def _row_slots(example: Example, seats: Sequence[Seat], budget: Budget) -> np.ndarray:
    """The example's slots with its own latents renumbered to where their windows lie in the row."""
    numbers = [
        window * budget.window_latents + latent + np.arange(piece.latents)
        for piece, (window, _, latent) in zip(example.pieces, seats, strict=True)
    ]
    if not numbers:
        return example.slots
    return np.where(example.slots >= 0, np.concatenate(numbers)[example.slots], -1)


def seat_piece(
    windows: Windows, seat: tuple[int, int, int, int], piece: Piece, segment: int, context: int
):
    """Writes a piece into `seat`: row, window, first position and first latent there."""
    row, window, position, latent = seat
    read, latents = (
        (row, window, slice(position, position + len(piece.tokens))),
        slice(latent, latent + piece.latents),
    )
    windows.tokens[read] = piece.tokens
    windows.segments[read] = segment
    windows.positions[read] = np.arange(len(piece.tokens))
    windows.groups[read] = np.where(piece.groups >= 0, piece.groups + latent, -1)
    windows.latent_segments[row, window, latents] = context
    windows.latent_positions[row, window, latents] = piece.first + np.arange(piece.latents)
