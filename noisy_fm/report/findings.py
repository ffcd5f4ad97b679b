"""A finding: what a question's paired test gave, its verdict after Holm's correction, its words."""

import dataclasses

import numpy as np

from noisy_fm.report import paired, tables

LEVEL = 0.05
VERDICTS = {
    "seen": "Seen",
    "not seen": "Not seen",
    "too few": "Too few to tell",
    "missing": "Not tested",
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
    direction: float = np.nan  # its sign is the test's, where that is not the effect's own
    low: float = np.nan
    high: float = np.nan
    unit: str = "points"
    p: float = np.nan
    p_holm: float = np.nan
    attainable: float = np.nan
    verdict: str = "missing"
    test: str = ""
    scope: str = ""
    by_part: str = ""
    differences: tuple[float, ...] = ()
    check: bool = False
    family: int = 0  # the number of questions that were corrected for

    @property
    def badge(self) -> str:
        return VERDICTS[self.verdict]

    @property
    def headline(self) -> str:
        if self.verdict == "missing":
            return f"Nothing can be said of a {self.change}."
        if self.verdict == "seen":
            return f"{self.claim}: {self.effect_text}."
        if self.p < LEVEL:
            return f"{self.claim}: {self.effect_text}, but {self.reservation}."
        though = ", though the interval leaves out 0" if self.low > 0 or self.high < 0 else ""
        if self.verdict == "not seen":
            return f"No {self.change} is seen: {self.effect_text}{though}."
        return f"Whether there is a {self.change} cannot be told: {self.effect_text}{though}."

    @property
    def reservation(self) -> str:
        """Why an effect whose own p is below the level is not "seen"."""
        after = f"after correction for {self.family} questions"
        return f"not {after}" if self.verdict == "not seen" else f"the data are too few {after}"

    @property
    def claim(self) -> str:
        sign = self.direction if np.isfinite(self.direction) else self.effect
        return self.up if sign > 0 else self.down

    @property
    def short(self) -> str:
        """The finding in a few words, for the summary at the top."""
        if self.verdict == "missing":
            return f"A {self.change}"
        what = self.claim if self.verdict == "seen" or self.p < LEVEL else f"A {self.change}"
        but = f", but {self.reservation}" if self.verdict != "seen" and self.p < LEVEL else ""
        return f"{what}: {self.effect_text}{but}{' (a check of the set-up)' if self.check else ''}"

    @property
    def effect_text(self) -> str:
        """The effect with its 95 % interval in brackets, where there is one."""
        name, suffix = ("τ = ", "") if self.unit == "τ" else ("", f"\N{NO-BREAK SPACE}{self.unit}")
        text = f"{name}{tables.signed(self.effect, 2)}{suffix}"
        if np.isfinite(self.low):
            text += f" [{tables.signed_interval(self.low, self.high, 2)}]"
        return text

    @property
    def p_text(self) -> str:
        if self.check:
            return f"p {p_value(self.p)}; a check of the set-up, outside the correction"
        return f"p {p_value(self.p)}, Holm-corrected p {p_value(self.p_holm)}"

    def measured(self, found: paired.Test, **words) -> "Finding":
        """The finding with its test's numbers, and the words about it."""
        numbers = ("effect", "low", "high", "p", "attainable")
        given = {name: getattr(found, name) for name in numbers}
        return dataclasses.replace(self, **given, **words)

    def unavailable(self, reason: str) -> "Finding":
        """The finding as not tested, with the reason."""
        return dataclasses.replace(self, change=f"{self.change} ({reason})")


def p_value(p: float) -> str:
    """Two significant digits; below 0.0001 only that."""
    if p < 1e-4:
        return "< 0.0001"
    return f"= {p:.2g}"


def corrected(findings: list[Finding]) -> list[Finding]:
    """Findings with Holm-adjusted p and their verdicts; checks keep their own p.

    "Too few" is a finding that would not be seen even at its smallest attainable p, beside the
    other findings' p as they are.
    """
    family = [finding for finding in findings if np.isfinite(finding.p) and not finding.check]
    adjusted = dict(zip((f.key for f in family), paired.holm([f.p for f in family]), strict=True))
    result = []
    for finding in findings:
        if not np.isfinite(finding.p):
            result.append(finding)
            continue
        p, best = finding.p, finding.attainable
        if not finding.check:
            p = float(adjusted[finding.key])
            best = paired.holm([best, *(f.p for f in family if f is not finding)])[0]
        verdict = "seen" if p < LEVEL else "not seen" if best < LEVEL else "too few"
        result.append(dataclasses.replace(finding, p_holm=p, verdict=verdict, family=len(family)))
    return result
