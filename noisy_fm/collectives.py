"""Reads from a compiled program which data its devices send one another, and how much."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
NO_ESTIMATE = 2**63 - 1
BITS = {"pred": 8, "token": 0, "opaque": 0}  # others end in their number of bits

_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_ASSIGNED = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ([\w\-]+)(?=\()")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?(%?[\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_BOUND = re.compile(r" s32\[\]\S* constant\((\d+)\)")


class Array(NamedTuple):
    """The type of one array in a program."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        if self.dtype in BITS:
            bits = BITS[self.dtype]
        else:
            found = re.search(r"\d+", self.dtype)
            bits = int(found.group()) if found else 8
        return math.ceil(math.prod(self.shape) * bits / 8)


class Collective(NamedTuple):
    """One collective operation of a program, as one device sees it.

    `arrays` are the larger of its operands and results (what is gathered, reduced or permuted),
    `group` is how many devices take part in one instance, `times` how often it runs (a loop's body
    more than once), `name` the place in the traced program it comes from.
    """

    kind: str
    arrays: tuple[Array, ...]
    group: int
    times: int
    name: str

    @property
    def bytes(self) -> int:
        """Bytes of its arrays, all runs together."""
        return self.times * sum(array.bytes for array in self.arrays)

    @property
    def sent(self) -> float:
        """Bytes each device sends with ring algorithms.

        (g − 1)/g of the array for gather, scatter and all-to-all, twice that for an all-reduce
        (a scatter and a gather), the array itself for a permutation (Thakur et al., 2005).
        """
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes)
        ways = (self.group - 1) / self.group
        return (2 if self.kind == "all-reduce" else 1) * ways * self.bytes

    def __str__(self) -> str:
        arrays = ", ".join(f"{a.dtype}{list(a.shape)}" for a in self.arrays)
        return f"{self.times} × {self.kind} over {self.group} of {arrays} ({self.name})"


def read(hlo: str, *, devices: int) -> list[Collective]:
    """The collectives of an optimised program (`compiled.as_text()`) in the order of its text.

    Asynchronous pairs count once; operations in loops as often as the loop runs where that is
    known, else once. An all-reduce that the TPU compiler fused with the slice of its result is
    listed as the reduce-scatter that it is.
    """
    found = []
    for operation, times, inside, results in _run(hlo):
        _, result, opcode, operands, rest = operation
        kind = opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        arrays = _larger(result, [results.get(name, "") for name in operands], opcode)
        if kind == "all-reduce" and inside.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        group = _group(rest, devices)
        if group > 1 or kind == "collective-permute":
            found.append(Collective(kind, arrays, group, times, _source(rest)))
    return found


def cycles(hlo: str) -> int:
    """The TPU compiler's own estimate of a program's clock cycles; 0 if it gives none.

    Its cost model's, without waiting for other chips; loops count as often as they run, operations
    that it cannot estimate not at all.
    """
    found = 0
    for operation, times, inside, _ in _run(hlo):
        estimate = _CYCLES.search(operation[-1])
        if not estimate or "fused" in inside:  # a fusion's own is that of all in it
            continue
        if (count := int(estimate.group(1))) < NO_ESTIMATE:
            found += times * count
    return found


def _computations(hlo: str) -> dict[str, tuple[bool, list[str]]]:
    """{name: (whether it is the entry, lines)}."""
    computations: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            lines = []
            computations[header.group(2)] = (bool(header.group(1)), lines)
        else:
            lines.append(line)
    if not any(is_entry for is_entry, _ in computations.values()):
        raise ValueError("the text has no ENTRY computation; expected an optimised HLO module")
    return computations


def _run(hlo: str) -> Iterator[tuple[tuple, int, str, dict[str, str]]]:
    """(operation, how often it runs, its computation, types of results so far) of a program."""
    computations = _computations(hlo)
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)
    yield from _walk(entry, 1, computations)


def _walk(inside: str, times: int, computations) -> Iterator[tuple[tuple, int, str, dict]]:
    results: dict[str, str] = {}
    for line in computations[inside][1]:
        operation = _operation(line)
        if not operation:
            continue
        own, result, opcode, _, rest = operation
        results[own] = result
        yield operation, times, inside, results
        if opcode.removesuffix("-start") in KINDS:
            continue  # what it calls is the addition it reduces with
        runs = times * (_trips(rest, computations) if opcode == "while" else 1)
        for called in _called(rest):
            if called in computations:
                yield from _walk(called, runs, computations)


def _operation(line: str) -> tuple[str, str, str, list[str], str] | None:
    """(name, type of the result, opcode, names of the operands, the rest) of one line."""
    assigned = _ASSIGNED.match(line)
    if not assigned:
        return None
    start = assigned.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opcode = _OPCODE.match(line, end)
    if not opcode:
        return None
    closing = _closing(line, opcode.end())
    operands = re.findall(r"%([\w.\-]+)", line[opcode.end() : closing])
    return assigned.group(1), line[start:end], opcode.group(1), operands, line[closing:]


def _closing(line: str, start: int) -> int:
    """The index after the bracket that closes the one at `start`; layouts have brackets too."""
    depth = 0
    for i in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[i], 0)
        if depth == 0:
            return i + 1
    return len(line)


def _trips(rest: str, computations) -> int:
    """How often a loop runs: as the compiler says, else the one constant its end is tested with."""
    if known := _TRIPS.search(rest):
        return int(known.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    lines = computations[condition.group(1)][1] if condition else []
    bounds = {int(n) for line in lines for n in _BOUND.findall(line)}
    return bounds.pop() if len(bounds) == 1 else 1


def _called(rest: str) -> Iterator[str]:
    for match in _CALLED.finditer(rest):
        yield match.group(1).lstrip("%")
    for match in _BRANCHES.finditer(rest):
        yield from (name.strip().lstrip("%") for name in match.group(1).split(","))


def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(n) for n in shape.split(",") if n))
        for dtype, shape in _SHAPE.findall(text)
        if dtype not in BITS or dtype == "pred"
    )


def _larger(result: str, operands: list[str], opcode: str) -> tuple[Array, ...]:
    """Operands or results, whichever are more bytes; `-start` operations return both."""
    given, results = _arrays(" ".join(operands)), _arrays(result)
    if opcode.endswith("-start") and len(results) > len(given):
        results = results[len(given) : 2 * len(given)]  # then come contexts
    return max(results, given, key=lambda arrays: sum(array.bytes for array in arrays))


def _group(rest: str, devices: int) -> int:
    """Devices in one replica group, in any of the four ways in which XLA writes it.

    `{{0,1},{2,3}}`; `[groups,size]<=[…]`; `mesh['x'=4,'y'=2] … {'x'}`, where an axis may be a part
    of one, `'x':(2)2`; or nothing, for all.
    """
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(match.group(2))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return match.group(1).count(",") + 1
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"('\w+')=(\d+)", match.group(1)))
        parts = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", match.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return devices


def _source(rest: str) -> str:
    match = re.search(r'op_name="([^"]*)"', rest)
    return match.group(1) if match else ""
