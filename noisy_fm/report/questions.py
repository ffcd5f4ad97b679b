"""What the records show and what they do not: each question with its paired test.

The independent unit behind an effect of γ is a pre-training run, and a trend or correlation over
γ is always tested over the models. Differences have the runs as pairs where there are enough;
with few, the pairs are trained heads, and the finding says that it speaks of these models only.
"""

import dataclasses

import numpy as np
import pandas as pd

from noisy_fm.report import paired, tables
from noisy_fm.report.findings import Finding, corrected

SLIGHT_NOISE = 0.10
# Runs are the unit once their number lets a test reach this p, which survives the correction.
RUNS_SUFFICE = 0.005
MODEL = ["model", "seed", "noise_rate"]


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


def probe(records: pd.DataFrame, shift: str, method: str) -> pd.DataFrame:
    """Full-data accuracies of one method; of several presets the paper's, else the first."""
    frame = tables.full_data(tables.probe_scores(records, shift=shift, metric="accuracy"))
    frame = frame[frame["method"] == method]
    labels = tables.ordered_labels(frame["label"])
    preferred = [label for label in labels if "(paper)" in label] or labels
    return frame[frame["label"].isin(preferred[:1])]


def pretraining_trend(records: pd.DataFrame) -> Finding:
    """Does pre-training accuracy fall with γ? It must, so this checks the set-up."""
    base = Finding(
        key="pretrain",
        change="change of pre-training accuracy with γ",
        up="Pre-training accuracy rises with γ",
        down="Pre-training accuracy falls with γ",
        check=True,
    )
    frame = records[records["stage"] == "pretrain"]
    accuracy = frame[frame["metric"] == "accuracy"]
    rates = sorted(accuracy["noise_rate"].unique())
    if len(rates) < 2:
        return base.unavailable("pre-training accuracy is recorded at fewer than two γ")
    test = paired.kendall_in_blocks(blocks_of(accuracy, ["model", "seed"], "noise_rate", "value"))
    direction, p, attainable = test.effect, test.p, test.attainable
    name = "Exact permutation of Kendall's τ between γ and accuracy within a pre-training seed"
    scope = scope_of_runs(accuracy)
    between = f"γ = {tables.percent(rates[-1])} against {tables.percent(rates[0])}"
    by_part = ""
    effect, low, high = end_to_end(accuracy, ["model", "seed"], rates, scale=100)
    changes = accuracy_changes(frame)
    if rates[-1] in changes.index:
        effect, low, high = changes.loc[rates[-1]]
        between += " on the same images"
        by_part = "By γ: " + "; ".join(
            f"{tables.percent(rate)}\N{NO-BREAK SPACE}{tables.signed(change, 2)} "
            f"[{tables.signed_interval(down, up, 2)}]"
            for rate, change, down, up in changes.itertuples()
        )
        by_part += "."
        if attainable > RUNS_SUFFICE:
            direction, p, attainable = effect, paired.p_of_interval(effect, low, high), 0.0
            name = "Paired cluster bootstrap over concepts, p from its interval"
            scope = these_models(accuracy, "concepts of the test images")
    return dataclasses.replace(
        base,
        effect=effect,
        direction=direction,
        low=low,
        high=high,
        p=p,
        attainable=attainable,
        test=f"{name}; the effect is {between}",
        scope=scope,
        by_part=by_part,
    )


def accuracy_changes(frame: pd.DataFrame) -> pd.DataFrame:
    """value, low, high in points of "accuracy_change" by γ; levels without interval left out."""
    changes = frame[(frame["metric"] == "accuracy_change") & (frame["noise_rate"] > 0)]
    summary = tables.summarise(changes, ["noise_rate"]).set_index("noise_rate")
    return (summary[["value", "low", "high"]] * 100).dropna()


def slight_noise(lp: pd.DataFrame) -> list[Finding]:
    """Does slight noise change in-domain accuracy? One question for each γ up to 10 %."""
    rates = [r for r in sorted(lp["noise_rate"].unique()) if 0 < r <= SLIGHT_NOISE]
    if not rates:
        base = Finding("slight", "change of in-domain accuracy (LP) under slight noise")
        return [base.unavailable("no in-domain LP accuracy at a γ of at most 10 %")]
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
        return base.unavailable("no out-of-domain LP accuracy at a γ above 0")
    level = f"over γ = {tables.percents(rates)}"
    return noise_effect(lp, rates, key="ood", what="out-of-domain accuracy (LP)", level=level)


def noise_effect(frame: pd.DataFrame, rates: list[float], *, key, what, level) -> Finding:
    """Mean accuracy at `rates` less that at γ = 0, paired by head."""
    where = f"{what[0].upper()}{what[1:]} {level}"
    base = Finding(
        key=key,
        change=f"difference of {what} {level} from clean pre-training",
        up=f"{where} is above clean pre-training",
        down=f"{where} is below clean pre-training",
    )
    wide = frame.pivot_table(index=tables.UNIT, columns="noise_rate", values="value")
    if 0.0 not in wide:
        return base.unavailable("there is no clean model (γ = 0) to compare with")
    wide = wide.dropna(subset=[0.0, *rates])
    if wide.empty:
        return base.unavailable("no task was measured at all of these γ")
    return tested(base, wide[rates].sub(wide[0.0], axis=0).stack() * 100)


def method_effect(records: pd.DataFrame, other: str, shift: str) -> Finding:
    """Mean accuracy of NMTune less that of LP or MLP, over all γ, paired by head."""
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
        return base.unavailable(f"no {where} task was measured with both")
    return tested(base, difference)


def spectrum_trend(records: pd.DataFrame, metric: str, name: str) -> Finding:
    """Does a spectral metric of F move with γ? One model is one observation."""
    noun = name[0].lower() + name[1:]
    base = Finding(
        key=metric,
        change=f"trend of {noun} with γ",
        up=f"{name} rises with γ",
        down=f"{name} falls with γ",
        unit="τ",
    )
    frame = feature_sets(records, metric)
    rates = sorted(frame["noise_rate"].unique())
    if len(rates) < 2:
        return base.unavailable(f"{metric.upper()} of F is recorded at fewer than two γ")
    models = model_means(frame)
    found = paired.kendall_in_blocks(blocks_of(models, ["model", "seed"], "noise_rate", "value"))
    change, low, high = end_to_end(frame, tables.SPECTRUM_UNIT, rates, scale=1)
    by_part = f"From γ = {tables.percent(rates[0])} to {tables.percent(rates[-1])} the mean changes"
    by_part += f" by {tables.signed(change, 3)} nats"
    if np.isfinite(low):
        by_part += f" [{tables.signed_interval(low, high, 3)}, from the sample of images alone]"
    return base.measured(
        found,
        test=f"Exact permutation of Kendall's τ between γ and {metric.upper()} over {len(models)} "
        f"models within a pre-training seed, feature sets averaged",
        scope=scope_of_runs(models),
        by_part=f"{by_part}.",
    )


def feature_sets(records: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A spectral metric of F, one row a feature set and γ."""
    frame = tables.spectrum_scores(records, metric)
    return frame[frame["label"] == tables.METHODS["features"]]


def model_means(frame: pd.DataFrame) -> pd.DataFrame:
    """One `value` a model: its feature sets' mean, each set centred over γ first.

    Centring keeps a set that one model lacks from shifting that model against the others.
    """
    means = frame.groupby(tables.SPECTRUM_UNIT, dropna=False)["value"].transform("mean")
    centred = frame.assign(value=frame["value"] - means)
    return centred.groupby(MODEL, as_index=False)["value"].mean()


def lsvr_with_accuracy(records: pd.DataFrame, lp: pd.DataFrame) -> Finding:
    """Do models with a larger LSVR do worse out of domain?"""
    base = Finding(
        key="lsvr ood",
        change="correlation of LSVR with out-of-domain accuracy (LP) over the models",
        up="Models with a larger LSVR are better out of domain (LP)",
        down="Models with a larger LSVR are worse out of domain (LP)",
        unit="τ",
    )
    units = ["model", "seed", "dataset", "task", "source", "target"]
    lp, _ = tables.common_units(lp, units, ["noise_rate"])
    models = pd.concat(
        [
            model_means(feature_sets(records, "lsvr")).set_index(MODEL)["value"].rename("lsvr"),
            lp.groupby(MODEL)["value"].mean().rename("accuracy"),
        ],
        axis=1,
    ).dropna()
    if len(models) < 3:
        return base.unavailable("fewer than three models have both LSVR and OOD accuracy")
    models = models.reset_index()
    blocks = blocks_of(models, ["model", "seed"], "lsvr", "accuracy")
    found = paired.kendall_in_blocks(blocks)
    return base.measured(
        found,
        test=f"Exact permutation of Kendall's τ over {len(models)} models within "
        "a pre-training seed, feature sets and tasks averaged",
        scope=scope_of_runs(models) + "; a correlation along γ is not a cause",
    )


def tested(base: Finding, difference: pd.Series) -> Finding:
    """`base` with the signed-rank test of paired differences in points, by unit and γ.

    A pair is a head, over whose γ and targets the differences are averaged: the levels share its
    images, the targets its weights. With enough pre-training seeds, a pair is a seed.
    """
    rows = difference.rename("value").reset_index()
    within = rows.groupby(tables.HEAD)[["noise_rate", "target"]].nunique().max() > 1
    names = {"noise_rate": "levels of γ", "target": "target domains"}
    averaged = [name for column, name in names.items() if within[column]]
    by_rate = rows.groupby([*tables.HEAD, "noise_rate"])["value"].mean()
    heads = by_rate.groupby(tables.HEAD).mean()
    runs = heads.groupby(["model", "seed"]).mean()
    if 2 * 0.5 ** len(runs) <= RUNS_SUFFICE:
        pairs, averaged = runs, ["heads", *averaged]
        what, scope = "pre-training seeds", scope_of_runs(rows)
    else:
        pairs = heads
        what = "trained heads of the same pre-training seed, task and source"
        once = f"; its {' and '.join(averaged)} count once" if averaged else ""
        scope = these_models(rows, f"trained heads (one task, one source domain{once})")
    found = paired.signed_rank(pairs)
    return base.measured(
        found,
        test="Wilcoxon signed-rank, two-sided, Hodges–Lehmann effect; "
        f"{tables.plural(found.n, 'pair')}: {what} "
        f"({', '.join([*averaged, 'probe seeds'])} averaged)",
        scope=scope,
        by_part=parts_of(runs, by_rate.groupby("noise_rate").mean()),
        differences=tuple(float(d) for d in pairs),
    )


def parts_of(runs: pd.Series, by_rate: pd.Series) -> str:
    """The mean differences of each pre-training run and γ, where there are several."""
    sentences = []
    if 1 < len(runs) <= 12:
        parts = [f"seed {seed:g} {tables.signed(value, 2)}" for (_, seed), value in runs.items()]
        sentences.append("By pre-training run: " + ", ".join(parts) + ".")
    if len(by_rate) > 1:
        parts = [
            f"{tables.percent(rate)}\N{NO-BREAK SPACE}{tables.signed(value, 2)}"
            for rate, value in by_rate.items()
        ]
        sentences.append("By γ: " + ", ".join(parts) + ".")
    return " ".join(sentences)


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
    text = tables.plural(frame["seed"].nunique(), "pre-training seed")
    return text + (f" of {models} models" if models > 1 else "")
