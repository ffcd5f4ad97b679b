"""What the records show and what they do not: each question, its paired test, its verdict.

The independent unit behind an effect of γ is a pre-training run. With enough runs they are the
pairs; with few, the pairs are tasks, and the finding says that it speaks of these models only.
"""

import dataclasses

import numpy as np
import pandas as pd

from noisy_fm.report import paired, tables

LEVEL = 0.05
SLIGHT_NOISE = 0.10
# Runs are the unit once their number lets a test reach this p, which survives the correction.
RUNS_SUFFICE = 0.005
VERDICTS = {
    "seen": "Seen",
    "not seen": "Not seen",
    "too few": "Too few to tell",
    "missing": "Not tested",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One question of the family. `up`, `down` say the effect; `change` names it as a noun."""

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

    @property
    def badge(self) -> str:
        return VERDICTS[self.verdict]

    @property
    def headline(self) -> str:
        if self.verdict == "missing":
            return f"Nothing can be said of a {self.change}."
        if self.verdict == "seen":
            return f"{self.claim}: {self.effect_text}."
        if self.verdict == "not seen":
            return f"No {self.change} is seen: {self.effect_text}."
        return f"Whether there is a {self.change} cannot be told: {self.effect_text}."

    @property
    def claim(self) -> str:
        sign = self.direction if np.isfinite(self.direction) else self.effect
        return self.up if sign > 0 else self.down

    @property
    def short(self) -> str:
        """The finding in a few words, for the summary at the top."""
        if self.verdict == "missing":
            return f"A {self.change}"
        return f"{self.claim if self.verdict == 'seen' else 'A ' + self.change}: {self.effect_text}"

    @property
    def effect_text(self) -> str:
        """The effect with its 95 % interval in brackets, where there is one."""
        digits = {"points": 2, "nats": 3, "τ": 2}[self.unit]
        name, suffix = ("τ = ", "") if self.unit == "τ" else ("", f"\N{NO-BREAK SPACE}{self.unit}")
        text = f"{name}{signed(self.effect, digits)}{suffix}"
        if np.isfinite(self.low):
            text += f" [{signed(self.low, digits)},\N{NO-BREAK SPACE}{signed(self.high, digits)}]"
        return text

    @property
    def p_text(self) -> str:
        return f"p {p_value(self.p)}, Holm-corrected p {p_value(self.p_holm)}"


def signed(value: float, digits: int) -> str:
    """A number with its sign and a true minus; zero has none."""
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        return text[1:]
    return text.replace("-", "\N{MINUS SIGN}")


def p_value(p: float) -> str:
    """Two significant digits; below 0.0001 only that."""
    if p < 1e-4:
        return "< 0.0001"
    return f"= {p:.2g}"


def collect(records: pd.DataFrame) -> list[Finding]:
    """Every question, tested, with Holm's correction over those that could be tested."""
    lp = {shift: probe(records, shift, "lp") for shift in tables.SHIFTS}
    findings = [
        pretraining_trend(records),
        *slight_noise(lp["id"]),
        noise_out_of_domain(lp["ood"]),
        spectrum_trend(records, "sve", "The singular value entropy of F (SVE)"),
        spectrum_trend(records, "lsvr", "The largest singular value ratio of F (LSVR)"),
        lsvr_with_accuracy(records, lp["ood"]),
        *(
            method_effect(records, other, shift)
            for other in ("lp", "mlp")
            for shift in tables.SHIFTS
        ),
    ]
    return corrected(findings)


def corrected(findings: list[Finding]) -> list[Finding]:
    """Findings with Holm-adjusted p and their verdicts."""
    tested = [finding for finding in findings if np.isfinite(finding.p)]
    adjusted = dict(zip((f.key for f in tested), paired.holm([f.p for f in tested]), strict=True))
    result = []
    for finding in findings:
        if finding.key not in adjusted:
            result.append(finding)
            continue
        others = [f.p for f in tested if f.key != finding.key]
        best = paired.holm([*others, finding.attainable])[-1]
        p = float(adjusted[finding.key])
        verdict = "seen" if p < LEVEL else "not seen" if best < LEVEL else "too few"
        result.append(dataclasses.replace(finding, p_holm=p, verdict=verdict))
    return result


def probe(records: pd.DataFrame, shift: str, method: str) -> pd.DataFrame:
    """Full-data accuracies of one method; of several presets the paper's, else the first."""
    frame = tables.full_data(tables.probe_scores(records, shift=shift, metric="accuracy"))
    frame = frame[frame["method"] == method]
    labels = tables.ordered_labels(frame["label"])
    preferred = [label for label in labels if "(paper)" in label] or labels
    return frame[frame["label"].isin(preferred[:1])]


def pretraining_trend(records: pd.DataFrame) -> Finding:
    """Does pre-training accuracy fall with γ?"""
    base = Finding(
        key="pretrain",
        change="change of pre-training accuracy with γ",
        up="Pre-training accuracy rises with γ",
        down="Pre-training accuracy falls with γ",
    )
    frame = records[(records["stage"] == "pretrain") & (records["metric"] == "accuracy")]
    rates = sorted(frame["noise_rate"].unique())
    if len(rates) < 2:
        return unavailable(base, "pre-training accuracy is recorded at fewer than two γ")
    runs = frame.groupby(["model", "seed", "noise_rate"])[["value", "low", "high", "n"]].mean()
    runs = runs.reset_index()
    blocks = blocks_of(runs, ["model", "seed"], "noise_rate", "value")
    test = paired.kendall_in_blocks(blocks)
    direction, p, attainable = test.effect, test.p, test.attainable
    name = "Kendall's τ between γ and accuracy within a pre-training seed"
    scope = scope_of_runs(runs)
    if attainable > RUNS_SUFFICE and runs["n"].notna().all():
        # Runs share the test images: their mean counts as one test set, not as several.
        # The recorded intervals know of clusters (one concept, several images): so must n.
        runs["n"] = effective_size(runs)
        means = runs.groupby("noise_rate")[["value", "n"]].mean()
        direction, p = paired.trend_in_proportions(means.index, means["value"], means["n"])
        attainable = 0.0
        images = f"{means['n'].min():.0f} independent test images"
        name = f"Cochran–Armitage trend over what amounts to {images} a model"
        scope = these_models(runs, "test images")
    effect, low, high = end_to_end(runs, ["model", "seed"], rates, scale=100)
    return dataclasses.replace(
        base,
        effect=effect,
        direction=direction,
        low=low,
        high=high,
        p=p,
        attainable=attainable,
        test=f"{name}; the effect is γ = {tables.percent(rates[-1])} against "
        f"{tables.percent(rates[0])}",
        scope=scope,
    )


def effective_size(frame: pd.DataFrame) -> pd.Series:
    """The number of independent trials that would give the recorded interval; at most n."""
    half = (frame["high"] - frame["low"]) / 2
    trials = frame["value"] * (1 - frame["value"]) * (1.96 / half) ** 2
    usable = np.isfinite(trials) & (trials > 0)
    return frame["n"].where(~usable, np.minimum(frame["n"], trials))


def slight_noise(lp: pd.DataFrame) -> list[Finding]:
    """Does slight noise change in-domain accuracy? One question for each γ up to 10 %."""
    rates = [r for r in sorted(lp["noise_rate"].unique()) if 0 < r <= SLIGHT_NOISE]
    if not rates:
        base = Finding("slight", "change of in-domain accuracy (LP) under slight noise")
        return [unavailable(base, "no in-domain LP accuracy at a γ of at most 10 %")]
    return [
        noise_effect(
            lp,
            [rate],
            key=f"slight {rate:g}",
            what="in-domain accuracy (LP)",
            level=f"at γ = {tables.percent(rate)}",
        )
        for rate in rates
    ]


def noise_out_of_domain(lp: pd.DataFrame) -> Finding:
    """Does noise, over all its levels, change out-of-domain accuracy?"""
    rates = [rate for rate in sorted(lp["noise_rate"].unique()) if rate > 0]
    if not rates:
        base = Finding("ood", "change of out-of-domain accuracy (LP) under noise")
        return unavailable(base, "no out-of-domain LP accuracy at a γ above 0")
    level = f"over γ = {levels(rates)}"
    return noise_effect(lp, rates, key="ood", what="out-of-domain accuracy (LP)", level=level)


def noise_effect(frame: pd.DataFrame, rates: list[float], *, key, what, level) -> Finding:
    """Mean accuracy at `rates` less that at γ = 0, paired by task and pre-training seed."""
    where = f"{what[0].upper()}{what[1:]} {level}"
    base = Finding(
        key=key,
        change=f"difference of {what} {level} from clean pre-training",
        up=f"{where} is above clean pre-training",
        down=f"{where} is below clean pre-training",
    )
    wide = frame.pivot_table(index=tables.UNIT, columns="noise_rate", values="value")
    if 0.0 not in wide:
        return unavailable(base, "there is no clean model (γ = 0) to compare with")
    wide = wide.dropna(subset=[0.0, *rates])
    if wide.empty:
        return unavailable(base, "no task was measured at all of these γ")
    levels_difference = wide[rates].sub(wide[0.0], axis=0) * 100
    difference = levels_difference.mean(axis=1)
    runs = difference.groupby(["model", "seed"]).mean()
    enough = 2 * 0.5 ** len(runs) <= RUNS_SUFFICE
    if enough:
        scope, units = scope_of_runs(frame), "pre-training runs, tasks averaged"
        difference = runs
    else:
        scope = these_models(frame, "tasks")
        units = "pairs: the same task, source, target and pre-training seed; probe seeds averaged"
    parts = [f"seed {seed:g} {signed(value, 2)}" for (_, seed), value in runs.items()]
    by_part = ("By pre-training run: " + ", ".join(parts) + ".") if 1 < len(runs) <= 12 else ""
    if len(rates) > 1:
        each = levels_difference.mean()
        by_part += " By γ: " + ", ".join(
            f"{tables.percent(rate)}\N{NO-BREAK SPACE}{signed(each[rate], 2)}" for rate in rates
        )
        by_part += "."
    return tested(base, difference, units, scope, by_part.strip())


def method_effect(records: pd.DataFrame, other: str, shift: str) -> Finding:
    """NMTune less LP or MLP, paired by γ, pre-training seed, task, source and target."""
    name, where = tables.METHODS[other], tables.SHIFTS[shift]
    name += " tuning" if other == "mlp" else ""
    base = Finding(
        key=f"nmtune {other} {shift}",
        change=f"difference of {where} accuracy between NMTune and {name}",
        up=f"NMTune is above {name} in {where} accuracy",
        down=f"NMTune is below {name} in {where} accuracy",
    )
    unit = [*tables.UNIT, "noise_rate"]
    ours = probe(records, shift, "nmtune").set_index(unit)["value"]
    theirs = probe(records, shift, other).set_index(unit)["value"]
    difference = (ours - theirs).dropna() * 100
    if difference.empty:
        return unavailable(base, f"no {where} task was measured with both")
    by_rate = difference.groupby("noise_rate").mean()
    by_part = "By γ: " + ", ".join(
        f"{tables.percent(rate)}\N{NO-BREAK SPACE}{signed(value, 2)}"
        for rate, value in by_rate.items()
    )
    scope = (
        f"{seeds_of(difference.reset_index())}; the same tasks return at each γ, so the pairs are "
        "not fully independent"
    )
    what = "pairs: the same γ, pre-training seed, task, source and target; probe seeds averaged"
    return tested(base, difference, what, scope, by_part + ".")


def spectrum_trend(records: pd.DataFrame, metric: str, name: str) -> Finding:
    """Does a spectral metric of F move with γ?"""
    noun = name[0].lower() + name[1:]
    base = Finding(
        key=metric,
        change=f"trend of {noun} with γ",
        up=f"{name} rises with γ",
        down=f"{name} falls with γ",
        unit="nats",
    )
    frame = tables.spectrum_scores(records, metric)
    frame = frame[frame["label"] == tables.METHODS["features"]]
    rates = sorted(frame["noise_rate"].unique())
    if len(rates) < 2:
        return unavailable(base, f"{metric.upper()} of F is recorded at fewer than two γ")
    runs = frame.groupby(["model", "seed", "noise_rate"], as_index=False)["value"].mean()
    blocks = blocks_of(runs, ["model", "seed"], "noise_rate", "value")
    what = "pre-training seeds, feature sets averaged"
    test, scope = paired.kendall_in_blocks(blocks), scope_of_runs(frame)
    if test.attainable > RUNS_SUFFICE:
        blocks = blocks_of(frame, tables.SPECTRUM_UNIT, "noise_rate", "value")
        test = paired.kendall_in_blocks(blocks)
        what, scope = "feature sets", these_models(frame, "feature sets")
    effect, low, high = end_to_end(frame, tables.SPECTRUM_UNIT, rates, scale=1)
    return dataclasses.replace(
        base,
        effect=effect,
        direction=test.effect,
        low=low,
        high=high,
        p=test.p,
        attainable=test.attainable,
        test=f"Exact permutation of Kendall's τ between γ and {metric.upper()} within "
        f"{len(blocks)} {what} (τ = {signed(test.effect, 2)}); the effect is "
        f"γ = {tables.percent(rates[-1])} against {tables.percent(rates[0])}",
        scope=scope,
    )


def lsvr_with_accuracy(records: pd.DataFrame, lp: pd.DataFrame) -> Finding:
    """Do models with a larger LSVR do worse out of domain?"""
    base = Finding(
        key="lsvr ood",
        change="correlation of LSVR with out-of-domain accuracy (LP) over the models",
        up="Models with a larger LSVR are better out of domain (LP)",
        down="Models with a larger LSVR are worse out of domain (LP)",
        unit="τ",
    )
    spectrum = tables.spectrum_scores(records, "lsvr")
    spectrum = spectrum[spectrum["label"] == tables.METHODS["features"]]
    run = ["model", "seed", "noise_rate"]
    units = ["model", "seed", "dataset", "task", "source", "target"]
    lp, _ = tables.common_units(lp, units, ["noise_rate"])
    models = pd.concat(
        [
            spectrum.groupby(run)["value"].mean().rename("lsvr"),
            lp.groupby(run)["value"].mean().rename("accuracy"),
        ],
        axis=1,
    ).dropna()
    if len(models) < 3:
        return unavailable(base, "fewer than three models have both LSVR and OOD accuracy")
    models = models.reset_index()
    blocks = blocks_of(models, ["model", "seed"], "lsvr", "accuracy")
    test = paired.kendall_in_blocks(blocks)
    return dataclasses.replace(
        base,
        effect=test.effect,
        low=test.low,
        high=test.high,
        p=test.p,
        attainable=test.attainable,
        test=f"Exact permutation of Kendall's τ over {len(models)} models within "
        "a pre-training seed, feature sets and tasks averaged",
        scope=scope_of_runs(models) + "; a correlation along γ is not a cause",
    )


def tested(base: Finding, differences, what: str, scope: str, by_part: str) -> Finding:
    """`base` with the signed-rank test of paired differences in points."""
    test = paired.signed_rank(differences)
    return dataclasses.replace(
        base,
        effect=test.effect,
        low=test.low,
        high=test.high,
        p=test.p,
        attainable=test.attainable,
        test=f"Wilcoxon signed-rank, two-sided, Hodges–Lehmann effect; {test.n} {what}",
        scope=scope,
        by_part=by_part,
        differences=tuple(float(d) for d in differences),
    )


def blocks_of(frame: pd.DataFrame, unit: list[str], x: str, y: str) -> list:
    """(x, y) arrays of each unit that has at least two observations."""
    groups = (group for _, group in frame.groupby(unit, dropna=False) if len(group) > 1)
    return [(group[x].to_numpy(), group[y].to_numpy()) for group in groups]


def end_to_end(frame: pd.DataFrame, unit: list[str], rates: list[float], *, scale: float):
    """Mean change from the lowest to the highest γ, and its interval from the records' own.

    The interval is Newcombe's (MOVER) for two independent estimates, averaged over the units:
    too wide rather than too narrow, as both models are tested on the same examples.
    """
    wide = frame.pivot_table(
        index=unit, columns="noise_rate", values=["value", "low", "high"], dropna=False
    )
    first, last = (wide.xs(rate, axis=1, level=1) for rate in (rates[0], rates[-1]))
    change = last["value"] - first["value"]
    low = high = np.nan
    if {"low", "high"} <= set(first):
        down = np.hypot(last["value"] - last["low"], first["high"] - first["value"])
        up = np.hypot(last["high"] - last["value"], first["value"] - first["low"])
        low, high = (change - down).mean() * scale, (change + up).mean() * scale
    return change.mean() * scale, low, high


def unavailable(base: Finding, reason: str) -> Finding:
    """`base` as not tested, with the reason."""
    return dataclasses.replace(base, change=f"{base.change} ({reason})")


def these_models(frame: pd.DataFrame, units: str) -> str:
    """The limit of a test whose units are not pre-training runs."""
    return (
        f"{seeds_of(frame)}: the units are {units}, so this speaks of these particular models, "
        "not of what pre-training would give again"
    )


def scope_of_runs(frame: pd.DataFrame) -> str:
    """The counterpart of `these_models` for a test over pre-training runs."""
    return f"{seeds_of(frame)}; the units are pre-training runs"


def seeds_of(frame: pd.DataFrame) -> str:
    """How often pre-training was repeated: "1 pre-training seed", "3 … of 2 models"."""
    models = frame["model"].nunique()
    text = plural(frame["seed"].nunique(), "pre-training seed")
    return text + (f" of {models} models" if models > 1 else "")


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def levels(rates: list[float]) -> str:
    """[0.05, 0.1] -> "5, 10 %", with a no-break space."""
    return ", ".join(f"{rate * 100:g}" for rate in rates) + "\N{NO-BREAK SPACE}%"
