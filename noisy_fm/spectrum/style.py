"""The page's style sheet: the study report's colours, type and widths."""

from noisy_fm.figures import ramp

# The page loads nothing: no script, no font, no image but what it holds itself.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
SHEET = """
:root {
  color-scheme: light dark;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans",
    "Liberation Sans", Arial, sans-serif;
  --page: #ffffff; --panel: #f6f7f9; --ink: #1d2126; --muted: #5f6873; --rule: #dfe3e8;
  --accent: #2f6fb7; --few: #9a5b00; --shade: #1d212666; LIGHT
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --panel: #1c2026; --ink: #e6e9ed; --muted: #a0a9b4; --rule: #333a43;
    --accent: #7db2ee; --few: #e0a650; --shade: #a0a9b499; DARK
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--sans);
  -webkit-text-size-adjust: 100%; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2, p, caption { overflow-wrap: anywhere; }
h1 { font-size: clamp(1.6rem, 4.5vw, 2.3rem); line-height: 1.15; letter-spacing: -.02em;
  margin: 0 0 1rem; }
h2 { font-size: 1.35rem; line-height: 1.25; letter-spacing: -.01em; margin: 2.6rem 0 .6rem;
  padding-top: 1.1rem; border-top: 1px solid var(--rule); }
p { max-width: 46rem; margin: .5rem 0 1rem; }
.lead { font-size: 1.08rem; }
.caption, .fine { color: var(--muted); font-size: .86rem; line-height: 1.45; }
.missing { color: var(--few); font-size: .9rem; margin: .3rem 0; }
.grid { display: grid; gap: 1.6rem 2.4rem; margin: 1.2rem 0 .4rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
figure { margin: 0; min-width: 0; max-width: 540px; }
figure svg { width: 100%; height: auto; display: block; }
.legend { list-style: none; padding: 0; margin: .6rem 0 1rem; display: flex; flex-wrap: wrap;
  gap: .2rem 1.4rem; font-size: .88rem; overflow-wrap: anywhere; }
.legend i { display: inline-block; width: 1.2rem; height: .2rem; margin: 0 .5rem .25rem 0; }
/* The shadow at the right stays in place, its cover scrolls: it shows while there is more. */
.scroll { overflow-x: auto; margin: .9rem 0 .5rem; max-width: 100%;
  background: linear-gradient(to left, var(--page) 45%, transparent) right / 3rem 100%
  no-repeat local, linear-gradient(to left, var(--shade), transparent) right / 1.4rem 100%
  no-repeat scroll; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  line-height: 1.35; }
th, td { padding: .34rem .8rem .34rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 450; white-space: normal; overflow-wrap: anywhere; min-width: 6.5rem;
  max-width: 16rem; }
td small { display: block; color: var(--muted); font-size: .7rem; letter-spacing: -.01em; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
dl { max-width: 46rem; font-size: .88rem; } dt { color: var(--muted); }
dd { margin: 0 0 .5rem 1.2rem; overflow-wrap: anywhere; }
@media (max-width: 760px) { main { padding: 1.5rem 1rem 3rem; } }
@media print {
  .scroll { overflow: visible; background: none; }
  h2, caption { break-after: avoid; } figure, tr { break-inside: avoid; }
}
"""


def sheet(levels: int) -> str:
    """The style sheet, with so many ordered colours --level-0, … in light and dark."""

    def variables(dark: bool) -> str:
        shades = ramp(levels, dark=dark) if levels else []
        return " ".join(f"--level-{i}: {shade};" for i, shade in enumerate(shades))

    return SHEET.replace("LIGHT", variables(False)).replace("DARK", variables(True))
