"""Tables and the figure of heads.parquet and encoders.parquet, beside this file.

    python experiments/heads/summary.py

Seconds. The unit is a pre-training run: a run's number is the mean over labellings, of each over
its targets; differences are paired by run, with Student's 95 % interval over seeds.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from noisy_fm import statistics

HERE = Path(__file__).parent
LAMBDAS = [f"nmtune λ={w:g}" for w in (0.01, 0.1, 1, 10)]
EPOCHS = (3, 10, 30, 100)
# What may be chosen on folds of the training images → the candidates.
CHOSEN = {
    "NMTune, λ chosen": ["mlp", *LAMBDAS],
    "NMTune, λ and epochs chosen": [
        *("mlp", *LAMBDAS, "mlp 3 epochs", "mlp 10 epochs"),
        *(f"nmtune λ={w} {e} epochs" for w in ("0.01", "1") for e in (3, 10)),
    ],
    "MLP, epochs chosen": ["mlp", *(f"mlp {e} epochs" for e in (3, 10, 100))],
    "LP, epochs chosen": ["lp", *(f"lp {e} epochs" for e in (3, 10, 100))],
    "logistic regression, penalty chosen": [f"logreg {w}" for w in ("0.01", "0.1", "1")],
}
CHOSEN["any of these, chosen"] = sorted({name for names in CHOSEN.values() for name in names})


def by_run(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in points by (setting, shift, rate, seed), labellings weighing the same."""
    rows = rows[(rows.target != "folds")].copy()
    rows["shift"] = (rows.target == rows.source).map({True: "ID", False: "OOD"})
    keys = ["setting", "shift", "rate", "seed"]
    tasks = rows.groupby([*keys, "task"]).accuracy.mean()
    return 100 * tasks.groupby(keys).mean()


def with_chosen(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, and those of what wins on the folds as settings of their own."""
    place = ["rate", "seed", "task", "source"]
    folds = rows[rows.target == "folds"].set_index([*place, "setting"]).accuracy
    added = []
    for title, names in CHOSEN.items():
        scores = folds[folds.index.get_level_values("setting").isin(names)]
        best = scores.unstack("setting")[names].idxmax(axis=1).rename("setting").reset_index()
        added.append(rows.merge(best, on=[*place, "setting"]).assign(setting=title))
    return pd.concat([rows, *added], ignore_index=True)


def over(values: pd.Series, base: str) -> pd.DataFrame:
    """Every setting minus `base`: effect, low, high, wins over runs; and the mean itself."""
    table = {}
    for (setting, shift, rate), own in values.groupby(level=["setting", "shift", "rate"]):
        gain = (own.droplevel([0, 1, 2]) - values[base, shift, rate]).dropna()
        if len(gain) > 2:
            found = statistics.t_test(gain) if setting != base else (0, 0, 0)
            table[setting, shift, rate] = [own.mean(), *found[:3], len(gain)]
    columns = ["accuracy", "effect", "low", "high", "seeds"]
    return pd.DataFrame.from_dict(table, orient="index", columns=columns)


def shown(table: pd.DataFrame) -> str:
    if table.empty:
        return "fewer than three runs a γ"
    table = table.set_index(pd.MultiIndex.from_tuples(table.index))
    cells = table.apply(
        lambda r: f"{r.accuracy:.1f} ({r.effect:+.1f}, {r.low:+.1f} to {r.high:+.1f})", axis=1
    )
    return cells.unstack([1, 2]).to_string()


def draw(values: pd.Series, path: Path) -> None:
    """Left: heads by epochs; right: what is gained over LP, with intervals."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    rates = sorted(values.index.get_level_values("rate").unique())
    rates = [rates[0], rates[-1]]
    for axes, rate in zip(panels, rates, strict=False):
        for method, colour in (("lp", "#444444"), ("mlp", "#1f77b4")):
            names = [method if e == 30 else f"{method} {e} epochs" for e in EPOCHS]
            for shift, style in (("ID", ":"), ("OOD", "-")):
                means = [values[name, shift, rate].mean() for name in names]
                label = f"{method.upper()} {shift}"
                axes.plot(EPOCHS, means, style, marker="o", color=colour, label=label)
        for shift, style in (("ID", ":"), ("OOD", "-")):
            means = [values[f"logreg {w}", shift, rate].mean() for w in ("0.01", "0.1", "1")]
            label = f"logistic regression {shift}, best of 3 penalties"
            axes.axhline(max(means), color="#d62728", linestyle=style, linewidth=1, label=label)
        axes.set(xscale="log", xlabel="epochs", ylabel="accuracy, %", title=f"γ = {rate:.0%}")
        axes.set_xticks(EPOCHS, EPOCHS)
        axes.minorticks_off()
    shared = panels[0].get_legend_handles_labels()
    figure.legend(*shared, frameon=False, fontsize=8, loc="outside lower left", ncols=3)
    names = ["mlp", *LAMBDAS, "nmtune release", "mlp 3 epochs", "nmtune λ=1 3 epochs", *CHOSEN]
    table = over(values, "lp")
    for rate, offset, colour in zip(rates, (-0.15, 0.15), ("#1f77b4", "#d62728"), strict=False):
        found = table.loc[[(name, "OOD", rate) for name in names]]
        y = [place + offset for place in range(len(names))]
        panels[2].hlines(y, found.low, found.high, color=colour)
        panels[2].plot(found.effect, y, "o", color=colour, label=f"γ = {rate:.0%}")
    panels[2].axvline(0, color="#444444", linewidth=0.8)
    panels[2].set_yticks(range(len(names)), names, fontsize=8)
    panels[2].invert_yaxis()
    panels[2].set(xlabel="points over LP", title="out of domain, 95 % over seeds")
    panels[2].legend(frameon=False, fontsize=8)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    rows = pd.read_parquet(HERE / "heads.parquet")
    emoji = rows[rows.source != ""]
    tasks = emoji.groupby(["seed", "rate"]).task.transform("nunique")
    emoji = with_chosen(emoji[tasks == tasks.max()])  # of a model in work some are missing
    values = by_run(emoji)
    print("Emoji, points (over LP)\n", shown(over(values, "lp")))
    print("\nEmoji, points (over MLP tuning)\n", shown(over(values, "mlp")))
    print("\nDigits, points (over LP)\n", shown(over(by_run(rows[rows.source == ""]), "lp")))
    for task, part in emoji.groupby("task"):
        print(f"\n{task}, points (over LP)\n", shown(over(by_run(part), "lp")))
    if (HERE / "encoders.parquet").is_file():
        print("\n", pd.read_parquet(HERE / "encoders.parquet").round(3).to_string())
    draw(values, HERE / "heads.png")


if __name__ == "__main__":
    main()
