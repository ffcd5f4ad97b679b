"""Benchmarks: ours and its peers in turn, in one process tree, medians of paired repeats.

    python tools/bench.py NAME [--json] [--repeats 7]

A benchmark is a module of `tools/benchmarks/` with `run(measure) -> list[Case]`; it builds the
callables (each runs the work once and blocks until it is done) and hands them to `measure`.
"""

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass
class Case:
    """One row: seconds (or another unit) for ours and for each peer, and what was aimed at.

    `ratios` maps a peer's name to peer / ours (above 1: ours is faster); `targets` to the least
    ratio the issue asks for (`met` is whether all hold). `note` is free text for the table.
    """

    case: str
    ours: float
    unit: str = "s"
    peers: dict[str, float] = dataclasses.field(default_factory=dict)
    ratios: dict[str, float] = dataclasses.field(default_factory=dict)
    target: dict[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool | None:
        if not self.target:
            return None
        return all(self.ratios[name] >= least for name, least in self.target.items())


def measure(
    case: str,
    ours: Callable[[], object],
    peers: dict[str, Callable[[], object]],
    *,
    repeats: int = 7,
    target: dict[str, float] | None = None,
    note: str = "",
) -> Case:
    """Runs ours and every peer once to warm up, then in turn `repeats` times.

    Ratios are medians of the per-round ratios, so a machine that drifts slows both sides alike.
    """
    contestants = {"ours": ours, **peers}
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return Case(
        case,
        ours=statistics.median(seconds["ours"]),
        peers={name: statistics.median(seconds[name]) for name in peers},
        ratios={
            name: statistics.median(
                theirs / mine for theirs, mine in zip(seconds[name], seconds["ours"], strict=True)
            )
            for name in peers
        },
        target=target or {},
        note=note,
    )


def environment(packages=("jax", "numpy", "torch", "scikit-learn")) -> dict:
    """The device's name and the versions of what was compared."""
    import jax

    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    name = device.device_kind if device.platform != "cpu" else f"cpu ×{len(_cores())}"
    return {"device": name, "versions": versions}


def _cores() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(1))


def table(cases: list[Case]) -> str:
    rows = [("case", "ours", "peer", "peer/ours", "target", "met", "note")]
    for case in cases:
        first = (case.case, f"{case.ours:.4g} {case.unit}")
        names = list(case.ratios) or [""]
        for i, name in enumerate(names):
            peer = f"{name} {case.peers[name]:.4g}" if name in case.peers else name
            ratio = f"{case.ratios[name]:.2f}" if name else ""
            target = f"≥ {case.target[name]:g}" if name in case.target else ""
            hit = {None: "", True: "yes", False: "no"}[
                case.ratios[name] >= case.target[name] if name in case.target else None
            ]
            rows.append(
                (*(first if i == 0 else ("", "")), peer, ratio, target, hit, case.note * (i == 0))
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main(argv: list[str] | None = None) -> None:
    here = Path(__file__).parent
    names = sorted(p.stem for p in (here / "benchmarks").glob("*.py") if p.stem != "__init__")
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="NAME --help says what that benchmark takes besides.",
        add_help=False,
    )
    parser.add_argument("name", nargs="?", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    parser.add_argument("--repeats", type=int, default=7, help="paired rounds (default 7)")
    args, rest = parser.parse_known_args(argv)
    if args.name is None:
        parser.print_help()
        return
    sys.path.insert(0, str(here))
    sys.modules["bench"] = sys.modules[__name__]
    module = importlib.import_module(f"benchmarks.{args.name}")

    def paired(*a, **kw):
        return measure(*a, **{"repeats": args.repeats, **kw})

    cases = module.run(paired, rest)
    if args.json:
        rows = [{**dataclasses.asdict(c), "met": c.met} for c in cases]
        print(json.dumps({"name": args.name, **environment(), "cases": rows}))
    else:
        env = environment()
        print(f"{args.name} on {env['device']}  {env['versions']}\n{table(cases)}")


if __name__ == "__main__":
    main()
