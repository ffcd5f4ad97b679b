"""Pictures of spectra."""

from collections.abc import Mapping, Sequence

import numpy as np

from noisy_fm.messages import unknown
from noisy_fm.spectrum.arrays import as_array
from noisy_fm.spectrum.intervals import Interval
from noisy_fm.spectrum.moments import Spectrum

TITLES = {"sve": "SVE", "lsvr": "LSVR", "rankme": "RankMe", "alpha": "α"}


def plot(
    spectra,
    *,
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
    bands: Mapping[str, np.ndarray] | None = None,
    title: str | None = None,
):
    """Draws normalised singular values of one or several spectra: decay, and energy gathered.

    Left: pᵢ = σᵢ/Σσ (eq. 2's) against i on log axes; right: the share of Σσ² in the first i. The
    legend gives SVE and LSVR, with ± half of the interval's width where `intervals` has one.

    Args:
      spectra: a name → `Spectrum`, features [n d] or singular values [k] mapping, or one of them.
      intervals: name → what `jackknife` or `bootstrap` returned for it.
      bands: name → bounds [2 k] from `band`, drawn as a shade around pᵢ.

    Returns: a matplotlib Figure (not tied to pyplot: nothing to close; a notebook shows it).
    """
    from noisy_fm import figures

    figure, axes = figures.subplots(1, 2, (10, 4.2))
    _draw(axes[0], spectra, intervals or {}, bands or {})
    return _finished(figure, title)


def panels(spectra, *, intervals=None, bands=None) -> tuple[list, dict[str, str]]:
    """The two panels of `plot` as figures of their own, and their legend: {label: colour}."""
    from noisy_fm import figures

    drawn = [figures.subplots(1, 1, (4.6, 3.3)) for _ in range(2)]
    axes = [each[0, 0] for _, each in drawn]
    _draw(axes, spectra, intervals or {}, bands or {})
    return [figure for figure, _ in drawn], {
        str(line.get_label()): line.get_color() for line in axes[0].lines
    }


def _draw(axes, spectra, intervals: Mapping, bands: Mapping) -> None:
    """The lines of `plot` on its two axes."""
    from noisy_fm import figures

    if isinstance(spectra, list | tuple) and any(
        isinstance(part, Spectrum) or getattr(part, "ndim", 0) == 2 for part in spectra
    ):
        raise ValueError(
            f"plot takes several spectra by name, got a {type(spectra).__name__} of "
            f'{len(spectra)}: as in {{"a": X, "b": Y}}'
        )
    if not isinstance(spectra, Mapping):
        spectra = {"": spectra}
    if not spectra:
        raise ValueError("no spectra to plot")
    for what, named in (("intervals", intervals), ("bands", bands)):
        for name in named.keys() - spectra.keys():
            raise ValueError(unknown(f"name in {what}", name, spectra))
    decay, gathered = axes
    shades = figures.colours_of(len(spectra))
    for colour, (name, spectrum) in zip(shades, spectra.items(), strict=True):
        values = _values(spectrum)
        p = values / values.sum()
        index = np.arange(1, len(p) + 1)
        seen = p > p[0] * 1e-12  # rounding below it would stretch the axis over nothing
        label = _label(name, p, intervals.get(name, {}))
        style = {"color": colour, "linewidth": 1.8, "solid_capstyle": "round"}
        decay.plot(index[seen], p[seen], label=label, **style)
        if name in bands:
            low, high = np.asarray(bands[name])[:, : seen.sum()]
            decay.fill_between(index[: len(low)], low, high, color=colour, alpha=0.2, linewidth=0)
        gathered.plot(index, np.cumsum(values**2) / (values**2).sum(), **style)
    decay.set(xscale="log", yscale="log", xlabel="index i", ylabel="share of Σσ: σᵢ / Σσ")
    figures.head(decay, "Normalised singular values")
    gathered.set(xscale="log", xlabel="index i", ylabel="share of Σσ²", ylim=(0, 1.02))
    figures.head(gathered, "Energy in the first i directions")
    for axis in (decay.xaxis, decay.yaxis, gathered.xaxis):
        figures.plain_logs(axis)


def plot_track(
    history: Mapping[int, Mapping[str, float]],
    *,
    metrics: Sequence[str] = ("sve", "lsvr"),
    prefix: str = "",
    title: str | None = None,
):
    """Draws a tracked run: a panel a metric, over the training steps, one line a layer.

    Args:
      history: step → {"LAYER/METRIC": value}, as `track` returns it at every step; names that do
        not start with `prefix` or are of no metric in `metrics` are left out, NaN is a gap.

    Returns: a matplotlib Figure, as `plot`.

    Raises:
      ValueError: no step, or one of `metrics` that no layer has.
    """
    from noisy_fm import figures

    metrics = (metrics,) if isinstance(metrics, str) else metrics
    steps = sorted(history)
    names = dict.fromkeys(name for step in steps for name in history[step])
    layers = {
        metric: [
            name.removeprefix(prefix).removesuffix(f"/{metric}")
            for name in names
            if name.startswith(prefix) and name.endswith(f"/{metric}")
        ]
        for metric in metrics
    }
    every = list(dict.fromkeys(layer for found in layers.values() for layer in found))
    lacking = [metric for metric, found in layers.items() if not found]
    if lacking or not every:
        wanted = ", ".join(lacking) or "any metric"
        raise ValueError(f"no '{prefix}LAYER/METRIC' of {wanted} in {len(steps)} steps")
    colours = dict(zip(every, figures.colours_of(len(every)), strict=True))
    figure, panels = figures.subplots(1, len(metrics), (5 * len(metrics), 3.8))
    for axes, (metric, found) in zip(panels[0], layers.items(), strict=True):
        for layer in found:
            name = f"{prefix}{layer}/{metric}"
            values = [history[step].get(name, np.nan) for step in steps]
            axes.plot(steps, values, "o-", color=colours[layer], markersize=3, label=layer)
        axes.set_xlabel("training step")
        figures.head(axes, metric_title(metric))
    return _finished(figure, title)


def metric_title(metric: str) -> str:
    """A metric's name as people write it: SVE, LSVR, effective rank."""
    return TITLES.get(metric, metric.replace("_", " "))


def _finished(figure, title: str | None):
    """The figure with its legend (as many columns as fit) and title."""
    from noisy_fm import figures

    shown = {line.get_label(): line for axes in figure.axes[::-1] for line in axes.lines}
    shown = {name: line for name, line in shown.items() if not name.startswith("_")}
    longest = max(map(len, shown))
    width, height = figure.get_size_inches()
    columns = int(max(1, min(len(shown), 13 * width // (longest + 8))))
    figure.set_size_inches(width, height + 0.22 * -(-len(shown) // columns))
    figure.legend(
        shown.values(), shown, loc="outside lower left", ncols=columns, frameon=False,
        labelcolor=figures.INK,
    )  # fmt: skip
    return figures.titled(figure, title)


def _values(spectrum) -> np.ndarray:
    if not isinstance(spectrum, Spectrum):
        array = as_array(spectrum)
        if array.ndim == 1 and array.dtype.kind in "fiub":
            return _positive(np.sort(array.astype(np.float64))[::-1])
        spectrum = Spectrum().update(array)
    return _positive(spectrum.singular_values())


def _positive(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all() or not values.size or values[0] <= 0 or values[-1] < 0:
        raise ValueError("cannot plot a spectrum without finite, positive singular values")
    return values


def _label(name: str, p: np.ndarray, interval: Mapping[str, Interval]) -> str:
    positive = p[p > 0]
    numbers = {"sve": -(positive * np.log(positive)).sum(), "lsvr": -np.log(p[0])}
    parts = []
    for metric, value in numbers.items():
        half = ""
        if metric in interval:
            half = f" ± {(interval[metric].high - interval[metric].low) / 2:.2g}"
        parts.append(f"{metric.upper()} {value:.3f}{half}")
    return f"{name}  ({', '.join(parts)})" if name else ", ".join(parts)
