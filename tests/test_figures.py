"""Figures show the numbers they were given, and only those."""

import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from noisy_fm import figures, statistics

NAN = float("nan")
DIFFERENCES = {
    "LP": {"one": (1.0, 0.4, 1.6), "two": (-0.2, -0.9, 0.5), "three": (-2.0, -2.5, -1.5)},
    "MLP": {"two": (0.3, NAN, NAN)},
}


def marks(axes):
    """(row, value, filled) of every point of a forest's panel."""
    points = [line for line in axes.lines if line.get_marker() == "o"]
    return [
        (int(p.get_ydata()[0]), p.get_xdata()[0], to_hex(p.get_markerfacecolor()) != "#ffffff")
        for p in points
    ]


def test_a_forest_fills_the_points_whose_interval_leaves_zero_out():
    lp, mlp = figures.forest(DIFFERENCES).axes
    assert marks(lp) == [(0, 1.0, True), (1, -0.2, False), (2, -2.0, True)]
    assert marks(mlp) == [(1, 0.3, False)]
    assert [t.get_text() for t in lp.get_yticklabels()] == ["one", "two", "three"]
    assert lp.get_ylim()[0] > lp.get_ylim()[1]  # the first row is the uppermost
    bars = [line.get_xdata() for line in lp.lines if len(line.get_xdata()) == 2]
    np.testing.assert_array_equal(bars[1:], [[0.4, 1.6], [-0.9, 0.5], [-2.5, -1.5]])
    assert [t.get_text() for t in lp.texts] == [
        "+1.0 [+0.4, +1.6]",
        "−0.2 [−0.9, +0.5]",
        "−2.0 [−2.5, −1.5]",
    ]
    assert [t.get_text() for t in mlp.texts] == ["+0.30"]


def test_a_forest_takes_what_a_test_returns():
    found = statistics.t_test([1.0, 2, 3])
    (axes,) = figures.forest({"t": {"seeds": found}}).axes
    assert marks(axes) == [(0, 2.0, found.low > 0)]


def test_panels_wrap_and_share_a_scale_only_where_asked():
    many = {f"p{i}": {"row": (i, i - 1.0, i + 1.0)} for i in range(1, 5)}
    apart, shared = figures.forest(many), figures.forest(many, share=True)
    rows = {round(axes.get_subplotspec().rowspan.start) for axes in apart.axes}
    assert rows == {0, 1}
    assert len({axes.get_xlim() for axes in apart.axes[:4]}) == 4
    assert len({axes.get_xlim() for axes in shared.axes[:4]}) == 1
    assert [axes.axison for axes in apart.axes].count(False) == 2


def test_names_on_a_forest_are_text(tmp_path):
    name = "$\\frac{$ <b> & a name that is long enough to lose its middle.npy"
    made = figures.forest({"SVE": {name: (1.0, 0.5, 1.5)}})
    made.savefig(io.BytesIO(), format="png")
    (label,) = (t.get_text() for t in made.axes[0].get_yticklabels())
    assert (label[:4], label[-4:]) == (name[:4], ".npy")
    assert len(label) <= figures.LONGEST_NAME


def test_nothing_to_draw_is_said():
    for draw in (lambda: figures.forest({}), lambda: figures.forest({"LP": {}})):
        with pytest.raises(ValueError, match="a forest needs one difference at least"):
            draw()
    with pytest.raises(ValueError, match="no images to draw"):
        figures.images({"a": []})
    table = pd.DataFrame({"value": [1.0], "low": [0.0], "x": ["a"]})
    with pytest.raises(ValueError, match="no column high, by"):
        figures.points(table, x="x", by="by")


TABLE = pd.DataFrame(
    [
        (panel, x, by, 10 * i + j + k, 10 * i + j + k - 0.5, 10 * i + j + k + 0.7)
        for i, panel in enumerate("PQ")
        for j, x in enumerate(("late", "early"))
        for k, by in enumerate(("lp", "mlp"))
    ],
    columns=["panel", "x", "by", "value", "low", "high"],
)


def test_points_are_a_panel_a_part_and_a_colour_a_group():
    made = figures.points(TABLE, x="x", by="by", panel="panel", colours={"mlp": "#123456"})
    first, second = made.axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["P", "Q"]
    assert [t.get_text() for t in first.get_xticklabels()] == ["late", "early"]
    lp, mlp = second.lines
    np.testing.assert_array_equal(lp.get_ydata(), [10, 11])
    np.testing.assert_array_equal(mlp.get_ydata(), [11, 12])
    assert (lp.get_color(), mlp.get_color()) == (figures.COLOURS[0], "#123456")
    assert lp.get_linestyle() == "None"
    bars = second.collections[1].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], [[10.5, 11.7], [11.5, 12.7]])
    assert [t.get_text() for t in made.legends[0].get_texts()] == ["lp", "mlp"]


def test_numbers_keep_their_distances():
    table = TABLE.assign(x=[0.0, 0.0, 30.0, 30.0] * 2)
    made = figures.points(table, x="x", by="by", panel="panel", lines=True)
    line = made.axes[0].lines[0]
    assert np.ptp(line.get_xdata()) == 30
    assert line.get_linestyle() == "-"


def test_images_are_shown_as_they_are():
    rng = np.random.default_rng(0)
    rows = {"a": rng.random((3, 4, 4, 3)), "b": rng.random((2, 4, 4, 3))}
    made = figures.images(rows)
    shown = [axes.images[0].get_array() if axes.images else None for axes in made.axes]
    np.testing.assert_array_equal(np.stack(shown[:3]), rows["a"])
    assert shown[5] is None
    assert [made.axes[i].get_title() for i in (0, 3)] == ["a", "b"]


def test_a_notebook_shows_the_figure():
    with Image.open(io.BytesIO(figures.forest(DIFFERENCES)._repr_png_())) as image:
        assert np.asarray(image.convert("L")).std() > 5


def test_svg_takes_the_pages_colours_and_font():
    made = figures.forest(DIFFERENCES)
    text = figures.svg(made, "mine", 'says "<so>"', levels=[figures.COLOURS[0]])
    root = ET.fromstring(text)
    assert root.get("aria-label") == 'says "<so>"'
    assert root.get("width") is None
    for colour in (*figures.PAGE_COLOURS, figures.COLOURS[0]):
        assert colour not in text
    assert "DejaVu" not in text
    assert {"var(--ink)", "var(--muted)", "var(--level-0)", "var(--sans)"} <= set(
        re.findall(r"var\([^)]*\)", text)
    )
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert all(name.startswith("mine-") for name in ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', text)) <= set(ids)
    assert text == figures.svg(made, "mine", 'says "<so>"', levels=[figures.COLOURS[0]])


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(0.123, 2, "+0.12"), (-0.123, 1, "−0.1"), (-0.004, 2, "0.00"), (0.0, 1, "0.0")],
)
def test_signs(value, decimals, text):
    assert figures.signed(value, decimals) == text


@pytest.mark.parametrize(
    ("half", "decimals"), [(30, 1), (1.2, 1), (0.1, 2), (0.04, 2), (0.015, 3), (1e-9, 4), (0, 2)]
)
def test_decimals_show_an_intervals_width(half, decimals):
    assert figures.decimals_of(half) == decimals


def test_ramps_are_ordered_in_light_and_dark():
    for dark in (False, True):
        values = [int(c[1:3], 16) + int(c[3:5], 16) for c in figures.ramp(9, dark=dark)]
        assert (np.diff(values) > 0).all() == dark
        assert (np.diff(values) < 0).all() == (not dark)
