"""What the records show and what they do not: each question with its test.

The unit of every question is a pre-training run, of which there is one a seed and γ: what is
measured on a run is averaged to one number, and the runs of a seed are paired. With fewer than
three seeds a question is described and not judged.
"""

import dataclasses

import numpy as np
import pandas as pd

from noisy_fm import statistics
from noisy_fm.report import paired, tables
from noisy_fm.report.findings import Finding, by_part, by_seed, corrected, fisher

SLIGHT_NOISE = 0.10
COMPARED = (("mlp", "lp"), ("nmtune", "mlp"))  # the head's own part, and that of NMTune's terms
NAMES = {"lp": "LP", "mlp": "MLP tuning", "nmtune": "NMTune"}
AVERAGED = "tasks, each the mean of its heads, domains and probe seeds, are weighted alike"


def collect(records: pd.DataFrame) -> list[Finding]:
    """Every question, tested where it can be, with Holm's correction over those that were."""
    scores = {shift: scores_of(records, shift) for shift in tables.SHIFTS}
    none = pd.DataFrame()
    lp = {shift: of.get("lp", none) for shift, of in scores.items()}
    sve, lsvr = (spectrum_of(records, *which) for which in (("sve", "id"), ("lsvr", "ood")))
    findings = [
        pretraining_trend(records),
        slight_noise(lp["id"]),
        relation_trend(lp["id"], relations(records)),
        noise_out_of_domain(lp["ood"]),
        spectrum_trend(sve, "sve", "id"),
        spectrum_trend(lsvr, "lsvr", "ood"),
        lsvr_with_accuracy(lsvr, lp["ood"]),
        *(method_effect(of, *pair, shift) for pair in COMPARED for shift, of in scores.items()),
        rectified_in_domain(scores["id"]),
        rectified_out_of_domain(scores["ood"]),
    ]
    return corrected(findings)


def scores_of(records: pd.DataFrame, shift: str) -> dict[str, pd.DataFrame]:
    """Full-data accuracies of each method, [tests × runs].

    Of a method with several presets they are the paper's, else the first's.
    """
    frame = tables.full_data(tables.probe_scores(records, shift=shift, metric="accuracy"))
    grids = {}
    for method, rows in frame.groupby("method"):
        labels = tables.ordered_labels(rows["label"])
        label = ([label for label in labels if "(paper)" in label] or labels)[0]
        grids[method] = paired.grid(rows[rows["label"] == label], paired.TEST)
    return grids


def spectrum_of(records: pd.DataFrame, metric: str, shift: str) -> pd.DataFrame:
    """A spectral metric of F, [feature sets × runs]."""
    return paired.grid(tables.feature_sets(records, metric, shift), paired.SET)


def levels_of(wide: pd.DataFrame) -> list[float]:
    """The noise levels of a grid, in order."""
    return [] if wide.empty else sorted(set(wide.columns.get_level_values("noise_rate")))


def at(wide: pd.DataFrame, rates: list[float]) -> pd.DataFrame:
    """The runs of a grid at these noise levels."""
    return wide.loc[:, wide.columns.get_level_values("noise_rate").isin(rates)]


def pretraining_trend(records: pd.DataFrame) -> Finding:
    """Does pre-training accuracy fall with γ? It must, so this checks the set-up.

    Of models of images and texts it is the mean of what they are zero-shot.
    """
    frame = records[records["stage"] == "pretrain"]
    accuracy, what = frame[frame["metric"] == "accuracy"], "pre-training"
    if accuracy.empty:
        accuracy, what = frame[frame["metric"].str.endswith("/zero_shot")], "zero-shot"
    base = Finding(
        key="pretrain",
        change=f"change of {what} accuracy with γ",
        up=f"{what.capitalize()} accuracy rises with γ",
        down=f"{what.capitalize()} accuracy falls with γ",
        check=True,
    )
    found = trend(base, paired.grid(accuracy, tables.TASK), tables.TASK, "")
    changes = accuracy_changes(frame)
    if found.verdict == "missing" or changes.empty:
        return found
    levels = [
        f"{tables.percent(rate)}\N{NO-BREAK SPACE}{tables.signed(change, 2)} "
        f"[{tables.signed_interval(low, high, 2)}]"
        for rate, change, low, high, _ in changes.itertuples()
    ]
    note = f"{found.by_part} On the same images, with 95 % intervals "
    over_runs = changes["runs"].min() >= tables.FEWEST
    note += "over pre-training runs" if over_runs else "from the sample of images alone"
    return dataclasses.replace(found, by_part=f"{note}: {'; '.join(levels)}.".strip())


def accuracy_changes(frame: pd.DataFrame) -> pd.DataFrame:
    """value, low, high in points, and runs, of "accuracy_change" by γ, where it has an interval."""
    changes = frame[(frame["metric"] == "accuracy_change") & (frame["noise_rate"] > 0)]
    summary = tables.summarise(changes, ["noise_rate"]).set_index("noise_rate")
    return summary[["value", "low", "high", "runs"]].mul([100, 100, 100, 1]).dropna()


def slight_noise(lp: pd.DataFrame) -> Finding:
    """Does slight noise change in-domain accuracy? The clearest of all γ up to 10 %.

    Its p and its interval are for all of these γ at once (`statistics.max_t`).
    """
    base = Finding("slight", "change of in-domain accuracy (LP) under slight noise")
    rates = [rate for rate in levels_of(lp) if 0 < rate <= SLIGHT_NOISE]
    if lp.empty:
        return base.unavailable("an in-domain task tuned with LP")
    if not rates:
        return base.unavailable("a γ above 0 and up to 10\N{NO-BREAK SPACE}%")
    if 0.0 not in levels_of(lp):
        return base.unavailable("models without noise (γ = 0)")
    runs, note = paired.by_run(at(lp, [0.0, *rates]), tables.TASK)
    if runs.empty:
        return base.unavailable("a task that was measured at these γ in one seed")
    changes = runs[rates].sub(runs[0.0], axis=0) * 100
    tests = statistics.max_t(changes) if len(changes) >= tables.FEWEST else None
    clearest = 0
    if tests:  # by |t|, as p may be 1 of several
        widths = np.array([test.high - test.low for test in tests])
        clearest = int(np.argmax(np.abs(changes.mean()) / np.maximum(widths, 1e-300)))
    elif len(rates) > 1:
        clearest = int(np.abs(changes.mean()).argmax())
    rate = rates[clearest]
    level = f"at γ = {tables.percent(rate)}"
    base = dataclasses.replace(
        base,
        change=f"difference of in-domain accuracy (LP) {level} from clean pre-training",
        up=f"In-domain accuracy (LP) {level} is above clean pre-training",
        down=f"In-domain accuracy (LP) {level} is below clean pre-training",
        contrasts=len(rates),
        spread=float(np.sqrt(changes.var().mean())),  # the clearest alone varies least
    )
    what = f"{level} less γ = 0 of the same seed; {AVERAGED}"
    if len(rates) > 1:
        what = f"{level}, the clearest of {len(rates)} γ up to 10\N{NO-BREAK SPACE}%, less γ = 0 "
        what += f"of the same seed; p and interval are for all of them at once; {AVERAGED}"
    test = tests[clearest] if tests else None
    found = judged(base, changes[rate], runs.size, what, note, test)
    return dataclasses.replace(found, by_part=by_part(found.by_part, changes.mean(), found.digits))


def relations(records: pd.DataFrame) -> pd.Series:
    """Of each task (dataset, labels) how its labels stand to those of pre-training, if recorded."""
    if "relation" not in records:
        return pd.Series(dtype=object)
    known = records.dropna(subset="relation")
    return known.groupby(tables.TASK)["relation"].first()


def relation_trend(lp: pd.DataFrame, relation: pd.Series) -> Finding:
    """Does noise change tasks that follow from the labels of pre-training as it does others?

    The change of in-domain accuracy with γ on tasks whose labels do not follow from those that were
    made wrong, less that on tasks whose labels do.
    """
    base = Finding(
        key="relation",
        change="difference with γ between tasks that do not follow from the labels of pre-training "
        "and those that do, in in-domain accuracy (LP)",
        up="Tasks that do not follow from the labels of pre-training gain with γ on those that do, "
        "in in-domain accuracy (LP)",
        down="Tasks that do not follow from the labels of pre-training lose with γ on those that "
        "do, in in-domain accuracy (LP)",
    )
    if lp.empty or len(levels_of(lp)) < 2:
        return base.unavailable("in-domain accuracy (LP) at two γ or more")
    tasks = pd.MultiIndex.from_arrays([lp.index.get_level_values(name) for name in tables.TASK])
    kinds = relation.reindex(tasks).to_numpy() if len(relation) else np.full(len(lp), None)
    runs = [paired.by_run(lp[kinds == kind], tables.TASK) for kind in ("free", "determined")]
    if any(found.shape[1] < 2 for found, _ in runs):
        return base.unavailable("tasks of both kinds at two γ or more")
    rates = sorted(set(runs[0][0]) & set(runs[1][0]))
    if len(rates) < 2:
        return base.unavailable("tasks of both kinds at the same γ")
    free, determined = (
        pd.Series(statistics.slope(rates, found[rates]) * 100 * (rates[-1] - rates[0]), found.index)
        for found, _ in runs
    )
    difference = (free - determined).dropna()
    if difference.empty:
        return base.unavailable("a seed that was measured alike at every γ")
    what = (
        f"change from γ = {tables.percent(rates[0])} to {tables.percent(rates[-1])}, along a line "
        f"fitted to the levels of each seed, of tasks that do not follow less that of those that "
        f"do; {AVERAGED}"
    )
    note = "; ".join(dict.fromkeys(note for _, note in runs if note))
    found = judged(base, difference, runs[0][0].size, what, note)
    means = [tables.signed(part[difference.index].mean(), 2) for part in (free, determined)]
    parts = f"Tasks that do not follow {means[0]}, tasks that do {means[1]}."
    apart = 100 * (runs[0][0][rates] - runs[1][0][rates]).loc[difference.index]
    text = f"{parts} {found.by_part}".strip()
    return dataclasses.replace(found, by_part=text, ends=paired.ends(apart))


def noise_out_of_domain(lp: pd.DataFrame) -> Finding:
    """Does out-of-domain accuracy change with γ?"""
    base = Finding(
        key="ood",
        change="change of out-of-domain accuracy (LP) with γ",
        up="Out-of-domain accuracy (LP) rises with γ",
        down="Out-of-domain accuracy (LP) falls with γ",
    )
    return trend(base, lp, tables.TASK, AVERAGED)


def spectrum_trend(sets: pd.DataFrame, metric: str, shift: str) -> Finding:
    """Does SVE of F on in-domain images, or LSVR on out-of-domain ones, move with γ (section 5)?"""
    name, where = tables.SPECTRA[metric], tables.SHIFTS[shift]
    what = f"{name} of F ({metric.upper()}) on {where} images"
    base = Finding(
        key=metric,
        change=f"change of the {what} with γ",
        up=f"The {what} rises with γ",
        down=f"The {what} falls with γ",
        unit="nats",
    )
    what = "feature sets, each the images of one domain, are weighted alike"
    return trend(base, sets, paired.SET, what)


def trend(base: Finding, wide: pd.DataFrame, count: list[str], what: str) -> Finding:
    """`base` with the change from the lowest to the highest γ along a line fitted to each seed."""
    if len(levels_of(wide)) < 2:
        return base.unavailable("two γ or more")
    runs, note = paired.by_run(wide, count)
    if runs.empty:
        return base.unavailable("a seed that was measured alike at every γ")
    rates, scale = list(runs), 1 if base.unit == "nats" else 100
    change = statistics.slope(rates, runs * scale) * (rates[-1] - rates[0])
    how = f"from γ = {tables.percent(rates[0])} to {tables.percent(rates[-1])}"
    how = f"change {how}, along a line fitted to the levels of each seed"
    found = judged(base, pd.Series(change, runs.index), runs.size, f"{how}; {what}", note)
    means = (runs.mean() - runs[rates[0]].mean())[rates[1:]] * scale
    parts = by_part(found.by_part, means, found.digits)
    return dataclasses.replace(found, by_part=parts, ends=paired.ends(scale * runs))


def lsvr_with_accuracy(sets: pd.DataFrame, lp: pd.DataFrame) -> Finding:
    """Are models with a larger LSVR better or worse out of domain?

    One number a seed: Pearson's r over its noise levels. Fisher's z = artanh r is what is
    averaged and tested, being unbounded and, without correlation, symmetric from three levels on.
    """
    base = Finding(
        key="lsvr ood",
        change="correlation over γ of LSVR with out-of-domain accuracy (LP)",
        up="Models with a larger LSVR are better out of domain (LP)",
        down="Models with a larger LSVR are worse out of domain (LP)",
        unit="r",
    )
    if sets.empty or lp.empty:
        return base.unavailable("LSVR and accuracy (LP) out of domain")
    lsvr, first = paired.by_run(sets, paired.SET)
    accuracy, second = paired.by_run(lp, tables.TASK)
    lsvr, accuracy = lsvr.align(accuracy, join="inner")
    if lsvr.shape[1] < 3:
        return base.unavailable("three γ or more")
    every = pd.Series(statistics.correlations(lsvr, accuracy), lsvr.index)
    r = every.dropna()
    if r.empty:
        return base.unavailable("LSVR and accuracy that differ between γ")
    notes = [first, second]
    if len(r) < len(every):
        notes.append(f"{len(every) - len(r)} of {len(every)} seeds are without variation, left out")
    what = f"correlation over {lsvr.shape[1]} levels of γ within a seed, averaged as Fisher's z"
    found = judged(base, r, len(r) * lsvr.shape[1], what, "; ".join(filter(None, notes)))
    return dataclasses.replace(found, scope=f"{found.scope}; a correlation along γ is not a cause")


def judged(
    base: Finding,
    values: pd.Series,
    models: int,
    what: str,
    note: str,
    test: statistics.Test | None = None,
) -> Finding:
    """`base` with its one number a pre-training seed, tested where there are enough seeds.

    `test` is given where it is of more than these numbers. Correlations are averaged and tested as
    Fisher's z.
    """
    seeds = tables.plural(len(values), "pre-training seed")
    how = f"One number a pre-training run: {what.removesuffix('; ')}"
    correlation = base.unit == "r"
    numbers = fisher(values) if correlation else np.asarray(values, float)
    if len(values) >= tables.FEWEST:
        signs = base.contrasts > 1 and len(values) >= statistics.SIGNS
        how = f"{'Changes of sign' if signs else 'Student’s t'} over {seeds}. {how}"
        scope = "It speaks of pre-training runs like these, with these tasks and images"
        test = test or statistics.t_test(numbers)
    else:
        models_only = "this one model" if models == 1 else f"these {models} models"
        scope = f"{seeds}: it speaks of {models_only} only, and a run's luck may be as large"
    words = {"test": how + (f"; {note}" if note else ""), "scope": scope}
    if correlation and test:
        effect, low, high = np.tanh(test[:3]).tolist()
        test = test._replace(effect=effect, low=low, high=high)
    found = base.measured(values, test, by_part=by_seed(values, base.digits), **words)
    if correlation and not test:
        found = dataclasses.replace(found, effect=float(np.tanh(numbers.mean())))
    return found


def method_effect(scores: dict[str, pd.DataFrame], method: str, other: str, shift: str) -> Finding:
    """Mean accuracy of a method less that of another on the same features, over all γ."""
    where, ours, theirs = tables.SHIFTS[shift], NAMES[method], NAMES[other]
    base = Finding(
        key=f"{method} {other} {shift}",
        change=f"difference of {where} accuracy between {ours} and {theirs}",
        up=f"{ours} is above {theirs} in {where} accuracy",
        down=f"{ours} is below {theirs} in {where} accuracy",
    )
    if not {method, other} <= set(scores):
        return base.unavailable(f"an {where} task tuned with both")
    difference = 100 * (scores[method] - scores[other])
    runs, note = paired.by_run(difference, tables.TASK)
    if runs.empty:
        return base.unavailable(f"an {where} task tuned with both in every run")
    found = judged(base, runs.mean(axis=1), runs.size, f"mean over γ; {AVERAGED}", note)
    parts = f"{by_task(difference, base.digits)} {found.by_part}".strip()
    return dataclasses.replace(found, by_part=by_part(parts, runs.mean(), base.digits))


def by_task(difference: pd.DataFrame, digits: int) -> str:
    """The mean difference of each task, where there are several."""
    means = paired.complete(difference)[0].groupby(level=tables.TASK).mean().mean(axis=1)
    if not 1 < len(means) <= 12:
        return ""
    several = means.index.get_level_values("labels").duplicated().any()
    parts = [
        f"{tables.task_name(dataset, task, several)} {tables.signed(value, digits)}"
        for (dataset, task), value in means.items()
    ]
    return f"By task: {', '.join(parts)}."


def rectified_in_domain(scores: dict[str, pd.DataFrame]) -> Finding:
    """Does NMTune make up for what slight noise gives the linear probe (section 6)?

    In-domain accuracy at the best slight γ less that at γ = 0, under LP less the same under NMTune.
    The best γ of a seed is that of all other seeds under LP, so that its own luck has no part in
    the choice.
    """
    base = Finding(
        key="rectified id",
        change="difference between LP and NMTune in what slight noise adds in domain",
        up="Slight noise adds less in domain under NMTune than under LP",
        down="Slight noise adds more in domain under NMTune than under LP",
    )
    if not {"lp", "nmtune"} <= set(scores):
        return base.unavailable("an in-domain task tuned with both")
    less, note = paired.by_run(slightly(scores["lp"] - scores["nmtune"]), tables.TASK)
    gains, _ = paired.by_run(slightly(scores["lp"]), tables.TASK)
    seeds, slight = less.index.intersection(gains.index), [rate for rate in less if rate > 0]
    if 0.0 not in less or not slight or seeds.empty:
        return base.unavailable("both at γ = 0 and at a γ above it, up to 10\N{NO-BREAK SPACE}%")
    less = less.loc[seeds]
    gains = gains.loc[seeds, slight].sub(gains.loc[seeds, 0.0], axis=0)
    others = [gains.drop(index=seed) if len(gains) > 1 else gains for seed in gains.index]
    best = [other.mean().idxmax() for other in others]
    values = [
        less.at[*place] - less.at[place[0], 0.0] for place in zip(less.index, best, strict=True)
    ]
    chosen = ", ".join(sorted({tables.percent(rate) for rate in best}))
    what = f"γ = {chosen} (best for LP of the other seeds) less γ = 0, LP less NMTune; {AVERAGED}"
    return judged(base, 100 * pd.Series(values, less.index), less.size, what, note)


def slightly(wide: pd.DataFrame) -> pd.DataFrame:
    """The runs of a grid at γ = 0 and up to 10 %."""
    return at(wide, [rate for rate in levels_of(wide) if rate <= SLIGHT_NOISE])


def rectified_out_of_domain(scores: dict[str, pd.DataFrame]) -> Finding:
    """Does NMTune make up for what noise costs the linear probe out of domain?"""
    base = Finding(
        key="rectified ood",
        change="difference between NMTune and LP in how out-of-domain accuracy changes with γ",
        up="Out-of-domain accuracy loses less (or gains more) with γ under NMTune than under LP",
        down="Out-of-domain accuracy loses more (or gains less) with γ under NMTune than under LP",
    )
    if not {"lp", "nmtune"} <= set(scores):
        return base.unavailable("an out-of-domain task tuned with both")
    return trend(base, scores["nmtune"] - scores["lp"], tables.TASK, f"NMTune less LP; {AVERAGED}")
