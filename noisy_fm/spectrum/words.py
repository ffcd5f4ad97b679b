"""What was measured of several sets of features, in sentences built from the numbers."""

import math
from collections.abc import Mapping

from noisy_fm.spectrum.intervals import Interval
from noisy_fm.spectrum.measure import EQUAL, Measured, share_of_most
from noisy_fm.spectrum.sample import SEED

TITLES = {"sve": "SVE", "lsvr": "LSVR", "sve_share": "SVE / log min(n, d)"}
NAMED = 3  # more sets than that in one direction are counted, and the furthest is named
SIZED = 6  # of more sets than that the range of sizes is told


def headline(found: Measured) -> str:
    """One sentence: what differs between the sets, or what the one set is."""
    first, *others = found.spectra
    if not others:
        return _alone(found, first)
    raw = [name for name in others if "sve" in found.differences[name]]
    parts = []
    if raw:
        parts = [_metric(found, metric, raw) for metric in ("sve", "lsvr")]
    if len(raw) < len(others):
        rest = [name for name in others if name not in raw]
        parts.append(_metric(found, "sve_share", rest))
    if len(others) == 1:
        sentence = f"{others[0]} {' and '.join(parts)}".replace(" and has ", " and ")
    else:
        sentence = f"Against {first}, {'; '.join(parts)}"
    rows = sorted(row["n"] for row in found.summaries.values())
    where = f", at {rows[0]:,} rows each"
    if rows[0] < rows[-1]:
        where = f", from {rows[0]:,} to {rows[-1]:,} rows, on which it depends"
    judged = all(math.isfinite(d["sve_share"].low) for d in found.differences.values())
    return f"{sentence}{where}{'' if judged else '; without intervals, chance is not judged'}."


def cautions(found: Measured) -> list[str]:
    """What makes the sets unlike, and what was left out for it; [] where they are alike."""
    return [*_rows(found), *_width(found), *_intervals(found), *_flat(found)]


def pairing(found: Measured) -> str:
    """How the differences were taken, in a sentence."""
    others = list(found.differences)
    paired = [name for name in others if name in found.paired]
    apart = [name for name in others if name not in found.paired]
    same = f"rows of {_listed(paired)} are taken to be the examples of {found.first}, in its order"
    if not apart:
        return f"Paired: {same} (were they others, the intervals would still hold)"
    if not paired:
        return "Not paired: the sets have other rows, so both errors count"
    return f"Paired: {same}; not paired: {_listed(apart)}, whose rows are others"


def _alone(found: Measured, name: str) -> str:
    row, bounds = found.summaries[name], found.bounds.get(name, {})
    share = share_of_most(row)
    most = "" if math.isnan(share) else f", {share:.0%} of the most that its n and d allow"
    sve, lsvr = (f"{row[m]:.3g}{_bracket(bounds.get(m))}" for m in ("sve", "lsvr"))
    one = min(1.0, math.exp(-row["lsvr"]))
    name = name or "The features"
    return (
        f"{name}: SVE is {sve} nats{most}; LSVR is {lsvr} nats: the strongest direction holds "
        f"{one:.0%} of Σσ."
    )


def _metric(found: Measured, metric: str, names: list[str]) -> str:
    """ "has SVE 0.12 nats above a [0.08, 0.16]" of one set; "SVE is higher in b (…)" of several."""
    differences = {name: found.differences[name][metric] for name in names}
    title, unit = TITLES[metric], "" if metric == "sve_share" else " nats"
    if len(found.spectra) == 2:
        (one,) = differences.values()
        if not math.isfinite(one.value):
            return f"has no {title} to compare"
        if one.value == 0:
            return f"has the {title} of {found.first}"
        side = "above" if one.value > 0 else "below"
        if _sure(one) or not math.isfinite(one.low):
            return f"has {title} {_number(abs(one.value), one)}{unit} {side} {found.first}" + (
                _magnitudes(one)
            )
        return f"shows no difference from {found.first} in {title}{_bracket(one)}"
    sides = {
        "higher in": {n: d for n, d in differences.items() if _counts(d) and d.value > 0},
        "lower in": {n: d for n, d in differences.items() if _counts(d) and d.value < 0},
        "not seen to differ in": {n: d for n, d in differences.items() if not _counts(d)},
    }
    words = [f"{side} {_each(those, unit)}" for side, those in sides.items() if those]
    return f"{title} is {', '.join(words)}"


def _each(those: Mapping[str, Interval], unit: str) -> str:
    if len(those) <= NAMED:
        return _listed([f"{n} ({_number(d.value, d, sign=True)}{unit})" for n, d in those.items()])
    name, furthest = max(those.items(), key=lambda pair: abs(pair[1].value))
    return f"{len(those)} sets ({name} {_number(furthest.value, furthest, sign=True)}{unit})"


def _rows(found: Measured) -> list[str]:
    given = {name: n for name, (n, _) in found.given.items()}
    if len(set(given.values())) == 1:
        return []
    taken = {name: row["n"] for name, row in found.summaries.items()}
    line = f"n differs ({_sizes(given)}), and SVE and LSVR depend on it"
    if found.whole:
        return [f"{line}: all rows are taken, so only sets of equal n compare"]
    cut = {name: n for name, n in given.items() if taken[name] < n}
    how = f"drawn without replacement by seed {SEED}"
    if not found.grouped:
        least = min(taken.values())
        those = _listed(list(cut)) if len(cut) <= SIZED else f"the {len(cut)} larger sets"
        line += f": {least:,} rows were {how} from {those}, and the rest left out"
    else:
        line += f": whole groups were {how}, which leaves {_sizes(taken)} rows"
    unequal = [n for n in taken.values() if abs(n - min(taken.values())) > EQUAL * n]
    line += "; whole groups fit no better, so these sets do not compare" if unequal else ""
    return [f"{line}; --whole (whole=True) takes all rows"]


def _width(found: Measured) -> list[str]:
    given = {name: d for name, (_, d) in found.given.items()}
    if len(set(given.values())) == 1:
        return []
    return [
        f"d differs ({_sizes(given)}): raw SVE and LSVR are not comparable. SVE / log min(n, d), "
        "between 0 and 1, takes out the largest value that SVE can have, and nothing else of d"
    ]


def _intervals(found: Measured) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for name, reason in found.unbounded.items():
        reasons.setdefault(reason, []).append(name or "the features")
    return [f"no intervals of {_listed(those)}: {why}" for why, those in reasons.items()]


def _flat(found: Measured) -> list[str]:
    return [
        f"{name}: rank 1, every row is a multiple of one (constant features?)"
        for name, row in found.summaries.items()
        if row["numerical_rank"] == 1
    ]


def _sizes(sizes: Mapping[str, int]) -> str:
    if len(sizes) > SIZED:
        return f"{min(sizes.values()):,} to {max(sizes.values()):,}"
    return ", ".join(f"{name} {size:,}" for name, size in sizes.items())


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _counts(one: Interval) -> bool:
    """Whether a difference is told as one: its interval leaves 0 out, or there is none."""
    return _sure(one) or (not math.isfinite(one.low) and one.value != 0)


def _sure(one: Interval) -> bool:
    return one.low > 0 or one.high < 0


def _number(value: float, one: Interval | None, *, sign: bool = False) -> str:
    """A number to the decimals that its interval deserves."""
    half = (one.high - one.low) / 2 if one is not None else 0.0
    decimals = 2
    if math.isfinite(half) and half > 0:
        decimals = min(4, max(2, math.ceil(-math.log10(half / 2))))
    text = f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text.lstrip("+−")


def _bracket(one: Interval | None) -> str:
    if one is None or not math.isfinite(one.low):
        return ""
    return f" [{_number(one.low, one)}, {_number(one.high, one)}]"


def _magnitudes(one: Interval) -> str:
    """The bounds of a difference's size, for words that tell its direction."""
    if not math.isfinite(one.low):
        return ""
    low, high = sorted((abs(one.low), abs(one.high)))
    return f" [{_number(low, one)}, {_number(high, one)}]"
