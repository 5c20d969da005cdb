"""Packing of examples into rows with two budgets: decoder positions, and encoder windows.

Rows are planned from sizes alone; only the host that needs a row's arrays lays out its examples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lclm_jax.batch import Batch, Windows, empty_batch, empty_windows
from lclm_jax.config import ModelConfig
from lclm_jax.data.records import ContextPiece, Example, RecordSize

# The share of a row, by the budget that is fuller, given to the examples that have waited longest;
# the rest goes to those that fill the row best.
IN_TURN_SHARE = 0.8
MAX_FAILED_TRIES = 40  # examples that do not fit a row until it counts as full

PieceSize = tuple[int, int]  # encoder positions, latents


class PieceOffset(NamedTuple):
    """The place of a piece in a row: its window, and its first position and latent in there."""

    window: int
    position: int
    latent: int


@dataclass(frozen=True)
class RowBudget:
    """The capacity of one row."""

    positions: int  # decoder positions
    windows: int  # encoder windows
    window_length: int  # encoder positions per window
    window_latents: int  # latents per window

    @classmethod
    def for_model(cls, config: ModelConfig, positions: int, windows: int) -> "RowBudget":
        """Return the budget of a row of decoder positions and of this model's windows."""
        return cls(positions, windows, config.window_length, config.compression.latents_per_window)

    @property
    def encoder_positions(self) -> int:
        """The positions of all windows."""
        return self.windows * self.window_length

    def fits(self, size: RecordSize) -> bool:
        """Return whether a record fits into a row of its own."""
        return size.positions <= self.positions and WindowPacker(self).add(size.pieces)


@dataclass
class WindowPacker:
    """The pieces of a row's examples and their offsets in the row's windows."""

    budget: RowBudget
    pieces: list[Sequence[PieceSize]] = field(default_factory=list)  # of every example
    offsets: list[list[PieceOffset]] = field(default_factory=list)  # of every example
    used: list[PieceSize] = field(default_factory=list)  # of every window in use

    def add(self, pieces: Sequence[PieceSize]) -> bool:
        """Place the pieces of one more example; return False, with nothing changed, if none fit.

        Where they do not fit beside the pieces already placed, all pieces are placed anew.
        """
        used = self.used.copy()
        offsets = _place_pieces(pieces, used, self.budget)
        if offsets is None:
            return self._place_anew([*self.pieces, pieces])
        self.pieces.append(pieces)
        self.offsets.append(offsets)
        self.used = used
        return True

    def _place_anew(self, examples: list[Sequence[PieceSize]]) -> bool:
        used: list[PieceSize] = []
        everything = [piece for pieces in examples for piece in pieces]
        placed = _place_pieces(everything, used, self.budget)
        if placed is None:
            return False
        coming = iter(placed)
        self.pieces, self.used = examples, used
        self.offsets = [[next(coming) for _ in pieces] for pieces in examples]
        return True


def _place_pieces(
    pieces: Sequence[PieceSize], used: list[PieceSize], budget: RowBudget
) -> list[PieceOffset] | None:
    """Place each piece, the longest first, into the fullest window that has room for it.

    Updates `used`. Returns None where a piece does not fit.
    """
    offsets = [PieceOffset(0, 0, 0)] * len(pieces)
    for i in sorted(range(len(pieces)), key=lambda i: -pieces[i][0]):
        length, latents = pieces[i]
        window = _find_window(pieces[i], used, budget)
        if window is None:
            return None
        if window == len(used):
            used.append((0, 0))
        position, latent = used[window]
        offsets[i] = PieceOffset(window, position, latent)
        used[window] = (position + length, latent + latents)
    return offsets


def _find_window(piece: PieceSize, used: Sequence[PieceSize], budget: RowBudget) -> int | None:
    """Return the fullest window with room for a piece, else an empty one, else None."""
    most_positions = budget.window_length - piece[0]
    most_latents = budget.window_latents - piece[1]
    fullest = None
    for window, (positions, latents) in enumerate(used):
        has_room = positions <= most_positions and latents <= most_latents
        if has_room and (fullest is None or positions > used[fullest][0]):
            fullest = window
    if fullest is not None:
        return fullest
    fits_empty = most_positions >= 0 and most_latents >= 0
    return len(used) if fits_empty and len(used) < budget.windows else None


def pack_pieces(pieces: Sequence[PieceSize], config: ModelConfig) -> list[PieceOffset]:
    """Place pieces into as few windows as the heuristic finds.

    Windows are numbered in the order in which they are first used. Raises ValueError for a piece
    larger than a window.
    """
    offsets = _place_pieces(pieces, [], RowBudget.for_model(config, 0, len(pieces)))
    if offsets is None:
        raise ValueError(f"expected pieces of at most a window, got {max(pieces)}")
    return offsets


@dataclass(frozen=True)
class PackedRow:
    """The examples of one row, and the offsets of their pieces."""

    budget: RowBudget
    examples: Sequence[Example]
    offsets: Sequence[Sequence[PieceOffset]]


def choose_row(sizes: Sequence[RecordSize], budget: RowBudget) -> tuple[list[int], WindowPacker]:
    """Choose the examples of the next row, always including the first; return their indices.

    Most of a row goes to the examples that have waited longest, so that those still waiting stay a
    fair sample of the data; the rest goes to the examples that fill it best. Raises ValueError
    where the first example does not fit.
    """
    needs = _needs(sizes)
    capacity = _capacity(budget)
    packer = WindowPacker(budget)
    if not packer.add(sizes[0].pieces):
        raise ValueError(f"expected an example that fits into {budget}, got one of {sizes[0]}")
    chosen, left = [0], capacity - needs[0]
    reserve = (1 - IN_TURN_SHARE) * capacity
    for i in range(1, len(sizes)):
        if (left < reserve).any():
            break
        if (left - needs[i] >= reserve / 2).all() and packer.add(sizes[i].pieces):
            chosen.append(i)
            left = left - needs[i]
    return [*chosen, *_fill_up(sizes, needs, chosen, packer)], packer


def _needs(sizes: Sequence[RecordSize]) -> np.ndarray:
    """Return decoder and encoder positions [n, 2] of examples."""
    pairs = [(size.positions, size.encoder_positions) for size in sizes]
    return np.array(pairs, float).reshape(-1, 2)


def _capacity(budget: RowBudget) -> np.ndarray:
    return np.array([budget.positions, budget.encoder_positions], float)


def _fill_up(
    sizes: Sequence[RecordSize], needs: np.ndarray, chosen: Sequence[int], packer: WindowPacker
) -> list[int]:
    """Add examples to a row of `chosen` ones until nothing more fits; return their indices.

    `needs` [n, 2] are the decoder and encoder positions of all examples.

    Next comes the example that lies best along what is left of both budgets, larger ones first,
    less the rest of a window it would leave that nothing else may fit into.
    """
    budget, length = packer.budget, packer.budget.window_length
    capacity = _capacity(budget)
    left, free = capacity - needs[list(chosen)].sum(0), np.ones(len(sizes), bool)
    free[list(chosen)] = False
    whole, part = np.array([_split_pieces(size, length) for size in sizes]).reshape(-1, 2).T
    added, failed = [], 0
    while failed < MAX_FAILED_TRIES:
        empty = budget.windows - len(packer.used)
        gaps = _window_gaps(packer, empty)
        tightest = np.searchsorted(gaps, part)  # the smallest gap with room for the longest part
        part_fits = (tightest < len(gaps)) | (part == 0)
        fits = free & (needs <= left).all(axis=1) & (whole <= empty) & part_fits
        if not fits.any():
            break
        wasted = np.where(part > 0, np.append(gaps, length)[tightest] - part, 0)
        score = needs @ (left / capacity**2) - wasted / capacity[1]
        best = int(np.argmax(np.where(fits, score, -np.inf)))
        free[best] = False
        if packer.add(sizes[best].pieces):
            added.append(best)
            left = left - needs[best]
        else:
            failed += 1
            # An example that needs as much or more in every respect would not fit either.
            smaller = (whole < whole[best]) | (part < part[best]) | (needs[:, 1] < needs[best, 1])
            free &= smaller
    return added


def _window_gaps(packer: WindowPacker, empty: int) -> np.ndarray:
    """Return the positions free in each window in use and in one empty window, ascending."""
    length = packer.budget.window_length
    gaps = [length - positions for positions, _ in packer.used]
    return np.sort(gaps + [length] * min(empty, 1))


def _split_pieces(size: RecordSize, window_length: int) -> tuple[int, int]:
    """Return the number of pieces that take a whole window, and the longest other piece."""
    parts = [length for length, _ in size.pieces if length < window_length]
    return len(size.pieces) - len(parts), max(parts, default=0)


def fill_row(budget: RowBudget, examples: Iterable[Example]) -> PackedRow:
    """Return a row of these examples. Raises ValueError where they do not fit together."""
    examples, packer, positions = list(examples), WindowPacker(budget), 0
    for example in examples:
        positions += len(example)
        pieces = [(len(piece.tokens), piece.latents) for piece in example.pieces]
        if positions > budget.positions or not packer.add(pieces):
            raise ValueError(
                f"expected examples that fit together in {budget}, got one more of "
                f"{len(example)} positions and {len(example.pieces)} windows"
            )
    return PackedRow(budget, examples, packer.offsets)


def assemble(rows: Sequence[PackedRow]) -> Batch:
    """Return the arrays of packed rows."""
    budget = rows[0].budget
    windows = empty_windows(len(rows), budget.windows, budget.window_length, budget.window_latents)
    batch = empty_batch(len(rows), budget.positions, windows)
    for i, row in enumerate(rows):
        _write_row(batch, i, row)
    return batch


def _write_row(batch: Batch, row_index: int, row: PackedRow):
    """Write the examples of a row, numbered from 1, into the batch."""
    start = 0
    pieces_in_window = np.zeros(row.budget.windows, int)
    contexts: dict[tuple[int, int], int] = {}  # (example, its context) -> number in the row
    pairs = zip(row.examples, row.offsets, strict=True)
    for number, (example, offsets) in enumerate(pairs, start=1):
        end = start + len(example)
        here = (row_index, slice(start, end))
        batch.tokens[here] = example.tokens
        batch.targets[here] = example.targets
        batch.weights[here] = example.weights
        batch.segments[here] = number
        batch.positions[here] = np.arange(len(example))
        batch.streams[here] = example.stream
        batch.slots[here] = _slots_in_row(example, offsets, row.budget)
        for piece, offset in zip(example.pieces, offsets, strict=True):
            pieces_in_window[offset.window] += 1
            segment = pieces_in_window[offset.window]
            context = contexts.setdefault((number, piece.context), len(contexts) + 1)
            write_piece(batch.windows, row_index, offset, piece, segment, context)
        start = end


def _slots_in_row(
    example: Example, offsets: Sequence[PieceOffset], budget: RowBudget
) -> np.ndarray:
    """Return the example's slots with its latents numbered as they lie in the row's windows."""
    numbers = [
        offset.window * budget.window_latents + offset.latent + np.arange(piece.latents)
        for piece, offset in zip(example.pieces, offsets, strict=True)
    ]
    if not numbers:
        return example.slots
    return np.where(example.slots >= 0, np.concatenate(numbers)[example.slots], -1)


def write_piece(
    windows: Windows, row: int, offset: PieceOffset, piece: ContextPiece, segment: int, context: int
):
    """Write a piece into a window, numbered `segment` there and as part of the row's `context`."""
    positions = slice(offset.position, offset.position + len(piece.tokens))
    latents = slice(offset.latent, offset.latent + piece.latents)
    read, pooled = (row, offset.window, positions), (row, offset.window, latents)
    windows.tokens[read] = piece.tokens
    windows.segments[read] = segment
    windows.positions[read] = np.arange(len(piece.tokens))
    windows.groups[read] = np.where(piece.groups >= 0, piece.groups + offset.latent, -1)
    windows.latent_segments[pooled] = context
    windows.latent_positions[pooled] = piece.first + np.arange(piece.latents)
