"""A finding: what a question's paired test gave, its verdict after Holm's correction, its words."""

import dataclasses

import numpy as np
import pandas as pd

from noisy_fm import statistics
from noisy_fm.report import tables

VERDICTS = {
    "seen": "Seen",
    "not seen": "Not seen",
    "described": "Described only",
    "missing": "Not asked",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One question. `up`, `down` say the effect; `change` names it as a noun.

    A `check` asks whether the set-up works at all, and stays outside the family of questions.
    """

    key: str
    change: str
    up: str = ""
    down: str = ""
    effect: float = np.nan
    low: float = np.nan
    high: float = np.nan
    unit: str = "points"
    p: float = np.nan  # NaN: described, not judged
    p_holm: float = np.nan
    verdict: str = "missing"
    needs: str = ""  # where it is missing: what the records lack
    test: str = ""
    scope: str = ""
    by_part: str = ""
    differences: tuple[float, ...] = ()  # one a pre-training seed
    ends: tuple[float, ...] = ()  # highest γ less the lowest: value, low, high
    contrasts: int = 1  # of which this is the clearest, p and interval being for all
    spread: float = np.nan  # standard deviation between runs, where not of `differences`
    check: bool = False
    family: int = 0  # the number of questions that were corrected for

    @property
    def badge(self) -> str:
        return VERDICTS[self.verdict]

    @property
    def digits(self) -> int:
        return 3 if self.unit == "nats" else 2

    @property
    def headline(self) -> str:
        if self.verdict == "missing":
            return f"{self.change[0].upper()}{self.change[1:]}: needs {self.needs}."
        if self.verdict == "described":
            return f"{self.change[0].upper()}{self.change[1:]}: {self.effect_text}."
        if self.verdict == "seen":
            return f"{self.claim}: {self.effect_text}."
        if self.p < statistics.LEVEL:
            return f"{self.claim}: {self.effect_text}, but {self.reservation}."
        return f"No {self.change} is seen: {self.effect_text}."

    @property
    def reservation(self) -> str:
        """Why an effect whose own p is below the level is not "seen"."""
        return f"not after correction for {tables.plural(self.family, 'question')}"

    @property
    def claim(self) -> str:
        return self.up if self.effect > 0 else self.down

    @property
    def effect_text(self) -> str:
        """The effect with its 95 % interval in brackets, where there is one."""
        return self.worded((self.effect, self.low, self.high), self.digits)

    @property
    def ends_text(self) -> str:
        """The change from the lowest γ to the highest itself, points to one decimal place.

        Of a question that has none, or whose line runs the other way, it is the effect.
        """
        same = self.ends and self.ends[0] * self.effect > 0
        numbers = self.ends if same else (self.effect, self.low, self.high)
        return self.worded(numbers, 1 if self.unit == "points" else self.digits)

    def worded(self, numbers: tuple[float, ...], digits: int) -> str:
        """(value, low, high) in this question's unit; an interval not finite is left out."""
        value, low, high = numbers
        name, suffix = ("r = ", "") if self.unit == "r" else ("", f"\N{NO-BREAK SPACE}{self.unit}")
        text = f"{name}{tables.signed(value, digits)}{suffix}"
        return text + f" [{tables.signed_interval(low, high, digits)}]" * bool(np.isfinite(low))

    @property
    def p_text(self) -> str:
        """The p-values and what such a test could find; empty where nothing was judged."""
        if self.verdict not in ("seen", "not seen"):
            return ""
        text = f"p {p_value(self.p)}; a check of the set-up, outside the correction"
        if not self.check:
            text = f"p {p_value(self.p)}, Holm-corrected p {p_value(self.p_holm)}"
        seeds = tables.plural(len(self.differences), "seed")
        least = f"{self.smallest:.{self.digits}f}"
        least = f"r = {least}" if self.unit == "r" else f"{least}\N{NO-BREAK SPACE}{self.unit}"
        spread = f"{self.between_runs:.{self.digits}f}"
        return (
            f"{text}. Standard deviation between runs {spread}: with {seeds} an effect under "
            f"{least} is missed more than once in five times, before correction"
        )

    @property
    def between_runs(self) -> float:
        """Standard deviation of the numbers, one a run."""
        return self.spread if np.isfinite(self.spread) else float(np.std(self.differences, ddof=1))

    @property
    def smallest(self) -> float:
        """The effect that four of five tests with this spread would find."""
        spread, n = self.between_runs, len(self.differences)
        if self.unit == "r":
            spread = float(np.std(fisher(self.differences), ddof=1))
        found = statistics.smallest_effect(spread, n, questions=self.contrasts)
        return float(np.tanh(found)) if self.unit == "r" else found

    def measured(self, values, outcome: statistics.Test | None, **words) -> "Finding":
        """The finding with one number a seed and what they gave; `corrected` judges it."""
        values = tuple(float(value) for value in values)
        effect = outcome.effect if outcome else float(np.mean(values))
        found = dataclasses.replace(
            self, effect=effect, differences=values, verdict="described", **words
        )
        if not outcome:
            return found
        return dataclasses.replace(found, low=outcome.low, high=outcome.high, p=outcome.p)

    def unavailable(self, needs: str) -> "Finding":
        """The finding as one that these records cannot give, with what it needs."""
        return dataclasses.replace(self, needs=needs)


def fisher(r) -> np.ndarray:
    """Fisher's z = artanh r, kept finite."""
    return np.arctanh(np.clip(r, -1 + 1e-9, 1 - 1e-9))


def p_value(p: float) -> str:
    """Two significant digits; below 0.0001 only that."""
    if p < 1e-4:
        return "< 0.0001"
    return f"= {p:.2g}"


def by_part(text: str, means: pd.Series, digits: int) -> str:
    """`text` and the mean change at each γ, where there are several."""
    if len(means) < 2:
        return text
    levels = [
        f"{tables.percent(rate)}\N{NO-BREAK SPACE}{tables.signed(value, digits)}"
        for rate, value in means.items()
    ]
    return f"{text} By γ: {', '.join(levels)}.".strip()


def by_seed(values: pd.Series, digits: int) -> str:
    """The number of each pre-training seed, where there are several."""
    if not 1 < len(values) <= 12:
        return ""
    parts = [f"seed {seed:g} {tables.signed(value, digits)}" for seed, value in values.items()]
    return f"By pre-training seed: {', '.join(parts)}."


def corrected(findings: list[Finding]) -> list[Finding]:
    """Findings with Holm-adjusted p and their verdicts; checks keep their own p.

    Questions that are only described, or not asked, are not in the family.
    """
    family = [finding for finding in findings if np.isfinite(finding.p) and not finding.check]
    adjusted = statistics.holm([finding.p for finding in family])
    p_of = {finding.key: float(p) for finding, p in zip(family, adjusted, strict=True)}
    result = []
    for finding in findings:
        if np.isfinite(finding.p):
            p = p_of.get(finding.key, finding.p)
            verdict = "seen" if p < statistics.LEVEL else "not seen"
            finding = dataclasses.replace(finding, p_holm=p, verdict=verdict)
        result.append(dataclasses.replace(finding, family=len(family)))
    return result
