"""One self-contained HTML page about the spectra of one or several sets of features."""

import contextlib
import html
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from noisy_fm.files import written_whole
from noisy_fm.messages import spelled
from noisy_fm.spectrum.draw import metric_title, panels
from noisy_fm.spectrum.intervals import Interval
from noisy_fm.spectrum.measure import Measured, measure, scaled, share_of_most
from noisy_fm.spectrum.metrics import METRICS
from noisy_fm.spectrum.words import TITLES, cautions, headline, pairing

SHARE = (
    "SVE as a share of the largest value that n and d allow: 1 where all min(n, d) directions are "
    "equal"
)


def report(features: Mapping[str, object] | object, path: str | Path, **options) -> dict[str, dict]:
    """Writes the page about named features [n d] to `path`; returns their summaries.

    Sets of different n are compared at the smallest, by a fixed random draw of rows, unless
    `whole=True`; the page says so, and their summaries are of the rows that were drawn. All
    `options` are those of `spectrum.measure.measure` (intervals, whole, groups, ids, center,
    normalize, convention, progress).

    Raises:
      ValueError: as `summary`, with the name of the features at fault; `path` does not end in
        .html or .htm, or is the file of memory-mapped features.
      OSError: `path` cannot be written, or its folder is not there. Both are told before anything
        is computed.
    """
    if not isinstance(features, Mapping):
        features = {"features": features}
    mapped = [file for x in features.values() if (file := getattr(x, "filename", None))]
    path = prepare_page(path, mapped)
    measured = measure(features, **options)
    write_page(path, page(measured))
    return measured.summaries


def page(found: Measured) -> str:
    """The HTML text: a sentence that says what differs, pictures, and every number folded."""
    from noisy_fm.figures import COLOURS, ramp
    from noisy_fm.spectrum.style import POLICY, sheet

    count = len(found.spectra)
    levels = ramp(count) if count > len(COLOURS) else []
    cautious = "".join(f'<p class="missing">{html.escape(line)}.</p>\n' for line in cautions(found))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Feature spectra</title>
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{sheet(len(levels))}</style></head>
<body><main><h1>Feature spectra</h1>
<p class="lead">{html.escape(headline(found))}</p>
{cautious}{_spectra(found, levels)}{_forests(found)}
<details><summary>Every number</summary>{_numbers(found)}</details>
<details><summary>What the numbers mean</summary>{_meanings(found)}</details>
</main></body></html>
"""


def _spectra(found: Measured, levels: list[str]) -> str:
    """The two panels of the spectra, their legend, and how they were taken."""
    from noisy_fm.figures import svg

    made, colours = panels(found.spectra, intervals=found.bounds, bands=found.bands)
    named = ", ".join(f"{label}" for label in colours)
    alts = (
        f"Normalised singular values over their index: {named}.",
        f"Share of the energy in the first i directions: {named}.",
    )
    drawn = "".join(
        f"<figure>{svg(figure, f'panel{i}', alt, levels=levels)}</figure>"
        for i, (figure, alt) in enumerate(zip(made, alts, strict=True))
    )
    shown = dict(zip(levels, (f"var(--level-{i})" for i in range(len(levels))), strict=True))
    legend = "".join(
        f'<li><i style="background:{shown.get(colour, colour)}"></i>{html.escape(label)}</li>'
        for label, colour in colours.items()
    )
    return (
        f'<div class="grid">{drawn}</div>\n<ul class="legend">{legend}</ul>\n'
        f'<p class="caption">A curve that falls late uses many directions: SVE is high. One that '
        f"starts high is dominated by its first: LSVR is low. {html.escape(_how(found))}.</p>"
    )


def _how(found: Measured) -> str:
    settings = next(iter(found.spectra.values())).settings
    how = (
        f"Centre: {settings['center'] or 'none'}, rows "
        f"{'normalised' if settings['normalize'] else 'as they are'}; natural logarithms"
    )
    if found.bounds:
        groups = ", whole groups left out together" if found.grouped else ""
        how += f"; ± and shades: 95 % delete-a-block jackknife intervals{groups}"
    return how


def _forests(found: Measured) -> str:
    """Differences from the first set, a figure a metric."""
    from noisy_fm.figures import forest, signed, svg

    drawn = ""
    for number, (title, rows) in enumerate(found.panels.items()):
        told = "; ".join(f"{name} {signed(d.value, 3)}" for name, d in rows.items())
        alt = f"{title}, difference from {found.first}: {told}."
        drawn += f"<figure>{svg(forest({title: rows}), f'forest{number}', alt)}</figure>"
    if not drawn:
        return ""
    note = "Without intervals, chance is not judged"
    if found.bounds:
        note = f"{pairing(found)}. Bars: 95 % intervals, not corrected for how many there are"
    return f"""
<h2>Differences from {html.escape(found.first)}</h2><div class="grid">{drawn}</div>
<p class="caption">Right of 0 a set has more than {html.escape(found.first)}; a filled point is one
whose interval leaves 0 out, and a hollow one does not show that there is no difference.
{html.escape(note)}.</p>"""


def _numbers(found: Measured) -> str:
    columns = _columns(found.summaries)
    rows = ""
    for name, row in found.summaries.items():
        bounds = found.bounds.get(name, {})
        rest = "".join(_cell(row[c], bounds.get(c)) for c in columns[1:])
        total, d = found.given[name]
        taken = f"{row['n']:,}" + f"<small>of {total:,}</small>" * (row["n"] < total)
        share = scaled(bounds["sve"], row) if bounds else None
        rows += (
            f"<tr><th>{html.escape(name)}</th><td>{taken}</td><td>{d:,}</td>"
            f"{_cell(row['sve'], bounds.get('sve'))}{_cell(share_of_most(row), share)}{rest}</tr>\n"
        )
    titles = ["features", "n", "d", "SVE", TITLES["sve_share"], *map(metric_title, columns[1:])]
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f"""
<div class="scroll" tabindex="0" role="region" aria-label="metrics"><table>
<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"""


def _meanings(found: Measured) -> str:
    meanings = {metric_title(c): METRICS[c] for c in _columns(found.summaries)}
    meanings |= {TITLES["sve_share"]: SHARE}
    each = "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in meanings.items())
    return f"<dl>{each}</dl>"


def _columns(summaries: Mapping[str, dict]) -> list[str]:
    """The metrics that all have; SVE is the first."""
    return [name for name in METRICS if all(name in row for row in summaries.values())]


def prepare_page(path: str | Path, inputs: Iterable[str | Path] = ()) -> Path:
    """The path of a page to be, `~` expanded; nothing is written.

    Raises, in one line: ValueError for one of `inputs` or a name that is not of an HTML file,
    OSError for a place that is not there or cannot be written.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the page's file, as in report.html")
    target = path.resolve()
    if any(target == Path(source).resolve() for source in inputs):
        raise ValueError(f"{path} is one of the inputs: the page would overwrite it")
    if not {path.suffix.lower(), target.suffix.lower()} <= {".html", ".htm"}:
        raise ValueError(f"{path}: the page is HTML; expected a name that ends in .html or .htm")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}; make it first")
    with _wording(path):
        tempfile.TemporaryFile(dir=target.parent).close()
        if path.exists():
            path.open("a", encoding="utf-8").close()
    return path


def write_page(path: Path, text: str) -> None:
    """Writes the page, whole or not at all; OSError in one line."""
    with _wording(path), written_whole(path.resolve()) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _wording(path: Path):
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot write the page there ({error.strerror})") from None


def table(
    summaries: Mapping[str, dict],
    bounds: Mapping[str, Mapping[str, Interval]] | None = None,
    *,
    encoding: str | None = None,
) -> str:
    """Summaries as aligned text, a line a set of features; under it, ± half of its intervals.

    What `encoding` lacks is spelled in ASCII, and aligned so.
    """
    columns = _columns(summaries)
    titles = ["SVE", "SVE/log min(n,d)", *map(metric_title, columns[1:])]
    halves = [title.partition(" ")[::2] for title in titles]
    lines = [["features", "n", "d", *(first for first, _ in halves)]]
    lines.append(["", "", "", *(second for _, second in halves)])
    for name, row in summaries.items():
        values = [row["sve"], share_of_most(row), *(row[c] for c in columns[1:])]
        lines.append([name, str(row["n"]), str(row["d"]), *map(_number, values)])
        found = (bounds or {}).get(name)
        if found:
            intervals = [found["sve"], scaled(found["sve"], row), *map(found.get, columns[1:])]
            lines.append(["  95 %", "", "", *map(_half, intervals)])
    lines = [[spelled(cell, encoding) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = (
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    return "\n".join(aligned)


def _half(interval: Interval | None) -> str:
    """ "±0.02": half of an interval's width; nothing where there is none."""
    if interval is None or not math.isfinite(interval.low):
        return ""
    return f"±{(interval.high - interval.low) / 2:.2g}"


def _cell(value, interval: Interval | None) -> str:
    bounds = ""
    if interval is not None and math.isfinite(interval.low):
        bounds = f"<small>{_number(interval.low)} – {_number(interval.high)}</small>"
    return f"<td>{_number(value)}{bounds}</td>"


def _number(value) -> str:
    if isinstance(value, int | np.integer):
        return str(value)
    if abs(value) < 1e-12:  # the rounding of a rank-one spectrum's logarithms
        return "0"
    return f"{value:.4g}" if math.isfinite(value) else "–"
