"""What a page about several sets of features says: each one's spectrum, and what differs."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from noisy_fm.scalars import as_flag
from noisy_fm.spectrum.arrays import Rows, as_features
from noisy_fm.spectrum.intervals import (
    Interval,
    Replicates,
    band_of,
    difference_of,
    intervals_of,
    replicate,
)
from noisy_fm.spectrum.moments import Spectrum, resolve
from noisy_fm.spectrum.sample import equal_rows, groups_by_name, require_names

CHUNK = 8192
# Rows × d² up to which the page's jackknife takes seconds; `jackknife` itself has no limit.
INTERVAL_WORK = 3e10
FEWEST_ROWS, FEWEST_GROUPS = 6, 3
# Whole groups may miss the common number of rows by this share and count as equal.
EQUAL = 0.01
NAN = float("nan")
PANELS = {"sve": "SVE, nats", "lsvr": "LSVR, nats", "sve_share": "SVE / log min(n, d)"}


class Measured(NamedTuple):
    """What was measured of each named set of features, in the order they were given.

    given: rows and features that it has; its summary tells those that were taken.
    unbounded: why it has no intervals, for those that have none although they were asked for.
    differences: from the first set, of those after it: "sve" and "lsvr" where n and d are equal,
      and "sve_share" for all.
    paired: sets whose rows are taken for the first one's examples, in their order.
    """

    spectra: dict[str, Spectrum]
    summaries: dict[str, dict]
    bounds: dict[str, dict[str, Interval]]
    bands: dict[str, np.ndarray]
    given: dict[str, tuple[int, int]]
    unbounded: dict[str, str]
    differences: dict[str, dict[str, Interval]]
    paired: frozenset[str]
    grouped: bool
    whole: bool

    @property
    def first(self) -> str:
        """The name of the set that the others are compared with."""
        return next(iter(self.spectra))

    @property
    def panels(self) -> dict[str, dict[str, Interval]]:
        """The differences as `figures.forest` draws them: a panel a metric, a row a set.

        SVE and LSVR are of the sets that compare in raw values; where some do not, all are
        compared by SVE / log min(n, d) as well.
        """
        raw = all("sve" in found for found in self.differences.values())
        made = {
            PANELS[metric]: {
                name: found[metric] for name, found in self.differences.items() if metric in found
            }
            for metric in PANELS
            if not (raw and metric == "sve_share")
        }
        return {title: rows for title, rows in made.items() if rows}


def measure(
    features: Mapping[str, object],
    *,
    intervals: bool = True,
    whole: bool = False,
    groups=None,
    ids: Mapping[str, np.ndarray] | None = None,
    center=False,
    normalize=False,
    convention: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Measured:
    """Spectra, intervals, bands and differences of named features [n d], chunk by chunk.

    Args:
      intervals: whether to jackknife; not done for a matrix where it would take long.
      whole: take all rows. By default sets of more rows than the smallest are cut to its number,
        without replacement, by a fixed seed: SVE and LSVR depend on n.
      groups: [n] for all sets, or a mapping of their names to it; rows of one group stay together
        in the sample and in the jackknife.
      ids: name → [n], which example a row is of. Sets of the first one's n are paired with it row
        by row, unless both have ids and these differ.
      progress: called as progress(name, rows, of) after every chunk.

    Raises:
      ValueError, TypeError: as `summary`, with the name of the features it is in.
    """
    settings = resolve(center, normalize, convention)
    as_flag("intervals", intervals)
    whole = as_flag("whole", whole)
    arrays = {name: _named(name, as_features, x) for name, x in features.items()}
    if not arrays:
        raise ValueError("no features to measure")
    lengths = {name: len(x) for name, x in arrays.items()}
    for name, n in lengths.items():  # before the others are cut to that
        _named(name, _require_two, n)
    owners, ids = groups_by_name(groups, lengths), ids or {}
    require_names("ids", ids, lengths)
    for name, known in ids.items():
        if len(known) != lengths[name]:
            raise ValueError(f"{name}: ids must be [{lengths[name]}], got [{len(known)}]")
    drawn = {} if whole else equal_rows(lengths, owners)
    spectra, summaries, bounds, bands, unbounded, replicates = {}, {}, {}, {}, {}, {}
    for name, x in arrays.items():
        own = owners[name]
        if name in drawn:
            x, own = Rows(x, drawn[name]), None if own is None else own[drawn[name]]
        spectra[name] = _named(name, _spectrum, x, settings, progress, name)
        summaries[name] = _named(name, spectra[name].summary)
        if not intervals:
            continue
        if reason := _without_intervals(x, own):
            unbounded[name] = reason
            continue
        found = replicates[name] = _named(name, replicate, x, own, 20, 0, settings)
        bounds[name], bands[name] = intervals_of(found), band_of(found)
    first, *others = arrays
    paired = {name for name in others if _paired(first, name, lengths, owners, ids)}
    differences = {
        name: _differences(first, name, summaries, replicates, paired=name in paired)
        for name in others
    }
    given = {name: x.shape for name, x in arrays.items()}
    grouped = any(own is not None for own in owners.values())
    return Measured(
        spectra, summaries, bounds, bands, given, unbounded, differences, frozenset(paired),
        grouped, whole,
    )  # fmt: skip


def share_of_most(row: Mapping) -> float:
    """SVE / log min(n, d) of a summary: 1 where all of its directions are equal; NaN for one."""
    most = math.log(min(row["n"], row["d"]))
    return row["sve"] / most if most else NAN


def scaled(interval: Interval, row: Mapping) -> Interval:
    """An interval of SVE as one of SVE / log min(n, d)."""
    most = math.log(min(row["n"], row["d"])) or NAN
    return Interval(*(v / most for v in interval))


def comparable(a: Mapping, b: Mapping) -> bool:
    """Whether raw SVE and LSVR of two summaries compare: as many rows and features."""
    return a["d"] == b["d"] and abs(a["n"] - b["n"]) <= EQUAL * a["n"]


def _named(name: str, call, *args):
    """What `call` returns; a fault names the features it is in, and that their rows are drawn."""
    try:
        return call(*args)
    except (ValueError, TypeError) as error:
        of = f" (of the {len(args[0])} rows drawn)" if args and isinstance(args[0], Rows) else ""
        raise type(error)(f"{name}: {error}{of}" if name else f"{error}{of}") from None


def _require_two(rows: int) -> None:
    if rows < 2:
        raise ValueError(f"a spectrum needs at least 2 rows, got {rows}")


def _spectrum(x, settings: dict, progress, name: str) -> Spectrum:
    spectrum = Spectrum(**settings)
    for start in range(0, len(x), CHUNK):
        spectrum.update(x[start : start + CHUNK])
        if progress:
            progress(name, spectrum.n, len(x))
    return spectrum


def _without_intervals(x, groups) -> str:
    """Why there are no intervals of features x; "" where there are."""
    if len(x) < FEWEST_ROWS:
        return f"fewer than {FEWEST_ROWS} rows"
    if groups is not None and len(np.unique(groups)) < FEWEST_GROUPS:
        return f"fewer than {FEWEST_GROUPS} groups"
    if len(x) * x.shape[1] ** 2 > INTERVAL_WORK:
        return "too large for the page's jackknife: spectrum.jackknife has no limit"
    return ""


def _paired(first: str, name: str, lengths, owners, ids) -> bool:
    a, b = owners[first], owners[name]
    alike = a is b or (a is not None and b is not None and np.array_equal(a, b))
    same = first not in ids or name not in ids or np.array_equal(ids[first], ids[name])
    return lengths[first] == lengths[name] and alike and same


def _differences(first: str, name: str, summaries, replicates: Mapping[str, Replicates], *, paired):
    """{metric: Interval} of `name` less `first`; NaN bounds where one has no intervals."""
    a, b = summaries[first], summaries[name]
    found = {m: Interval(b[m] - a[m], NAN, NAN, NAN) for m in ("sve", "lsvr")}
    change = share_of_most(b) - share_of_most(a)
    shares = Interval(change, NAN, NAN, NAN)
    if first in replicates and name in replicates:
        raw = difference_of(replicates[first], replicates[name], paired=paired)
        found = {metric: raw[metric] for metric in found}
        scales = [math.log(min(row["n"], row["d"])) or NAN for row in (a, b)]
        shares = difference_of(
            replicates[first], replicates[name], paired=paired, scales=[1 / s for s in scales]
        )["sve"]
    if not comparable(a, b):
        found = {}
    return {**found, "sve_share": shares}
