"""Figures that notebooks and pages share: differences as forests, points with intervals, images.

    from noisy_fm import figures
    figures.forest({"NMTune − LP, points": {"noto": (1.2, 0.3, 2.1), "lineart": (-3.0, -5, -1)}})

A notebook shows the figure as a cell's value; `svg` makes an element of a page out of it, whose
colours are the page's CSS variables (`PAGE_COLOURS`), so that one drawing serves light and dark.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps, figure, rc_context
from matplotlib.colors import to_hex
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# The study report's, so that all pages look alike.
INK, MUTED, RULE, PAGE = "#1d2126", "#5f6873", "#dfe3e8", "#ffffff"
PAGE_COLOURS = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAGE: "--page"}
COLOURS = ("#2f6fb7", "#c77d11", "#0f8a6b", "#8a55c2", "#b8466f", "#4a7a96", "#7d8b1c")
STYLE: dict = {
    "svg.fonttype": "none",
    "svg.hashsalt": "noisy_fm",
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "legend.frameon": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "ytick.major.size": 0,
    "figure.facecolor": PAGE,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}
LONGEST_NAME = 20


class Figure(figure.Figure):
    """matplotlib's, with a PNG for IPython's display although pyplot knows nothing of it."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=80)  # as wide as a notebook, and small in it
        return file.getvalue()


def forest(
    differences: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str | None = None,
    share: bool = False,
    columns: int = 3,
) -> Figure:
    """Draws differences and their intervals around 0: a panel a quantity, a row a comparison.

    A filled point is one whose interval leaves 0 out. Each row ends with its numbers.

    Args:
      differences: panel's title (with the unit) → row → (value, low, high), the head of an
        `Interval` or a `statistics.Test`; NaN bounds for a value without an interval. A panel
        that lacks a row of another one leaves it empty.
      share: one scale for all panels, where they are of one unit.
      columns: panels side by side, before a next row of them.

    Raises:
      ValueError: no panel, or no row in any.
    """
    rows = list(dict.fromkeys(row for panel in differences.values() for row in panel))
    if not rows:
        raise ValueError("a forest needs one difference at least")
    columns = min(columns, len(differences))
    width = 4.6 if columns == 1 else 1.2 + 3.4 * columns
    height = -(-len(differences) // columns) * (1.0 + 0.34 * len(rows))
    made, grid = _grid(differences, columns, (width, height), sharex=share)
    for axes, (name, panel) in zip(grid.flat, differences.items(), strict=False):
        axes.axvline(0, color=MUTED, lw=1)
        bounds = np.array([panel.get(row, [np.nan] * 3)[:3] for row in rows], float)
        half = np.nanmax(bounds[:, 2] - bounds[:, 1], initial=0) / 2
        decimals = decimals_of(half or np.nanmax(np.abs(bounds[:, 0]), initial=0) / 5)
        for place, (value, low, high) in enumerate(bounds):
            if np.isnan(value):
                continue
            sure = low > 0 or high < 0
            colour = COLOURS[0] if sure else MUTED
            axes.plot([low, high], [place, place], color=colour, solid_capstyle="round", lw=2.2)
            axes.plot(value, place, "o", color=colour, mfc=colour if sure else PAGE, ms=7)
            axes.annotate(
                between(value, low, high, decimals), (1, place), (6, 0), va="center", fontsize=8.5,
                xycoords=("axes fraction", "data"), textcoords="offset points",
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [shortened(row) for row in rows], parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", labelleft=axes in grid[:, 0], labelcolor=INK)
        head(axes, name)
    return titled(made, title)


def points(
    table,
    *,
    x: str,
    by: str,
    panel: str | None = None,
    ylabel: str = "",
    xlabel: str = "",
    lines: bool = False,
    colours: Mapping[str, str] | None = None,
    title: str | None = None,
    sharey: bool = True,
    columns: int = 3,
) -> Figure:
    """Draws values with their intervals: a panel a value of `panel`, one colour a value of `by`.

    Args:
      table: a DataFrame with columns value, low and high (NaN where there is no interval), and
        those that `x`, `by` and `panel` name. Numbers in `x` keep their distances, all else is
        drawn side by side in the order that it comes in.
      lines: join the points of one colour.
      columns: panels side by side, before a next row of them.
      colours: of values of `by`; those that are not named take `COLOURS` in turn.

    Raises:
      ValueError: an empty table, or a column that it lacks.
    """
    needed = [*("value", "low", "high"), x, by, *([panel] if panel else [])]
    lacking = [name for name in needed if name not in table]
    if lacking or not len(table):
        raise ValueError(f"no rows to draw, or no column {', '.join(lacking) or 'with rows'}")
    groups, names = list(table[by].unique()), list(table[x].unique())
    shades = dict(zip(groups, colours_of(len(groups)), strict=True)) | dict(colours or {})
    numbers = table[x].dtype.kind in "fiu"
    place = {name: float(name) if numbers else float(i) for i, name in enumerate(names)}
    step = 0.6 / max(len(groups) - 1, 3)
    if numbers and len(place) > 1:  # beside one another, and nearer to their own x than the next
        gap = np.diff(sorted(place.values())).min()
        step = min(0.015 * np.ptp([*place.values()]), 0.5 * gap / len(groups))
    elif numbers:
        step = 0.0
    parts = [(str(name), part) for name, part in table.groupby(panel, sort=False)] if panel else []
    parts = parts or [("", table)]
    columns = min(columns, len(parts))
    size = (1.4 + 3.1 * columns, 0.6 + 2.8 * -(-len(parts) // columns))
    made, grid = _grid(parts, columns, size, sharey=sharey)
    for axes, (name, part) in zip(grid.flat, parts, strict=False):
        for index, group in enumerate(groups):
            own = part[part[by] == group]
            at = own[x].map(place) + step * (index - (len(groups) - 1) / 2)
            style = {"color": shades[group], "alpha": 0.55 if lines else 1}
            axes.plot(at, own.value, "o-" if lines else "o", color=shades[group], label=str(group))
            axes.vlines(at, own.low, own.high, **style)
        ticks = sorted(place.values())
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks] if numbers else [*map(str, names)])
        if not numbers:
            axes.set_xlim(-0.5, len(names) - 0.5)
        axes.grid(visible=False, axis="x")
        axes.set(xlabel=xlabel, ylabel=ylabel if axes in grid[:, 0] else "")
        head(axes, name)
    if len(groups) > 1:
        made.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower left",
                    ncols=min(len(groups), 8), labelcolor=INK, frameon=False)  # fmt: skip
    return titled(made, title)


def images(rows: Mapping[str, Sequence], *, size: float = 0.7) -> Figure:
    """Draws rows of images [h w c], `size` inches each, with the row's name above it.

    Raises ValueError where there is no image.
    """
    longest = max((len(row) for row in rows.values()), default=0)
    if not longest:
        raise ValueError("no images to draw")
    shape = (longest * size, len(rows) * (size + 0.25))
    made, panels = subplots(len(rows), longest, shape)
    for axes, (name, row) in zip(panels, rows.items(), strict=True):
        for each, image in zip(axes, row, strict=False):
            each.imshow(image, interpolation="nearest")
        for each in axes:
            each.axis("off")
        axes[0].set_title(name, fontsize=8)
    return made


def subplots(rows: int, columns: int, size: tuple[float, float], **options):
    """A figure in the house style, `size` inches, and its axes as an array [rows columns]."""
    with rc_context(STYLE):
        made = Figure(figsize=size, layout="constrained")
        return made, made.subplots(rows, columns, squeeze=False, **options)


def head(axes, text: str) -> None:
    """A panel's title, at its left."""
    axes.set_title(text, loc="left", fontweight="bold", fontsize=11, pad=10)


def _grid(parts, columns: int, size: tuple[float, float], **options):
    """A figure with one of its axes [rows columns] for each part, and nothing in the rest."""
    made, grid = subplots(-(-len(parts) // columns), columns, size, **options)
    for axes in grid.flat[len(parts) :]:
        axes.axis("off")
    return made, grid


def titled(made: Figure, title: str | None) -> Figure:
    """The figure with a title at its left."""
    if title:
        made.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return made


def plain_logs(axis) -> None:
    """A log axis' numbers as text (0.01, not 10⁻²), more of them where it is under two decades."""
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * max(low, 1e-300) else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def colours_of(count: int) -> list[str]:
    """Distinct colours for a few things, one ordered ramp for many (checkpoints, noise rates)."""
    return list(COLOURS[:count]) if count <= len(COLOURS) else ramp(count)


def ramp(count: int, *, dark: bool = False) -> list[str]:
    """`count` colours in order; the last is furthest from the background, light or `dark`."""
    start, stop = (0.25, 0.95) if dark else (0.82, 0.08)
    return [to_hex(colormaps["plasma"](t)) for t in np.linspace(start, stop, count)]


def svg(made: Figure, name: str, alt: str, *, levels: Sequence[str] = ()) -> str:
    """The figure as an SVG element of a page; see `element`."""
    file = io.StringIO()
    with rc_context(STYLE):
        made.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    return element(file.getvalue(), name, alt, levels=levels)


def element(text: str, name: str, alt: str, *, levels: Sequence[str] = ()) -> str:
    """matplotlib's SVG file as an element that scales with the page and takes its colours and font.

    Args:
      name: a prefix of its ids, which no other figure on the page has.
      alt: what it shows, in words.
      levels: colours that the page calls --level-0, --level-1, … (see `ramp`).
    """
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    head, body = text.split(">", 1)
    box = "".join(re.findall(r'viewBox="[^"]*"', head))
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", body)
    for index, colour in enumerate(levels):
        body = body.replace(colour, f"var(--level-{index})")
    for colour, variable in PAGE_COLOURS.items():
        body = body.replace(colour, f"var({variable})")
    alt = html.escape(alt, quote=True)
    return (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box} role="img" aria-label="{alt}">'
        f"<title>{alt}</title>{body}"
    )


def between(value: float, low: float, high: float, decimals: int) -> str:
    """ "+0.12 [+0.08, +0.16]"; the value alone where there is no interval."""
    text = signed(value, decimals)
    if np.isfinite([low, high]).all():
        text += f" [{signed(low, decimals)}, {signed(high, decimals)}]"
    return text


def signed(value: float, decimals: int) -> str:
    """A number with its sign, a true minus; no sign where it rounds to 0."""
    text = f"{value:+.{decimals}f}".replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text[1:]


def decimals_of(half: float) -> int:
    """Decimals that show half an interval's width to one digit or two: 1 to 4, 2 without one."""
    if not np.isfinite(half) or half <= 0:
        return 2
    return int(np.clip(np.ceil(-np.log10(half / 2)), 1, 4))


def shortened(name: str) -> str:
    """A long name without its middle."""
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
