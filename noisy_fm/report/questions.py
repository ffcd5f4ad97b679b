"""What the records show and what they do not: each question with its test.

The unit of every question about γ is a pre-training run, of which there is one a seed and γ; with
fewer than three seeds it is described and not judged. NMTune is compared with another method over
tasks, and over seeds where there are enough of them (see `paired`).
"""

import dataclasses

import numpy as np
import pandas as pd

from noisy_fm import statistics
from noisy_fm.report import paired, tables
from noisy_fm.report.findings import Finding, corrected

SLIGHT_NOISE = 0.10


def collect(records: pd.DataFrame) -> list[Finding]:
    """Every question, tested where it can be, with Holm's correction over those that were."""
    scores = {shift: scores_of(records, shift) for shift in tables.SHIFTS}
    none = pd.DataFrame()
    lp = {shift: of.get("lp", none) for shift, of in scores.items()}
    sve, lsvr = (spectrum_of(records, *which) for which in (("sve", "id"), ("lsvr", "ood")))
    findings = [
        pretraining_trend(records),
        *slight_noise(lp["id"]),
        noise_out_of_domain(lp["ood"]),
        spectrum_trend(sve, "sve", "id"),
        spectrum_trend(lsvr, "lsvr", "ood"),
        lsvr_with_accuracy(lsvr, lp["ood"]),
        *(method_effect(of, other, shift) for other in OTHERS for shift, of in scores.items()),
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


def slight_noise(lp: pd.DataFrame) -> list[Finding]:
    """Does slight noise change in-domain accuracy? One question for each γ up to 10 %."""
    rates = [rate for rate in levels_of(lp) if 0 < rate <= SLIGHT_NOISE]
    if not rates:
        base = Finding("slight", "change of in-domain accuracy (LP) under slight noise")
        reason = "there is no noise rate above 0 and up to 10 % with in-domain LP accuracy"
        return [base.unavailable(reason)]
    return [slight_effect(lp, rate) for rate in rates]


def slight_effect(lp: pd.DataFrame, rate: float) -> Finding:
    """In-domain accuracy at one γ less that at γ = 0, paired by seed."""
    level = f"at γ = {tables.percent(rate)}"
    base = Finding(
        key=f"slight {rate:g}",
        change=f"difference of in-domain accuracy (LP) {level} from clean pre-training",
        up=f"In-domain accuracy (LP) {level} is above clean pre-training",
        down=f"In-domain accuracy (LP) {level} is below clean pre-training",
    )
    if 0.0 not in levels_of(lp):
        return base.unavailable("there is no clean model (γ = 0) to compare with")
    both = lp.loc[:, lp.columns.get_level_values("noise_rate").isin([0.0, rate])]
    runs, note = paired.by_run(both, tables.TASK)
    if runs.empty:
        return base.unavailable("no task was measured at both γ in one seed")
    what = f"{level} less γ = 0 of the same seed; {AVERAGED}"
    return judged(base, (runs[rate] - runs[0.0]) * 100, runs.size, what, note)


AVERAGED = "tasks, each with its heads, domains and probe seeds averaged, count alike"


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
    what = "feature sets, each the images of one domain, count alike"
    return trend(base, sets, paired.SET, what)


def trend(base: Finding, wide: pd.DataFrame, count: list[str], what: str) -> Finding:
    """`base` with the change from the lowest to the highest γ along a line fitted to each seed."""
    if len(levels_of(wide)) < 2:
        return base.unavailable("it is recorded at fewer than two γ")
    runs, note = paired.by_run(wide, count)
    if runs.empty:
        return base.unavailable("no seed was measured alike at every γ")
    rates, scale = list(runs), 1 if base.unit == "nats" else 100
    change = statistics.slope(rates, runs * scale) * (rates[-1] - rates[0])
    how = f"from γ = {tables.percent(rates[0])} to {tables.percent(rates[-1])}"
    how = f"change {how}, along a line fitted to the levels of each seed"
    found = judged(base, pd.Series(change, runs.index), runs.size, f"{how}; {what}", note)
    means = (runs.mean() - runs[rates[0]].mean())[rates[1:]] * scale
    return dataclasses.replace(found, by_part=by_part(found.by_part, means, found.digits))


def by_part(text: str, means: pd.Series, digits: int) -> str:
    """`text` and the mean change at each γ, where there are several."""
    if len(means) < 2:
        return text
    levels = [
        f"{tables.percent(rate)}\N{NO-BREAK SPACE}{tables.signed(value, digits)}"
        for rate, value in means.items()
    ]
    return f"{text} By γ: {', '.join(levels)}.".strip()


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
        return base.unavailable("LSVR or accuracy out of domain is not recorded")
    lsvr, first = paired.by_run(sets, paired.SET)
    accuracy, second = paired.by_run(lp, tables.TASK)
    lsvr, accuracy = lsvr.align(accuracy, join="inner")
    if lsvr.shape[1] < 3:
        return base.unavailable("fewer than three γ have both LSVR and accuracy out of domain")
    every = pd.Series(statistics.correlations(lsvr, accuracy), lsvr.index)
    r = every.dropna()
    if r.empty:
        return base.unavailable("LSVR or accuracy out of domain is the same at every γ")
    notes = [first, second]
    if len(r) < len(every):
        notes.append(f"{len(every) - len(r)} of {len(every)} seeds are without variation, left out")
    what = f"correlation over {lsvr.shape[1]} levels of γ within a seed, averaged as Fisher's z"
    z = np.arctanh(r.clip(-1 + 1e-9, 1 - 1e-9))
    found = judged(base, z, len(r) * lsvr.shape[1], what, "; ".join(filter(None, notes)))
    return dataclasses.replace(
        found,
        effect=float(np.tanh(found.effect)),
        low=float(np.tanh(found.low)),
        high=float(np.tanh(found.high)),
        differences=tuple(r),
        by_part=by_seed(r, found.digits),
        scope=f"{found.scope}; a correlation along γ is not a cause",
    )


def judged(base: Finding, values: pd.Series, models: int, what: str, note: str) -> Finding:
    """`base` with its one number a pre-training seed, tested where there are enough seeds."""
    found = paired.judge_runs(values)
    seeds = tables.plural(len(values), "pre-training seed")
    how = f"One number a pre-training run: {what.removesuffix('; ')}"
    if found.test:
        how = f"Student's t over {seeds}. {how}"
        scope = "It speaks of pre-training runs like these, with these tasks and images"
    else:
        models_only = "this one model" if models == 1 else f"these {models} models"
        scope = f"{seeds}: it speaks of {models_only} only, and a run's luck may be as large"
    return base.measured(
        found,
        test=how + (f"; {note}" if note else ""),
        scope=scope,
        by_part=by_seed(values, base.digits),
        differences=tuple(float(value) for value in values),
    )


def by_seed(values: pd.Series, digits: int) -> str:
    """The number of each pre-training seed, where there are several."""
    if not 1 < len(values) <= 12:
        return ""
    parts = [f"seed {seed:g} {tables.signed(value, digits)}" for seed, value in values.items()]
    return f"By pre-training seed: {', '.join(parts)}."


def method_effect(scores: dict[str, pd.DataFrame], other: str, shift: str) -> Finding:
    """Mean accuracy of NMTune less that of LP or MLP tuning over all γ."""
    name, where = OTHERS[other], tables.SHIFTS[shift]
    ours = "NMTune (MLP and terms)" if other == "lp" else "NMTune"  # from MLP the terms differ
    base = Finding(
        key=f"nmtune {other} {shift}",
        change=f"difference of {where} accuracy between {ours} and {name}",
        up=f"{ours} is above {name} in {where} accuracy",
        down=f"{ours} is below {name} in {where} accuracy",
    )
    if not {"nmtune", other} <= set(scores):
        return base.unavailable(f"no {where} task was measured with both")
    difference = 100 * (scores["nmtune"] - scores[other])
    table, note = paired.by_task(difference)
    if table.empty:
        return base.unavailable(f"no {where} task was measured with both in every run")
    found = paired.judge_tasks(table)
    models = tables.plural(difference.shape[1], "model")
    scopes = {
        "models": f"It speaks of other tasks like these on these {models}, not of what "
        "pre-training would give again",
        "tasks": "It speaks of other pre-training runs on these tasks, not of other tasks",
        "": "It speaks of tasks and pre-training runs like these",
    }
    scope = scopes[found.limit]
    if not found.test:
        scope = f"Described, not judged: fewer than {tables.FEWEST} tasks and seeds"
    kind = "Student's t" if found.limit else "Two-way test (Student's t)"
    how = f"{kind} over {found.units}" if found.test else f"The mean over {found.units}"
    over_seeds = found.limit == "tasks"
    number = "seed: tasks, heads" if over_seeds else "task: heads"
    how += f"; one number a {number}, domains, γ and probe seeds averaged"
    return base.measured(
        found,
        test=how + (f"; {note}" if note else ""),
        scope=scope,
        by_part=f"{by_task(table, base.digits)} {split(scores, other)}".strip(),
        differences=tuple(table.mean(axis=0 if over_seeds else 1)),
    )


OTHERS = {"lp": "LP", "mlp": "MLP tuning"}


def by_task(table: pd.DataFrame, digits: int) -> str:
    """The mean difference of each task, where there are several."""
    if not 1 < len(table) <= 12:
        return ""
    several = table.index.get_level_values("labels").duplicated().any()
    parts = [
        f"{tables.task_name(dataset, task, several)} {tables.signed(value, digits)}"
        for (dataset, task), value in table.mean(axis=1).items()
    ]
    return f"By task: {', '.join(parts)}."


def split(scores: dict[str, pd.DataFrame], other: str) -> str:
    """How much of NMTune's difference from LP is the MLP's own, without NMTune's three terms."""
    if other != "lp":
        return ""
    both = {"mlp", "lp"} <= set(scores)
    table = paired.by_task(scores["mlp"] - scores["lp"])[0] if both else pd.DataFrame()
    if table.empty:
        return "How much of this is the MLP's and not its terms' was not recorded."
    value = tables.signed(table.to_numpy().mean() * 100, 2)
    return f"MLP tuning, the same head without NMTune's terms, differs from LP by {value}."
