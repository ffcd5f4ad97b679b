"""The first screen: what was seen in a sentence, and the few curves that show it, run by run."""

import pandas as pd

from noisy_fm.report import figures, paired, questions, tables
from noisy_fm.report.figures import slug
from noisy_fm.report.findings import Finding

CELL = ["noise_rate", "label"]
MEMORISING = 0.5  # of the way from chance to all wrong labels, a model learned them by heart
# Nats of training loss that the second half of a head's training takes off. On emoji it is 0.12 to
# 0.21 after 3 epochs of LP, 0.14 at most after the paper's 30, and 100 epochs add no accuracy.
STILL_LEARNING = 0.15
# What a finding that is seen says in a title: up, down.
TITLES = {
    "ood": ("out-of-domain accuracy rises", "out-of-domain accuracy falls"),
    "slight": ("slight noise helps in domain", "slight noise hurts in domain"),
    "sve": ("the spectrum flattens", "the spectrum sharpens"),
    "lsvr": ("its leading direction weakens", "its leading direction grows"),
    "relation": (
        "tasks that do not follow from those labels fare better than tasks that do",
        "tasks that do not follow from those labels fare worse than tasks that do",
    ),
}
LABELS = {method: tables.METHODS[method] for method in ("lp", "mlp", "nmtune")}


def title(findings: list[Finding], rates: list[float], *, wrong: str = "wrong labels") -> str:
    """One sentence of what is seen of noise, with its size, or that nothing is.

    Where nothing is, it has the change of the first accuracy that was measured at several γ.
    `wrong` is what noise made wrong.
    """
    found = {finding.key: finding for finding in findings}
    said = [
        f"{TITLES[key][found[key].effect < 0]} ({sized(found[key])})"
        for key in TITLES
        if key in found and found[key].verdict == "seen"
    ]
    along = f"from γ = {tables.percent(rates[0])} to {tables.percent(rates[-1])}"
    if said:
        return f"With {wrong} in pre-training, {along}, {'; '.join(said)}"
    measured = [
        f"{name} changes by {sized(found[key])} {along}"
        for key, name in (("ood", "out-of-domain accuracy"), ("pretrain", "pre-training accuracy"))
        if key in found and found[key].verdict != "missing"
    ]
    sizes = "".join(f": {text}" for text in measured[:1])
    if any(key in found and found[key].verdict == "not seen" for key in TITLES):
        what = f"Of {len(TITLES)} questions about {wrong} in pre-training none has a clear"
        return f"{what} answer{sizes}"
    return f"{wrong.capitalize()} in pre-training, too few runs to judge by{sizes}"


def sized(finding: Finding) -> str:
    """What changed from the lowest γ to the highest, with its interval."""
    name = f"{finding.key.upper()} " if finding.key in tables.SPECTRA else ""
    return name + finding.ends_text


def panels(records: pd.DataFrame, studio: figures.Studio, model: str) -> list[dict]:
    """The figures of the first screen, each with its sentence."""
    found = [
        accuracy(records, studio, model, "id"),
        accuracy(records, studio, model, "ood"),
        memorised(records, studio, model),
        untrained(records, studio, model, "zero_shot"),
        untrained(records, studio, model, "R@10"),
        spectrum(records, studio, model, "sve", "id"),
        spectrum(records, studio, model, "lsvr", "ood"),
        related(records, studio, model),
        differences(records, studio, model, "id"),
        differences(records, studio, model, "ood"),
    ]
    return [panel for panel in found if panel]


def panel(studio, summary, dots, sentence: str, **about) -> dict | None:
    """A figure over γ and its sentence; None where there is one γ only."""
    if summary.empty or summary["noise_rate"].nunique() < 2:
        return None
    drawing = studio.lines(summary, dots=dots, **about)
    return {"drawing": drawing, "sentence": sentence, "title": about["title"], "dots": dots,
            "scale": about.get("scale", 1)}  # fmt: skip


def runs_table(panels: list[dict], model: str) -> pd.DataFrame:
    """One row a run: seed, γ and what the panels draw of it, in their units."""
    runs = pd.DataFrame({"seed": [], "noise_rate": []})
    for one in panels:
        wide = one["dots"].pivot_table("value", ["seed", "noise_rate"], "label") * one["scale"]
        several = one["dots"]["label"].nunique() > 1 or set(one["dots"]["label"]) & {
            *LABELS.values()
        }
        wide.columns = [
            f"{one['title']}: {label}" if several else one["title"] for label in wide.columns
        ]
        runs = runs.merge(wide.reset_index(), on=["seed", "noise_rate"], how="outer")
    return runs.assign(model=model) if model else runs


def both(frame: pd.DataFrame, count=tables.TASK) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(Mean and interval of each γ and label, every run's own)."""
    return tables.summarise(frame, CELL, count), tables.run_means(frame, CELL, count).reset_index()


def intervals(dots: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval of each γ and label of paired numbers, one a run."""
    rows = [
        {"label": label, "noise_rate": rate, **paired.interval(group["value"])}
        for (label, rate), group in dots.groupby(["label", "noise_rate"])
    ]
    return pd.DataFrame(rows)


def accuracy(records, studio, model: str, shift: str) -> dict | None:
    """Accuracy of every method against γ."""
    frame = tables.full_data(tables.probe_scores(records, shift=shift, metric="accuracy"))
    if frame.empty:
        return None
    frame, note = tables.common_units(frame, tables.UNIT, CELL)
    where = tables.SHIFTS[shift]
    summary, dots = both(frame)
    number = len(frame[tables.TASK].drop_duplicates())
    sentence = f"Mean of {number} tasks, each weighted alike." if number > 1 else "One task."
    return panel(
        studio, summary, dots, f"{sentence} {note or ''}".strip(),
        name=slug("accuracy", shift, model),
        title=f"{where.capitalize()} accuracy", ylabel="accuracy, %", scale=100,
    )  # fmt: skip


def differences(records, studio, model: str, shift: str) -> dict | None:
    """What the MLP adds to LP, and NMTune's terms to the MLP, paired by run."""
    grids, parts, words = questions.scores_of(records, shift), [], []
    for ours, theirs in questions.COMPARED:
        if {ours, theirs} <= set(grids):
            runs, _ = paired.by_run(grids[ours] - grids[theirs], tables.TASK)
            if runs.empty:
                continue
            long = runs.stack().rename("value").reset_index()
            parts.append(long.assign(label=f"{LABELS[ours]} − {LABELS[theirs]}"))
            words.append(ADDS[ours])
    if not parts:
        return None
    dots, where = pd.concat(parts, ignore_index=True), tables.SHIFTS[shift]
    return panel(
        studio, intervals(dots), dots, f"Paired by run: what {', and '.join(words)}.",
        name=slug("heads", shift, model), title=f"Difference between heads, {where}",
        ylabel="points", scale=100, zero=True,
    )  # fmt: skip


ADDS = {"mlp": "the MLP adds to LP", "nmtune": "NMTune's terms add to the MLP"}


def spectrum(records, studio, model: str, metric: str, shift: str) -> dict | None:
    """A spectral metric of F against γ."""
    frame = tables.feature_sets(records, metric, shift)
    if frame.empty:
        return None
    frame, note = tables.common_units(frame, tables.SPECTRUM_UNIT, CELL, "feature set")
    summary, dots = both(frame, paired.SET)
    sentence = {
        "sve": "Larger: a flatter spectrum of the features (eq. 2).",
        "lsvr": "Larger: a weaker leading direction (eq. 3).",
    }[metric]
    return panel(
        studio, summary, dots, f"{sentence} {note or ''}".strip(), name=slug(metric, model),
        title=f"{metric.upper()} of the features, {tables.SHIFTS[shift]}", ylabel="nats",
    )  # fmt: skip


def memorised_share(records: pd.DataFrame) -> float | None:
    """The share of wrong labels that models at the highest γ repeat, or None."""
    rows = records[records["metric"] == "flipped_fits_given"]
    if rows.empty:
        return None
    return float(rows[rows["noise_rate"] == rows["noise_rate"].max()]["value"].mean())


def memorised_text(records: pd.DataFrame) -> str:
    """How many of the wrong labels the models repeat, in a sentence; "" where not recorded."""
    share = memorised_share(records)
    if share is None:
        return ""
    rows = records[records["metric"].isin(["flipped_fits_given", "flipped_fits_chance"])]
    highest = rows["noise_rate"].max()
    rows = rows[rows["noise_rate"] == highest]
    chance = rows[rows["metric"] == "flipped_fits_chance"]["value"].mean()
    beside = f" (by chance {100 * chance:.1f}\N{NO-BREAK SPACE}%)" if chance == chance else ""
    text = f"At γ = {tables.percent(highest)}, {100 * share:.0f}\N{NO-BREAK SPACE}% of the "
    text += f"{tables.wrong(records)} were memorised{beside}"
    by_chance = chance if chance == chance else 0.0
    learned = share - by_chance >= MEMORISING * (1 - by_chance)
    return f"{text}{'' if learned else ': not learned by heart'}."


def memorised(records, studio, model: str) -> dict | None:
    """How many of the wrong labels the models repeat: the precondition of all else."""
    labels = {"flipped_fits_given": "repeated", "flipped_fits_chance": "by chance"}
    frame = records[records["metric"].isin(labels)]
    if frame.empty:
        return None
    summary, dots = both(frame.assign(label=frame["metric"].map(labels)))
    return panel(
        studio, summary, dots, memorised_text(records), name=slug("memorised", model),
        title=f"{tables.wrong(records).capitalize()} that the model repeats",
        ylabel="share of them, %", scale=100,
    )  # fmt: skip


UNTRAINED = {
    "zero_shot": ("Zero-shot accuracy", "Images classified by the names of the classes alone."),
    "R@10": (
        "Retrieval, R@10",
        "How often the right one is among the ten nearest; mean of captions and images sought.",
    ),
}


def untrained(records, studio, model: str, metric: str) -> dict | None:
    """What a model of images and texts does on each set without any training on it."""
    names = records["metric"].str.split("/")
    frame = records[(records["stage"] == "pretrain") & (names.str[-1] == metric)]
    frame = frame[names[frame.index].str.len() > 1]
    if frame.empty:
        return None
    entry = names[frame.index].str[0].str.replace("_", "\n")
    summary, dots = both(frame.assign(label=entry))
    title, sentence = UNTRAINED[metric]
    return panel(
        studio, summary, dots, sentence, title=title, ylabel="%", scale=100,
        name=slug(metric.replace("@", "").replace("_", "-"), model),
    )  # fmt: skip


KINDS = {"determined": "follow", "free": "do not"}


def related(records, studio, model: str) -> dict | None:
    """Change of in-domain accuracy on tasks that follow from the labels of pre-training or not."""
    frame = tables.full_data(tables.probe_scores(records, shift="id", metric="accuracy"))
    kind = questions.relations(records)
    if kind.empty or frame.empty:
        return None
    tasks = pd.MultiIndex.from_frame(frame[tables.TASK])
    frame = frame.assign(relation=kind.reindex(tasks).to_numpy())
    frame = frame[(frame["method"] == "lp") & frame["relation"].notna()]
    if frame["relation"].nunique() < 2:
        return None
    parts = []
    for name, rows in frame.groupby("relation"):
        runs, _ = paired.by_run(paired.grid(rows, paired.TEST), tables.TASK)
        if 0.0 in runs:
            change = runs.sub(runs[0.0], axis=0).stack().rename("value").reset_index()
            parts.append(change.assign(label=KINDS[name]))
    if not parts:
        return None
    dots = pd.concat(parts, ignore_index=True)
    which = {
        name: ", ".join(sorted(set(rows["labels"]))) for name, rows in frame.groupby("relation")
    }
    return panel(
        studio, intervals(dots), dots,
        f"LP, in domain. Follow from the labels of pre-training: {which['determined']}; do not: "
        f"{which['free']}.",
        name=slug("relation", model), title="Tasks that follow from the labels, or do not",
        ylabel="change from γ = 0, points", scale=100, zero=True,
    )  # fmt: skip


def still_learning(records: pd.DataFrame) -> dict[str, list[str]]:
    """{label: tasks} of methods whose heads on a task were far from the end of their training.

    On average over runs the second half of it still took `STILL_LEARNING` nats off the training
    loss; or there was a single epoch, which has no second half.
    """
    losses = records[records["metric"].isin(["train_loss", "train_loss_halfway"])]
    means = losses.groupby(["label", *tables.TASK, "metric"])["value"].mean().unstack("metric")
    if "train_loss" not in means:
        return {}
    halfway = means.get("train_loss_halfway", pd.Series(float("inf"), means.index))
    fell = halfway.fillna(float("inf")) - means["train_loss"]
    found: dict[str, list[str]] = {}
    for label, dataset, labels in fell.index[fell > STILL_LEARNING]:
        found.setdefault(label, []).append(labels or dataset)
    return {label: found[label] for label in tables.ordered_labels(found)}


def caution(finding: Finding, learning: dict[str, list[str]]) -> str:
    """What is to be said beside a comparison of methods, some of them still learning."""
    methods = {"rectified": ("lp", "nmtune")}.get(finding.key.split()[0], finding.key.split())
    names = [LABELS[method] for method in methods if method in LABELS]
    late = [label for label in learning if label.split(" (")[0] in names]
    return f"{' and '.join(late)} still learning" if late and finding.verdict != "missing" else ""
