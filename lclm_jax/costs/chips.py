"""Accelerator chips with their published speeds, and slices of them by name (`v5p:4x4x4`)."""

import math
import re
from dataclasses import dataclass
from typing import Annotated

from lclm_jax.config.settings import Range
from lclm_jax.errors import UserError

GIB = 2**30
Mfu = Annotated[float, Range(above=0, most=1)]  # model FLOPs utilisation, a share of the peak


class SliceError(UserError):
    """A slice name that is malformed, or names an unknown chip."""


@dataclass(frozen=True)
class Chip:
    """One accelerator chip with its peak speeds.

    FLOPs are those of a dense bf16 product. Link bandwidth adds up all links in one direction.
    """

    name: str
    peak_flops: float  # per second
    memory_bytes: float  # usable by a program
    memory_bandwidth: float  # bytes per second
    link_bandwidth: float  # bytes per second within a slice (TPU) or a host (GPU)
    network_bandwidth: float  # bytes per second between slices (TPU) or hosts (GPU)
    chips_per_host: int
    kind: str = "tpu"  # or "gpu"
    dimensions: int = 2  # of the shape of a slice
    device_kinds: tuple[str, ...] = ()  # prefixes of JAX's `device_kind`


# Peak speeds: Google's page of each TPU version, NVIDIA's data sheets of H100 and H200 SXM.
# Usable memory of TPUs: libtpu 0.0.52.
# Network bandwidths are assumptions: 25 GB/s per host of v4 and v5p, half of it for v5e, twice
# for v6e, and one port of 400 Gbit/s per GPU.
TPUS = (
    Chip(
        name="v4",
        peak_flops=275e12,
        memory_bytes=31.75 * GIB,
        memory_bandwidth=1228e9,
        link_bandwidth=300e9,
        network_bandwidth=6.25e9,
        chips_per_host=4,
        dimensions=3,
        device_kinds=("TPU v4",),
    ),
    Chip(
        name="v5e",
        peak_flops=197e12,
        memory_bytes=15.75 * GIB,
        memory_bandwidth=819e9,
        link_bandwidth=200e9,
        network_bandwidth=3.125e9,
        chips_per_host=4,
        device_kinds=("TPU v5 lite", "TPU v5e"),
    ),
    Chip(
        name="v5p",
        peak_flops=459e12,
        memory_bytes=95 * GIB,
        memory_bandwidth=2765e9,
        link_bandwidth=600e9,
        network_bandwidth=6.25e9,
        chips_per_host=4,
        dimensions=3,
        device_kinds=("TPU v5p", "TPU v5"),
    ),
    Chip(
        name="v6e",
        peak_flops=918e12,
        memory_bytes=31.24 * GIB,
        memory_bandwidth=1640e9,
        link_bandwidth=448e9,
        network_bandwidth=12.5e9,
        chips_per_host=4,
        device_kinds=("TPU v6 lite", "TPU v6e"),
    ),
)
GPUS = (
    Chip(
        name="h100",
        peak_flops=989e12,
        memory_bytes=79 * GIB,
        memory_bandwidth=3350e9,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
        chips_per_host=8,
        kind="gpu",
        dimensions=1,
        device_kinds=("NVIDIA H100",),
    ),
    Chip(
        name="h200",
        peak_flops=989e12,
        memory_bytes=140 * GIB,
        memory_bandwidth=4800e9,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
        chips_per_host=8,
        kind="gpu",
        dimensions=1,
        device_kinds=("NVIDIA H200",),
    ),
)
CHIPS = {chip.name: chip for chip in (*TPUS, *GPUS)}


def find_chip(device_kind: str) -> Chip | None:
    """Return the chip with this JAX `device_kind`; None for an unknown one, such as a CPU.

    >>> find_chip("TPU v5 lite").name
    'v5e'
    """
    for chip in CHIPS.values():
        if device_kind.startswith(chip.device_kinds):
            return chip
    return None


@dataclass(frozen=True)
class Slice:
    """Chips that are linked to each other, or `count` such slices in one data center."""

    chip: Chip
    shape: tuple[int, ...]
    count: int = 1

    @property
    def chips(self) -> int:
        """Number of chips in all slices."""
        return self.count * math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """Number of hosts of all slices."""
        return -(-self.chips // self.chip.chips_per_host)

    @property
    def name(self) -> str:
        """Name of a single slice, as `parse_slice` reads it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.count} x {self.name}"


def parse_slice(name: str) -> Slice:
    """Return the slice `CHIP:SHAPE`. Raises SliceError for another chip or a malformed shape.

    >>> parse_slice("v5p:4x4x4").chips
    64
    """
    chip_name, _, shape = name.partition(":")
    sides = shape.split("x")
    well_formed = all(re.fullmatch("[1-9][0-9]{0,5}", side) for side in sides)

    if chip_name not in CHIPS or not well_formed:
        known = ", ".join(CHIPS)
        raise SliceError(
            f"expected CHIP:SHAPE such as v5p:4x4x4, v5e:4x8 or h100:8, with a chip of {known}, "
            f"got {name!r}"
        )

    chip = CHIPS[chip_name]
    if len(sides) != chip.dimensions:
        example = "x".join(["4"] * chip.dimensions)
        raise SliceError(
            f"a slice of {chip_name} has {chip.dimensions} dimensions, "
            f"such as {chip_name}:{example}, got {name!r}"
        )
    return Slice(chip, tuple(int(side) for side in sides))
