"""Accelerators as their makers publish them, and slices of them by name (`v5p:4x4x4`, `h100:8`)."""

import math
import re
from dataclasses import dataclass
from typing import Annotated

from lclm_jax.config.settings import Range
from lclm_jax.errors import UserError

GIB = 2**30
Mfu = Annotated[float, Range(above=0, most=1)]  # share of the peak FLOPs that a model reaches


class SliceError(UserError):
    """A slice that no maker sells, or a name that is none."""


@dataclass(frozen=True)
class Chip:
    """One chip; speeds are peaks, those of a dense bf16 product and of all its links in one direction."""

    name: str
    flops: float  # a second
    memory: float  # bytes a program may use
    memory_speed: float  # bytes a second
    link_speed: float  # bytes a second to other chips of the slice, of GPUs to those of the host
    network_speed: float  # bytes a second to other slices, of GPUs to other hosts
    per_host: int
    kind: str = "tpu"
    dimensions: int = 2  # of a slice
    reports: tuple[str, ...] = ()  # how JAX names such a device, its first letters


# Sources: Google's pages of each TPU version, NVIDIA's data sheets of H100 and H200 SXM. Usable memory of TPUs: libtpu 0.0.52.
# Networks are assumptions: 25 GB/s a host of v4 and v5p, half and twice of it for v5e and v6e, one 400 Gbit/s port a GPU.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4", 275e12, 31.75 * GIB, 1228e9, 300e9, 6.25e9, 4, dimensions=3, reports=("TPU v4",)
        ),
        Chip(
            "v5e", 197e12, 15.75 * GIB, 819e9, 200e9, 3.125e9, 4, reports=("TPU v5 lite", "TPU v5e")
        ),
        Chip(
            "v5p",
            459e12,
            95 * GIB,
            2765e9,
            600e9,
            6.25e9,
            4,
            dimensions=3,
            reports=("TPU v5p", "TPU v5"),
        ),
        Chip(
            "v6e", 918e12, 31.24 * GIB, 1640e9, 448e9, 12.5e9, 4, reports=("TPU v6 lite", "TPU v6e")
        ),
        Chip(
            "h100",
            989e12,
            79 * GIB,
            3350e9,
            450e9,
            50e9,
            8,
            kind="gpu",
            dimensions=1,
            reports=("NVIDIA H100",),
        ),
        Chip(
            "h200",
            989e12,
            140 * GIB,
            4800e9,
            450e9,
            50e9,
            8,
            kind="gpu",
            dimensions=1,
            reports=("NVIDIA H200",),
        ),
    )
}


def find_chip(kind: str) -> Chip | None:
    """The chip that JAX calls by this `device_kind`; None for one whose speed is not in the table, as a CPU.

    >>> find_chip("TPU v5 lite").name
    'v5e'
    """
    return next((chip for chip in CHIPS.values() if kind.startswith(chip.reports)), None)


@dataclass(frozen=True)
class Slice:
    """Chips that are linked to each other, or several such slices in one data center."""

    chip: Chip
    shape: tuple[int, ...]
    count: int = 1

    @property
    def chips(self) -> int:
        return self.count * math.prod(self.shape)

    @property
    def hosts(self) -> int:
        return -(-self.chips // self.chip.per_host)

    @property
    def name(self) -> str:
        """Of one of them."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.count} x {self.name}"


def parse_slice(name: str) -> Slice:
    """Raises SliceError for anything but a known chip and the shape of a slice of it.

    >>> parse_slice("v5p:4x4x4").chips
    64
    """
    chip, _, shape = name.partition(":")
    parts = shape.split("x")
    if chip not in CHIPS or not all(re.fullmatch("[1-9][0-9]{0,5}", part) for part in parts):
        known = ", ".join(CHIPS)
        raise SliceError(
            f"expected CHIP:SHAPE as v5p:4x4x4, v5e:4x8 or h100:8, of chip {known}, got {name!r}"
        )
    found = CHIPS[chip]
    if len(parts) != found.dimensions:
        example = "x".join(["4"] * found.dimensions)
        raise SliceError(
            f"a slice of {chip} has {found.dimensions} dimensions, as {chip}:{example}, got {name!r}"
        )
    return Slice(found, tuple(map(int, parts)))
