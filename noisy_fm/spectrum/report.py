"""One self-contained HTML page about the spectra of one or several sets of features."""

import contextlib
import html
import io
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from noisy_fm.files import written_whole
from noisy_fm.messages import spelled
from noisy_fm.scalars import as_flag
from noisy_fm.spectrum.arrays import as_features
from noisy_fm.spectrum.draw import metric_title, panels
from noisy_fm.spectrum.intervals import Interval, band, jackknife
from noisy_fm.spectrum.metrics import METRICS
from noisy_fm.spectrum.moments import Spectrum, resolve

CHUNK = 8192
# Rows × d² up to which the report's jackknife takes seconds; `jackknife` itself has no limit.
INTERVAL_WORK = 3e10

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 74rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } .note { opacity: .75; margin-top: 0; }
.panels { display: grid; gap: 1rem; margin: 1.5rem 0 .8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; min-width: 0; background: #fff; border-radius: 6px; }
figure svg { width: 100%; height: auto; display: block; }
.legend { list-style: none; padding: 0; margin: 0 0 1.5rem; display: flex; flex-wrap: wrap;
  gap: .2rem 1.4rem; font-size: .9rem; overflow-wrap: anywhere; }
.legend i { display: inline-block; width: 1.2rem; height: .2rem; margin: 0 .5rem .25rem 0; }
.wide { overflow-x: auto; }
/* The shadow at the right stays in place, its cover scrolls: it shows while there is more. */
.wide { background: linear-gradient(to left, Canvas 45%, transparent) right / 3rem 100%
  no-repeat local, linear-gradient(to left, #8888, transparent) right / 1.4rem 100% no-repeat; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table { font-size: .9rem; } td { white-space: nowrap; } th { vertical-align: bottom; }
th, td { padding: .35rem 0 .35rem .9rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; max-width: 16rem; }
td small { opacity: .7; display: block; }
dl { max-width: 46rem; } dt { font-weight: 600; } dd { margin: 0 0 .5rem 1.2rem; }
"""


def measure(
    features: Mapping[str, object],
    *,
    intervals: bool = True,
    groups=None,
    center=False,
    normalize=False,
    convention: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[dict[str, Spectrum], dict[str, dict], dict[str, dict[str, Interval]], dict]:
    """Spectra, summaries, jackknife intervals and bands of named features [n d], chunk by chunk.

    `intervals` is skipped for a matrix where it would take long; `progress(name, rows, of)` is
    called after every chunk. A fault names the features it is in.
    """
    settings = resolve(center, normalize, convention)
    as_flag("intervals", intervals)
    spectra, summaries, bounds, bands = {}, {}, {}, {}
    for name, x in features.items():
        try:
            x = as_features(x)
            spectra[name] = spectrum = Spectrum(**settings)
            for start in range(0, len(x), CHUNK):
                spectrum.update(x[start : start + CHUNK])
                if progress:
                    progress(name, spectrum.n, len(x))
            summaries[name] = spectrum.summary()
            if intervals and len(x) >= 6 and len(x) * x.shape[1] ** 2 <= INTERVAL_WORK:
                bounds[name] = jackknife(x, groups=groups, **settings)
                bands[name] = band(x, groups=groups, **settings)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{name}: {error}" if name else str(error)) from None
    return spectra, summaries, bounds, bands


def report(features: Mapping[str, object] | object, path: str | Path, **options) -> dict[str, dict]:
    """Writes the page about named features [n d] to `path`; returns their summaries.

    `options` as in `measure` (intervals, groups, center, normalize, convention, progress).

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
    write_page(path, page(*measured))
    return measured[1]


def page(spectra, summaries, bounds, bands) -> str:
    """The HTML text: picture, table, and what every number means."""
    figures, colours = panels(spectra, intervals=bounds, bands=bands)
    drawn = "".join(f"<figure>{_svg(each, i)}</figure>" for i, each in enumerate(figures))
    legend = "".join(
        f'<li><i style="background:{colour}"></i>{html.escape(label)}</li>'
        for label, colour in colours.items()
    )
    settings = next(iter(spectra.values())).settings
    how = (
        f"centre: {settings['center'] or 'none'}, rows "
        f"{'normalised' if settings['normalize'] else 'as they are'}; natural logarithms"
    )
    if bounds:
        how += "; 95 % delete-a-block jackknife intervals, below the values and as shades"
    if len(bounds) < len(spectra):
        how += (
            f"; no intervals for {len(spectra) - len(bounds)} of {len(spectra)} (size, or option)"
        )
    columns = [name for name in METRICS if all(name in row for row in summaries.values())]
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{row['n']} × {row['d']}</td>"
        + "".join(_cell(row[c], bounds.get(name, {}).get(c)) for c in columns)
        + "</tr>\n"
        for name, row in summaries.items()
    )
    head = "".join(f"<th>{metric_title(c)}</th>" for c in columns)
    meanings = "".join(
        f"<dt>{metric_title(c)}</dt><dd>{html.escape(METRICS[c])}</dd>" for c in columns
    )
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in _notes(summaries))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Feature spectra</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>
<body><h1>Feature spectra</h1><p class="note">{html.escape(how)}</p>
<div class="panels">{drawn}</div><ul class="legend">{legend}</ul>
<div class="wide" tabindex="0" role="region" aria-label="metrics">
<table><thead><tr><th>features</th><th>n × d</th>{head}</tr></thead>
<tbody>{rows}</tbody></table></div>{notes}
<h2>What the numbers mean</h2><dl>{meanings}</dl></body></html>
"""


def _svg(figure, number: int) -> str:
    """The figure as an SVG element whose ids are its own on the page."""
    from matplotlib import rc_context

    picture = io.StringIO()
    with rc_context({"svg.hashsalt": "noisy_fm", "svg.fonttype": "path"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    svg = picture.getvalue()
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>panel{number}-", svg[svg.index("<svg") :])


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
    columns = [c for c in METRICS if all(c in row for row in summaries.values())]
    titles = [metric_title(c).partition(" ")[::2] for c in columns]
    lines = [["features", "n", "d", *(first for first, _ in titles)]]
    lines.append(["", "", "", *(second for _, second in titles)])
    for name, row in summaries.items():
        lines.append([name, str(row["n"]), str(row["d"]), *(_number(row[c]) for c in columns)])
        found = (bounds or {}).get(name)
        if found:
            lines.append(["  95 %", "", "", *(_half(found.get(c)) for c in columns)])
    lines = [[spelled(cell, encoding) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = (
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    return "\n".join([*aligned, *_notes(summaries)])


def _notes(summaries: Mapping[str, dict]) -> list[str]:
    """What the numbers alone would hide."""
    flat = [name for name, row in summaries.items() if row["numerical_rank"] == 1]
    return [f"{name}: rank 1, every row is a multiple of one (constant features?)" for name in flat]


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
