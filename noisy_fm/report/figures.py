"""The report's figures: SVG for the page (text stays text, colours follow the page), PNG beside."""

import dataclasses
import html
import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from PIL import Image

from noisy_fm import figures
from noisy_fm.figures import INK, MUTED
from noisy_fm.report import tables

METHOD_COLOURS = {
    "Features F": "#6b7280",
    "LP": "#2f6fb7",
    "MLP": "#c77d11",
    "NMTune": "#0f8a6b",
    "LoRA": "#8a55c2",
    "Full FT": "#b8466f",
    "MLP − LP": "#c77d11",
    "NMTune − MLP": "#0f8a6b",
    "repeated": "#c05a4a",
    "by chance": "#6b7280",
    "follow": "#8a55c2",
    "do not": "#2f6fb7",
}
DASHES = {  # no meaning by colour alone
    "MLP": "--",
    "NMTune": ":",
    "MLP − LP": "--",
    "NMTune − MLP": ":",
    "by chance": ":",
    "do not": "--",
}
SPARE_COLOURS = ["#a0522d", "#4a7a96", "#7d8b1c", "#9b3fa0", "#c05a4a"]
STYLE: dict = {
    **figures.STYLE,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.grid.axis": "y",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
SIZE = (4.6, 3.3)
WRAP = re.compile(r" \(| − ")  # where a long label is broken
MOST_DOTS = 100  # of a line, up to which each says what run it is
PERCENT = "\N{NO-BREAK SPACE}%"
LABEL_GAP = 0.075  # of the axis' height, so that two direct labels never overlap


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A drawn figure: `svg` is ready for the page, `name` its files' stem under figures/."""

    name: str
    svg: str
    alt: str


class Studio:
    """Draws into one folder with one style; colours of methods and γ are fixed for a report."""

    def __init__(self, folder: Path, labels: list[str], rates: list[float]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.levels = figures.ramp(len(rates))
        by_rate = zip(map(tables.percent, rates), self.levels, strict=True)
        self.colours = {**METHOD_COLOURS, **method_colours(labels), **dict(by_rate)}
        self.dashes = dict(DASHES)
        self.rates = rates
        self.named = set(labels) - {tables.METHODS["features"]}

    def lines(
        self,
        summary: pd.DataFrame,
        *,
        name: str,
        title: str,
        ylabel: str,
        scale: float = 1.0,
        x: str = "noise_rate",
        xlabel: str = "pre-training noise γ, %",
        places: Mapping[float, str] | None = None,
        zero: bool = False,
        dots: pd.DataFrame | None = None,
        behind: pd.DataFrame | None = None,
    ) -> Drawing:
        """One line a label (method) over `x`, with intervals and the labels at the lines' ends.

        `places` names the values of `x`, which are shares by default; `zero` draws a line at 0.
        `dots` are single runs: label, `x`, value, seed, which on the page say what they are.
        `behind` are pale lines of other sources: label, `x`, value.
        """
        canvas, axes = self.new(title, right=0.80)
        titles: dict[str, str] = {}
        labels = tables.ordered_labels(summary["label"])
        places = places or {value: tables.percent(value) for value in sorted(summary[x].unique())}
        if zero:
            axes.axhline(0, color=MUTED, lw=1)
        # Over γ the intervals would hide one another; elsewhere the points must stay on x.
        step = 0.016 * (max(places) - min(places)) if x == "noise_rate" else 0
        ends = [] if behind is None else add_behind(axes, behind, x, scale)
        for index, label in enumerate(labels):
            line = summary[summary["label"] == label].sort_values(x)
            at = line[x].to_numpy() + step * (index - (len(labels) - 1) / 2)
            mean = line["value"].to_numpy() * scale
            colour = self.colours.get(label, METHOD_COLOURS["LP"])
            bars = np.abs(line[["low", "high"]].to_numpy().T * scale - mean)
            dashes = self.dashes.get(label.split(" (")[0], "-")
            axes.plot(at, mean, marker="o", ls=dashes, color=colour, gid=f"of--{slug(label)}-mean")
            bar = axes.vlines(at, mean - bars[0], mean + bars[1], color=colour, alpha=0.45, lw=1.4)
            bar.set_gid(f"of--{slug(label)}-bars")
            if dots is not None:
                places_of = dict(zip(line[x], at, strict=True))
                own = dots[dots["label"] == label]
                titles |= add_dots(axes, own, places_of, x, scale, colour, slug(label))
            ends.append((mean[-1], label, colour, f"of--{slug(label)}-name"))
        axes.set_xticks(list(places), [place.removesuffix(PERCENT) for place in places.values()])
        for place in axes.get_xticklabels():
            if len(place.get_text()) > 6:  # three λ in one label
                place.set_fontsize(7)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if len(ends) > 1 or labels[0] in self.named:
            direct_labels(axes, ends)
        elif dots is None:  # one line without a name to give: write its values instead
            write_values(axes, line[x], line["value"] * scale)
        alt = line_alt(summary, labels, title, x, scale, places)
        return self.save(canvas, name, alt, titles)

    def spectra(
        self,
        curves: Mapping,
        *,
        name: str,
        title: str,
        ylabel: str,
        log_y=True,
        bands: Mapping | None = None,
    ) -> Drawing:
        """Curves over the singular values' rank i, one a γ, coloured from low to high γ.

        `bands` [2 n] are drawn behind the curves of their γ.
        """
        canvas, axes = self.new(title, right=0.96)
        for rate, curve in curves.items():
            rank = np.arange(1, len(curve) + 1)
            colour = self.levels[self.rates.index(rate)]
            axes.plot(rank, curve, color=colour, lw=1.6, label=tables.percent(rate))
            if bands and rate in bands:
                axes.fill_between(rank, *bands[rate], color=colour, alpha=0.2, lw=0)
        axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
            top = max(np.nanmax(curve) for curve in curves.values())
            bottom = min(np.nanmin(curve) for curve in curves.values())
            axes.set_ylim(max(bottom, top * 1e-5) * 0.8, top * 1.4)
        axes.minorticks_off()
        axes.set_xlabel("rank i of the singular value")
        axes.set_ylabel(ylabel)
        add_rates(axes)
        first = ", ".join(f"{c[0]:.3g} at γ = {tables.percent(r)}" for r, c in curves.items())
        return self.save(canvas, name, f"{title}, over rank i. At i = 1: {first}.")

    def curves(self, curves: Mapping, *, name: str, title: str, xlabel: str) -> Drawing:
        """{γ: a series by x}, one line a γ, coloured from low to high γ."""
        canvas, axes = self.new(title, right=0.96)
        for rate, line in curves.items():
            colour = self.levels[self.rates.index(rate)]
            axes.plot(line.index, line, color=colour, lw=1.6, label=tables.percent(rate))
        axes.set_xlabel(xlabel)
        add_rates(axes)
        last = ", ".join(
            f"{line.iloc[0]:.3g} to {line.iloc[-1]:.3g} at γ = {tables.percent(rate)}"
            for rate, line in curves.items()
        )
        return self.save(canvas, name, f"{title}, first to last: {last}.")

    def matrix(self, cosines: np.ndarray, captions: list[str], *, name: str, title: str) -> Drawing:
        """Cosines [n n] of images, a row each, and captions, with a mark where a row has its most.

        Shades are from a row's least to its most, as a softmax over the row compares them.
        """
        with rc_context(STYLE):
            canvas = Canvas(figsize=(SIZE[0], SIZE[0]))
            FigureCanvasAgg(canvas)
            axes = canvas.add_axes((0.36, 0.36, 0.6, 0.56))
            axes.set_title(title, x=-0.5)
        low, high = cosines.min(1, keepdims=True), cosines.max(1, keepdims=True)
        shade = (cosines - low) / np.maximum(high - low, 1e-12)
        axes.pcolormesh(shade, cmap="Blues", vmin=0, vmax=1.4)
        axes.invert_yaxis()
        best = cosines.argmax(1)
        places = np.arange(len(best)) + 0.5
        axes.plot(best + 0.5, places, "o", color="white", mec="black", ms=5, ls="")
        short = [text if len(text) < 27 else f"{text[:25]}…" for text in captions]
        axes.set_xticks(places, short, rotation=90, fontsize=6.5)
        axes.set_yticks(places, short, fontsize=6.5)
        axes.grid(False)
        own = int((best == np.arange(len(best))).sum())
        return self.save(
            canvas, name, f"{title}: {own} of {len(best)} images are nearest to their own caption."
        )

    def new(self, title: str, *, right: float):
        with rc_context(STYLE):
            canvas = Canvas(figsize=SIZE)
            FigureCanvasAgg(canvas)
            axes = canvas.add_axes((0.15, 0.155, right - 0.15, 0.72))
            axes.set_title(title, x=-0.12 * 0.8 / (right - 0.15))
        return canvas, axes

    def save(self, canvas, name: str, alt: str, titles: Mapping[str, str] = {}) -> Drawing:
        """Write NAME.svg and NAME.png and return the drawing for the page.

        `titles` are what parts of the drawing say under the pointer, by their ids.
        """
        text = io.StringIO()
        with rc_context(STYLE):
            canvas.savefig(text, format="svg", dpi=160, metadata={"Date": None})
            canvas.savefig(self.folder / f"{name}.png", dpi=160)
        svg = text.getvalue()
        for part, words in titles.items():
            opened = f'<g id="{part}">'
            svg = svg.replace(opened, f"{opened}<title>{html.escape(words)}</title>", 1)
        (self.folder / f"{name}.svg").write_text(svg)
        return Drawing(name, figures.element(svg, name, alt, levels=self.levels), alt)


def tile(paths: list[Path], out: Path, *, columns: int = 3) -> None:
    """Write pictures of one size beside and below one another, as one PNG."""
    pictures = [Image.open(path).convert("RGB") for path in paths]
    width, height = pictures[0].size
    columns = min(columns, len(pictures))
    sheet = Image.new("RGB", (width * columns, height * -(-len(pictures) // columns)), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (width * (i % columns), height * (i // columns)))
    sheet.save(out, optimize=True)


def slug(*parts: str) -> str:
    """Words to a file's stem."""
    return "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", p.lower()).strip("-") for p in parts)))


def add_behind(axes, frame: pd.DataFrame, x: str, scale: float) -> list[tuple]:
    """Draw pale lines of label, `x`, value; returns their ends for `direct_labels`."""
    ends = []
    for label, line in frame.groupby("label", sort=False):
        at, values = line[x].to_numpy(), line["value"].to_numpy() * scale
        name = f"paper--{slug(label)}"
        axes.plot(at, values, color=MUTED, alpha=0.4, lw=1.1, zorder=1, gid=f"{name}-mean")
        ends.append((values[-1], label, MUTED, f"{name}-name"))
    return ends


def add_rates(axes) -> None:
    """Say which line is of which γ."""
    legend = axes.legend(title="γ", frameon=False, fontsize=9, labelcolor=INK)
    legend.get_title().set(color=INK, fontsize=9)


def add_dots(axes, dots: pd.DataFrame, places: Mapping, x: str, scale, colour, name) -> dict:
    """Draw single runs beside the means of `places`; returns {id: what it says}, if they are few.

    Each that says something is an element of its own, which for very many would make a large page.
    """
    at = dots[x].map(places).to_numpy(float)
    values = dots["value"].to_numpy(float) * scale
    style = {"color": colour, "alpha": 0.4, "ms": 2.8, "mew": 0, "ls": "", "marker": "o"}
    if len(dots) > MOST_DOTS:
        axes.plot(at, values, gid=f"of--{name}-runs", rasterized=True, **style)
        return {}
    titles = {}
    for i, (place, value, level, seed) in enumerate(
        zip(at, values, dots[x], dots["seed"], strict=True)
    ):
        part = f"of--{name}-run{i}"
        axes.plot([place], [value], gid=part, **style)
        level = tables.percent(level) if x == "noise_rate" else f"{level:g}"
        titles[part] = f"seed {seed:g}, {level}: {value:.4g}"
    return titles


def method_colours(labels: list[str]) -> dict[str, str]:
    """The same colour for a method in every figure; further presets take spare colours."""
    colours: dict[str, str] = {}
    spare = 0
    for label in labels:
        plain = label.split(" (")[0]
        if plain in METHOD_COLOURS and METHOD_COLOURS[plain] not in colours.values():
            colours[label] = METHOD_COLOURS[plain]
        else:
            colours[label] = SPARE_COLOURS[spare % len(SPARE_COLOURS)]
            spare += 1
    return colours


def write_values(axes, x, y) -> None:
    """Write each value of a line above its point."""
    for at, value in zip(x, y, strict=True):
        axes.annotate(
            f"{value:.1f}", (at, value), (7, 4), textcoords="offset points", fontsize=9, color=INK
        )


def direct_labels(axes, ends: list[tuple]) -> None:
    """Write each line's label at its right end, moved apart where they would overlap.

    An end is (height, label, colour, id).
    """
    bottom, top = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[0])
    heights = [(end[0] - bottom) / (top - bottom) for end in ends]
    gaps = [LABEL_GAP * (1.6 if WRAP.search(end[1]) else 1) for end in ends]
    for index in range(1, len(heights)):
        gap = (gaps[index] + gaps[index - 1]) / 2
        heights[index] = max(heights[index], heights[index - 1] + gap)
    overshoot = max(0.0, heights[-1] - 1.0)
    for (_, label, colour, gid), height in zip(ends, heights, strict=True):
        wrapped = WRAP.sub(lambda match: "\n" + match[0].strip(" "), label)
        axes.text(
            1.02,
            height - overshoot,
            wrapped,
            gid=gid,
            color=colour,
            transform=axes.transAxes,
            va="center",
            fontsize=9.5 if len(label) < 12 else 8.5,
        )


def line_alt(summary: pd.DataFrame, labels, title: str, x: str, scale: float, places) -> str:
    """The figure's first and last values in words."""
    parts = []
    for label in labels:
        line = summary[summary["label"] == label].sort_values(x)
        first, last = line.iloc[0], line.iloc[-1]
        parts.append(
            f"{label} {first['value'] * scale:.3g} at {places[first[x]]}, "
            f"{last['value'] * scale:.3g} at {places[last[x]]}"
        )
    return f"{title}: " + "; ".join(parts) + "."


def mean_spectra(rows: list[dict]) -> dict[float, np.ndarray]:
    """Mean normalised spectrum σ_i/Σσ of each γ, over the feature sets that every γ has."""
    frame = pd.DataFrame(rows)
    unit = [c for c in frame if c not in ("noise_rate", "probe_seed", "singular_values")]
    frame[unit] = frame[unit].astype(object).fillna("")
    frame, _ = tables.common_units(frame, unit, ["noise_rate"])
    curves = {}
    for rate, group in frame.groupby("noise_rate"):
        sigmas = [np.sort(np.asarray(s, float))[::-1] for s in group["singular_values"]]
        sigmas = [s for s in sigmas if np.isfinite(s).all() and s.sum() > 0]
        length = min((len(s) for s in sigmas), default=0)
        if length:
            curves[rate] = np.mean([s[:length] / s.sum() for s in sigmas], axis=0)
    return curves
