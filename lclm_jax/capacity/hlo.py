"""What a compiled program sends between devices, read from the text of its HLO.

A computation ends only at a line that is `}`: the text of kernels has lines that begin with one. TPUs rename operations (a v5p
prints all of them as all-reduce), so trust bytes and names of operations, not kinds.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lclm_jax.errors import UserError

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "c64": 64,
    "c128": 128,
}  # of types whose name does not end in them

_HEADER = re.compile(r"^(?:ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_INTEGER = re.compile(r"[su]\d+\[\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[^=]*\})\}")


class HloError(UserError):
    """Text that is not the HLO this reader knows; another version of the compiler may write it another way."""


@dataclass(frozen=True)
class Collective:
    """One operation between devices, as often as the program runs it."""

    kind: str  # one of KINDS, as printed
    bytes: Mapping[
        str, int
    ]  # of one run on one device, by type: the larger of what goes in and what comes out
    axes: tuple[str, ...]  # mesh axes it crosses
    times: int  # runs in one call of the program
    name: str  # what it is for: the operation of the traced program

    @property
    def total(self) -> int:
        """Bytes of all its runs on one device."""
        return self.times * sum(self.bytes.values())


@dataclass
class _Instruction:
    name: str
    shape: str  # printed
    opcode: str
    rest: str  # operands and attributes

    @property
    def chain(self) -> str | None:
        """Of a collective that runs piece by piece inside several fusions, each of which prints the whole of it."""
        chain, channel = (
            re.search(r'chain_id="(\d+)"', self.rest),
            re.search(r"channel_id=(\d+)", self.rest),
        )
        return f"{chain.group(1)} of {channel.group(1)}" if chain and channel else None

    @property
    def constant(self) -> int | None:
        """Its value, if it is a whole number."""
        whole = self.opcode == "constant" and re.match(_INTEGER, self.shape)
        return int(self.rest.partition(")")[0]) if whole else None

    @property
    def operands(self) -> list[str]:
        depth, end = 1, 0
        while depth and end < len(self.rest):
            depth += {"(": 1, ")": -1}.get(self.rest[end], 0)
            end += 1
        return re.findall(r"%([\w.\-]+)", self.rest[: end - 1])

    @property
    def kind(self) -> str | None:
        """Of a collective; its second half, which sends nothing more, is none. What goes to other slices is sent by the host."""
        between = _BETWEEN.search(self.rest) if self.opcode == "send" else None
        kind = (
            between.group(1).lower().replace("_", "-")
            if between
            else self.opcode.removesuffix("-start")
        )
        return kind if kind in KINDS else None


@dataclass
class _Computation:
    instructions: list[_Instruction] = field(default_factory=list)

    def shapes(self) -> dict[str, str]:
        return {one.name: one.shape for one in self.instructions}


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """Every collective of a module on a mesh of these axes, of which the first crosses slices.

    Raises HloError where the text is not understood.
    """
    computations, entry = _parse(text)
    printed = sum(
        len(re.findall(rf"^\s+(?:ROOT )?%?\S+ = .*? {kind}(?:-start)?\(", text, re.M))
        for kind in KINDS
        if kind in text
    )
    printed += len(
        re.findall(r"^\s+(?:ROOT )?%?\S+ = .*? send\(.*_xla_megascale_transfer_type", text, re.M)
    )
    found: list[Collective] = []
    seen: set[tuple[str, str]] = set()
    chains: set[str | None] = set()
    for computation, times in _runs(entry, computations, 1):
        shapes = computations[computation].shapes()
        for one in computations[computation].instructions:
            if one.kind is None:
                continue
            seen.add((computation, one.name))
            if one.chain in chains:
                continue
            chains |= {one.chain} - {None}
            name = re.search(r'op_name="([^"]*)"', one.rest)
            found.append(
                Collective(
                    one.kind,
                    _payload(one, shapes),
                    _axes(one, mesh),
                    times,
                    name.group(1) if name else one.name,
                )
            )
    if len(seen) != printed:
        raise HloError(
            f"expected all {printed} printed collectives in computations that run, found {len(seen)}"
        )
    return found


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line == "}":
            current = None
        elif current is None:
            if header := _HEADER.match(line):
                current = computations.setdefault(header.group(1), _Computation())
                entry = header.group(1) if line.startswith("ENTRY") else entry
        elif instruction := _INSTRUCTION.match(line):
            current.instructions.append(_Instruction(*instruction.groups()))
    if not entry:
        raise HloError(
            f"expected the text of an HLO module with an ENTRY computation, got {text[:80]!r}"
        )
    return computations, entry


def _runs(
    name: str, computations: Mapping[str, _Computation], times: int
) -> Iterator[tuple[str, int]]:
    """Computations that a computation runs, itself first, and how often; every branch of a conditional counts."""
    yield name, times
    for one in computations[name].instructions:
        called = [
            *_CALLED.findall(one.rest),
            *(b.strip(" %") for some in _BRANCHES.findall(one.rest) for b in some.split(",")),
        ]
        inside = [
            run
            for callee in called
            if callee in computations
            for run in _runs(callee, computations, 1)
        ]
        if one.opcode == "while" and any(
            i.kind for callee, _ in inside for i in computations[callee].instructions
        ):
            trips = _trips(one, computations)
            inside = [(callee, count * trips) for callee, count in inside]
        yield from ((callee, count * times) for callee, count in inside)


def _trips(loop: _Instruction, computations: Mapping[str, _Computation]) -> int:
    """How often a loop that counts from 0 runs: as its annotation says, else by the constant its condition compares with."""
    if known := _TRIPS.search(loop.rest):
        return int(known.group(1))
    condition, body = (
        re.search(rf"{part}=%?([\w.\-]+)", loop.rest) for part in ("condition", "body")
    )
    if condition is None or body is None:
        raise HloError(f"loop {loop.name} has no condition or no body")
    inside = [
        one
        for name, _ in _runs(condition.group(1), computations, 1)
        for one in computations[name].instructions
    ]
    ends = {one.constant for one in inside if one.constant is not None}
    if len(ends) != 1:
        raise HloError(
            f"expected one constant in the condition of loop {loop.name}, which has collectives, got {sorted(ends)}"
        )
    places = [
        int(place)
        for one in inside
        for place in re.findall(r"index=(\d+)", one.rest)
        if re.match(_INTEGER, one.shape)
    ]
    return -(
        -ends.pop() // _step(computations[body.group(1)], places[0] if len(places) == 1 else None)
    )


def _step(body: _Computation, place: int | None) -> int:
    """What a loop adds to its counter, at this place of what it carries; 1 where that cannot be read. Unrolled ones add more."""
    if place is None:
        return 1
    by_name = {one.name: one for one in body.instructions}
    carried = by_name.get(body.instructions[-1].operands[place])
    if carried is None or carried.opcode != "add":
        return 1
    added = [
        constant
        for name in carried.operands
        if name in by_name and (constant := by_name[name].constant)
    ]
    return added[0] if len(added) == 1 else 1


def _payload(one: _Instruction, shapes: Mapping[str, str]) -> dict[str, int]:
    """Bytes by type, the larger of operands and result; a started operation's result may hold its operands, too."""
    taken: dict[str, int] = {}
    for operand in one.operands:
        for kind, size in _sizes(shapes.get(operand, "")).items():
            taken[kind] = taken.get(kind, 0) + size
    if one.opcode == "send":
        return taken
    given = _sizes(one.shape)
    if one.opcode.endswith("-start"):
        given = {kind: size - taken.get(kind, 0) for kind, size in given.items()}
    return max(taken, given, key=lambda sizes: sum(sizes.values()))


def _sizes(shape: str) -> dict[str, int]:
    """Bytes by type of a printed shape, a tuple's added up."""
    sizes: dict[str, int] = {}
    for kind, dimensions in _SHAPE.findall(shape):
        if kind == "token":
            continue
        bits = BITS.get(kind) or int(re.sub(r"^[a-z]+(\d+).*", r"\1", kind))
        count = math.prod(int(d) for d in dimensions.split(",") if d)
        sizes[kind] = sizes.get(kind, 0) + -(-count * bits // 8)
    return sizes


def _axes(one: _Instruction, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Mesh axes along which the members of a group differ."""
    if one.opcode == "send":
        return (next(iter(mesh)),)
    shape = tuple(mesh.values())
    groups = _groups(one.rest, math.prod(shape))
    crossed: set[int] = set()
    for group in groups:
        places = np.array(np.unravel_index(np.asarray(group), shape))
        crossed |= set(np.flatnonzero((places != places[:, :1]).any(axis=1)).tolist())
    return tuple(name for i, name in enumerate(mesh) if i in crossed)


def _groups(attributes: str, devices: int) -> Sequence[Sequence[int]]:
    """The groups of devices that meet, in any of the ways HLO prints them."""
    if printed := _MESH.search(attributes):
        return _mesh_groups(*printed.groups())
    if printed := _IOTA.search(attributes):
        shape, dimensions, order = printed.groups()
        return _iota(dimensions, order).reshape(_numbers(shape)).tolist()
    if printed := _LISTED.search(attributes):
        return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", printed.group(1))]
    if "replica_groups={}" in attributes:
        return [list(range(devices))]  # everybody
    raise HloError(
        f"expected groups of devices in one of the known spellings, got {attributes[:300]!r}"
    )


def _numbers(printed: str) -> list[int]:
    return [int(x) for x in printed.split(",")]


def _iota(dimensions: str, order: str | None) -> np.ndarray:
    """Device numbers printed as `[2,4]` or, transposed, `[2,4]T(1,0)`."""
    shape = _numbers(dimensions)
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids if order is None else ids.transpose(_numbers(order))


def _mesh_groups(
    axes: str, dimensions: str | None, order: str | None, crossed: str
) -> list[list[int]]:
    """Groups printed as axes of a mesh: `mesh['a'=4,'b'=2] {'a'}`, or of a part of an axis: `{'a':(2)2}`.

    The mesh's devices may be in another order: `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}`.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    parts = {
        name: (int(before), int(size))
        for name, before, size in re.findall(r"'([^']+)':\((\d+)\)(\d+)", crossed)
    }
    whole = [name for name in re.findall(r"'([^']+)'", crossed) if name not in parts]
    shape: list[int] = []
    met: list[int] = []  # dimensions of `shape` that a group spans
    for name, size in sizes.items():
        before, part = parts.get(name, (1, size))
        if name in parts or name in whole:
            met.append(len(shape) + 1)
        shape += [before, part, size // before // part]
    ids = (np.arange(math.prod(shape)) if dimensions is None else _iota(dimensions, order)).reshape(
        shape
    )
    rest = [i for i in range(len(shape)) if i not in met]
    return ids.transpose([*rest, *met]).reshape(-1, math.prod(shape[i] for i in met)).tolist()
