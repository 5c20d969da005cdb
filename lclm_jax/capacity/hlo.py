"""Bytes that a compiled program sends between devices, read from the text of its HLO.

A computation ends only at a line that is `}`, since the text of kernels has lines that begin with
one. TPUs rename operations (a v5p prints all of them as all-reduce), so trust the bytes and names
of operations, not their kinds.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lclm_jax.errors import UserError

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Bits of the types whose name does not end in their number of bits.
TYPE_BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64, "c128": 128}

_HEADER = re.compile(r"^(?:ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLEE = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_INTEGER_SCALAR = re.compile(r"[su]\d+\[\]")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_MEGASCALE_SEND = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_IOTA_GROUPS = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTED_GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[^=]*\})\}")


class HloError(UserError):
    """HLO text in a form this reader does not know, perhaps from another compiler version."""


@dataclass(frozen=True)
class Collective:
    """One operation between devices, with the number of times the program runs it."""

    kind: str  # one of COLLECTIVES, as printed
    bytes: Mapping[str, int]  # by type, of one run on one device: the larger of operands and result
    axes: tuple[str, ...]  # mesh axes it crosses
    times: int  # runs in one call of the program
    name: str  # of the operation in the traced program

    @property
    def total(self) -> int:
        """Bytes of all runs on one device."""
        return self.times * sum(self.bytes.values())


@dataclass
class _Instruction:
    """One printed line of a computation."""

    name: str
    shape: str  # as printed
    opcode: str
    rest: str  # operands and attributes

    @property
    def chain(self) -> str | None:
        """Key of a collective that runs step by step in several fusions, each of which prints it.

        None for any other instruction.
        """
        chain = re.search(r'chain_id="(\d+)"', self.rest)
        channel = re.search(r"channel_id=(\d+)", self.rest)
        return f"{chain.group(1)} of {channel.group(1)}" if chain and channel else None

    @property
    def constant(self) -> int | None:
        """Value of an integer constant; None for any other instruction."""
        if self.opcode != "constant" or not _INTEGER_SCALAR.match(self.shape):
            return None
        return int(self.rest.partition(")")[0])

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        depth, end = 1, 0
        while depth and end < len(self.rest):
            depth += {"(": 1, ")": -1}.get(self.rest[end], 0)
            end += 1
        return re.findall(r"%([\w.\-]+)", self.rest[: end - 1])

    @property
    def kind(self) -> str | None:
        """Kind of a collective; None for any other instruction.

        The `-done` half of an asynchronous collective sends nothing more and has none. Transfers to
        other slices are sends by the host.
        """
        kind = self.opcode.removesuffix("-start")
        if self.opcode == "send" and (transfer := _MEGASCALE_SEND.search(self.rest)):
            kind = transfer.group(1).lower().replace("_", "-")
        return kind if kind in COLLECTIVES else None

    @property
    def callees(self) -> list[str]:
        """Names of the computations that the instruction runs."""
        names = _CALLEE.findall(self.rest)
        for branches in _BRANCHES.findall(self.rest):
            names += [branch.strip(" %") for branch in branches.split(",")]
        return names


@dataclass
class _Computation:
    """The instructions of one computation of the module."""

    instructions: list[_Instruction] = field(default_factory=list)

    def shapes(self) -> dict[str, str]:
        return {instruction.name: instruction.shape for instruction in self.instructions}


_Module = Mapping[str, _Computation]  # computations by name


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """Return every collective of a module that was compiled for a mesh of these axis sizes.

    The first axis is the one that crosses slices. Raises HloError where the text is not understood.
    """
    module, entry = _parse(text)
    result: list[Collective] = []
    read: set[tuple[str, str]] = set()
    chains: set[str] = set()

    for computation, times in _runs(entry, module, 1):
        shapes = module[computation].shapes()
        for instruction in module[computation].instructions:
            kind, chain = instruction.kind, instruction.chain
            if kind is None:
                continue
            read.add((computation, instruction.name))
            if chain in chains:
                continue
            if chain is not None:
                chains.add(chain)

            payload, axes = _payload(instruction, shapes), _axes(instruction, mesh)
            op_name = re.search(r'op_name="([^"]*)"', instruction.rest)
            name = op_name.group(1) if op_name else instruction.name
            result.append(Collective(kind, payload, axes, times, name))

    printed = _count_printed(text)
    if len(read) != printed:
        raise HloError(
            f"expected all {printed} printed collectives in computations that run, "
            f"found {len(read)}"
        )
    return result


def _count_printed(text: str) -> int:
    """Count the lines of collectives, whichever computation they are in."""
    count = 0
    for kind in COLLECTIVES:
        if kind in text:  # searching the whole text by regular expression is slow
            line = rf"^\s+(?:ROOT )?%?\S+ = .*? {kind}(?:-start)?\("
            count += len(re.findall(line, text, re.M))
    send = r"^\s+(?:ROOT )?%?\S+ = .*? send\(.*_xla_megascale_transfer_type"
    return count + len(re.findall(send, text, re.M))


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """Return all computations by name, and the name of the entry computation."""
    module: dict[str, _Computation] = {}
    entry, current = "", None

    for line in text.splitlines():
        if line == "}":
            current = None
        elif current is None:
            if header := _HEADER.match(line):
                name = header.group(1)
                current = module.setdefault(name, _Computation())
                entry = name if line.startswith("ENTRY") else entry
        elif instruction := _INSTRUCTION.match(line):
            current.instructions.append(_Instruction(*instruction.groups()))

    if not entry:
        raise HloError(
            f"expected the text of an HLO module with an ENTRY computation, got {text[:80]!r}"
        )
    return module, entry


def _runs(name: str, module: _Module, times: int) -> Iterator[tuple[str, int]]:
    """Yield a computation and all it runs, with how often each runs; all branches count."""
    yield name, times
    for instruction in module[name].instructions:
        inside: list[tuple[str, int]] = []
        for callee in instruction.callees:
            if callee in module:
                inside += _runs(callee, module, 1)

        repeats = 1
        if instruction.opcode == "while" and _has_collective(inside, module):
            repeats = _trip_count(instruction, module)
        for callee, count in inside:
            yield callee, count * repeats * times


def _has_collective(runs: Sequence[tuple[str, int]], module: _Module) -> bool:
    return any(instruction.kind for name, _ in runs for instruction in module[name].instructions)


def _trip_count(loop: _Instruction, module: _Module) -> int:
    """Return the iterations of a loop that counts from 0.

    They are those of its annotation or, without one, follow from the constant in its condition.
    """
    if known := _TRIP_COUNT.search(loop.rest):
        return int(known.group(1))

    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    body = re.search(r"body=%?([\w.\-]+)", loop.rest)
    if condition is None or body is None:
        raise HloError(f"loop {loop.name} has no condition or no body")

    instructions: list[_Instruction] = []
    for name, _ in _runs(condition.group(1), module, 1):
        instructions += module[name].instructions
    constants = [instruction.constant for instruction in instructions]
    ends = {constant for constant in constants if constant is not None}
    if len(ends) != 1:
        raise HloError(
            f"expected one constant in the condition of loop {loop.name}, "
            f"which has collectives, got {sorted(ends)}"
        )

    counter = _counter_index(instructions)
    step = _counter_step(module[body.group(1)], counter)
    return -(-ends.pop() // step)


def _counter_index(condition: Sequence[_Instruction]) -> int | None:
    """Return the index of the counter in the loop's tuple; None if it is ambiguous."""
    indices = [
        int(index)
        for instruction in condition
        for index in re.findall(r"index=(\d+)", instruction.rest)
        if _INTEGER_SCALAR.match(instruction.shape)
    ]
    return indices[0] if len(indices) == 1 else None


def _counter_step(body: _Computation, index: int | None) -> int:
    """Return the increment of the counter at this index of the loop's tuple.

    An unrolled loop adds more than 1. Where the increment cannot be read, 1 is assumed.
    """
    if index is None:
        return 1
    by_name = {instruction.name: instruction for instruction in body.instructions}
    counter = by_name.get(body.instructions[-1].operands[index])
    if counter is None or counter.opcode != "add":
        return 1

    operands = [by_name[name].constant for name in counter.operands if name in by_name]
    constants = [constant for constant in operands if constant]
    return constants[0] if len(constants) == 1 else 1


def _payload(instruction: _Instruction, shapes: Mapping[str, str]) -> dict[str, int]:
    """Return bytes by type: the larger of operands and result."""
    operand_bytes: dict[str, int] = {}
    for operand in instruction.operands:
        for kind, size in _shape_bytes(shapes.get(operand, "")).items():
            operand_bytes[kind] = operand_bytes.get(kind, 0) + size
    if instruction.opcode == "send":
        return operand_bytes

    result_bytes = _shape_bytes(instruction.shape)
    if instruction.opcode.endswith("-start"):
        # The result of a started operation may hold its operands, too.
        for kind in result_bytes:
            result_bytes[kind] -= operand_bytes.get(kind, 0)
    return max(operand_bytes, result_bytes, key=lambda sizes: sum(sizes.values()))


def _shape_bytes(shape: str) -> dict[str, int]:
    """Return the bytes of a printed shape by type, summed over a tuple."""
    sizes: dict[str, int] = {}
    for kind, dimensions in _SHAPE.findall(shape):
        if kind == "token":
            continue
        bits = TYPE_BITS.get(kind) or int(re.sub(r"^[a-z]+(\d+).*", r"\1", kind))
        count = math.prod(int(size) for size in dimensions.split(",") if size)
        sizes[kind] = sizes.get(kind, 0) + -(-count * bits // 8)
    return sizes


def _axes(instruction: _Instruction, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Return the mesh axes along which the devices of a group differ."""
    if instruction.opcode == "send":
        return (next(iter(mesh)),)

    shape = tuple(mesh.values())
    crossed: set[int] = set()
    for group in _groups(instruction.rest, math.prod(shape)):
        coordinates = np.array(np.unravel_index(np.asarray(group), shape))
        differs = (coordinates != coordinates[:, :1]).any(axis=1)
        crossed |= set(np.flatnonzero(differs).tolist())
    return tuple(name for index, name in enumerate(mesh) if index in crossed)


def _groups(attributes: str, devices: int) -> Sequence[Sequence[int]]:
    """Return the groups of devices that exchange data, from any of the forms HLO prints."""
    if match := _MESH_GROUPS.search(attributes):
        return _mesh_groups(*match.groups())
    if match := _IOTA_GROUPS.search(attributes):
        shape, dimensions, order = match.groups()
        return _iota(dimensions, order).reshape(_integers(shape)).tolist()
    if match := _LISTED_GROUPS.search(attributes):
        return [_integers(group) for group in re.findall(r"\{([\d,]+)\}", match.group(1))]
    if "replica_groups={}" in attributes:
        return [list(range(devices))]
    raise HloError(
        f"expected groups of devices in one of the known forms, got {attributes[:300]!r}"
    )


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _iota(dimensions: str, order: str | None) -> np.ndarray:
    """Return the device numbers printed as `[2,4]` or, transposed, `[2,4]T(1,0)`."""
    shape = _integers(dimensions)
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids if order is None else ids.transpose(_integers(order))


def _mesh_groups(
    axes: str, dimensions: str | None, order: str | None, crossed: str
) -> list[list[int]]:
    """Return groups printed as axes of a mesh, `mesh['a'=4,'b'=2] {'a'}`.

    A group may span part of an axis, `{'a':(2)2}`: 2 devices, below a factor of 2. The devices may
    be in another order: `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}`.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    parts = {
        name: (int(before), int(size))
        for name, before, size in re.findall(r"'([^']+)':\((\d+)\)(\d+)", crossed)
    }
    crossed_names = re.findall(r"'([^']+)'", crossed)

    # Every axis becomes three dimensions, of which a group spans at most the middle one.
    shape: list[int] = []
    spanned: list[int] = []
    for name, size in sizes.items():
        before, part = parts.get(name, (1, size))
        if name in crossed_names:
            spanned.append(len(shape) + 1)
        shape += [before, part, size // before // part]

    ids = np.arange(math.prod(shape)) if dimensions is None else _iota(dimensions, order)
    others = [dimension for dimension in range(len(shape)) if dimension not in spanned]
    members = math.prod(shape[dimension] for dimension in spanned)
    ordered = ids.reshape(shape).transpose([*others, *spanned])
    return ordered.reshape(-1, members).tolist()
