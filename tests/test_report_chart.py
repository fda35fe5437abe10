"""Charts and axes of the report."""

from __future__ import annotations

import json
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexvae_cli.engine.report.axis import make_axis, number
from flexvae_cli.engine.report.chart import HEIGHT, MOST, WIDTH, Line, chart, thinned

NUMBERS = st.floats(min_value=-1e299, max_value=1e299)


def drawn(*lines: Line, kind: str = "linear") -> ElementTree.Element:
    return ElementTree.fromstring(chart("title", lines, 100, kind=kind))


def paths(figure: ElementTree.Element, css: str) -> list[str]:
    return [path.get("d") for path in figure.iter("path") if path.get("class") == css]


@given(st.tuples(NUMBERS, NUMBERS).map(sorted), st.sampled_from(["linear", "zero", "log"]))
def test_an_axis_holds_its_numbers_and_its_ticks(ends, kind):
    low, high = ends
    axis = make_axis(low, high, 100.0, 0.0, kind)
    assert -1e-6 <= axis.at(high) <= axis.at(low) <= 100 + 1e-6
    ticks = axis.ticks()
    assert len(ticks) <= 12
    assert all(-1e-6 <= axis.at(tick) <= 100 + 1e-6 for tick, _ in ticks)
    assert sorted(tick for tick, _ in ticks) == [tick for tick, _ in ticks]


@pytest.mark.parametrize(
    ("low", "high", "kind", "texts"),
    [
        (0.0, 100.0, "zero", ["0", "50", "100"]),
        (0.02, 0.5, "log", ["0.02", "0.05", "0.1", "0.2", "0.5"]),
        (1e-8, 1.0, "log", ["1e-8", "1e-6", "0.0001", "0.01", "1"]),
        (1.2e9, 1.2001e9, "linear", ["1.2G", "1.20005G", "1.2001G"]),
        (0.5, 0.5, "linear", ["0.4", "0.6"]),
    ],
)
def test_the_ticks_are_round_and_told_apart(low, high, kind, texts):
    found = [text for _, text in make_axis(low, high, 0, 1, kind).ticks()]
    assert set(texts) <= set(found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,234"), (20_000, "20k"), (192e9, "192G"), (1e-5, "1e-5"), (0.05, "0.05"), (999_950, "1M"),
     (math.nan, "–"), (-0.25, "-0.25"), (1e30, "1e15P")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_a_line_has_all_its_points_within_the_plot():
    figure = drawn(
        Line("train", [(n, 0.5**n) for n in range(0, 101, 10)]), Line("validation", [(50, 0.1)], 1), kind="log"
    )
    (line,) = paths(figure, "line line-0")
    places = [tuple(map(float, place.split())) for place in line[1:].split("L")]
    assert len(places) == 11
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert places == sorted(places)  # falling numbers, rising y
    assert len(paths(figure, "dots line-1")) == 1  # a lone point is a dot
    told = json.loads(figure.find("svg").get("data-lines"))
    assert [step for step, _ in told["train"]] == list(range(0, 101, 10))
    assert told["validation"] == [[50, 0.1]]


def test_what_is_not_finite_is_a_gap():
    figure = drawn(Line("train", [(0, 1.0), (10, 2.0), (20, math.nan), (30, math.inf), (40, 3.0)]))
    (line,) = paths(figure, "line line-0")
    assert line.count("M") == 2
    assert line.count("L") == 1
    assert chart("title", [Line("train", [(0, math.nan)])], 10) == ""
    assert chart("title", [], 10) == ""


@given(st.lists(st.one_of(st.floats(), st.just(1.0)), max_size=2000))
def test_many_points_become_few_and_no_spike_is_lost(values):
    found = thinned(list(enumerate(values)))
    assert len(found) <= MOST
    finite = [value for value in values if abs(value) < 1e300]
    if finite:
        assert max(s.high for s in found if s.high == s.high) == max(finite)
        assert min(s.low for s in found if s.low == s.low) == min(finite)
    assert all(s.low <= s.high for s in found if s.mean == s.mean)
    text = chart("title", [Line("train", list(enumerate(values)))], len(values))
    assert bool(text) == bool(finite)
    if text:
        ElementTree.fromstring(text)
        assert "nan" not in text
        assert "inf" not in text


def test_a_long_line_is_drawn_with_the_band_that_it_fills():
    points = [(n, float(n % 2)) for n in range(10 * MOST)]
    figure = ElementTree.fromstring(chart("title", [Line("train", points)], 10 * MOST))
    assert len(paths(figure, "band line-0")) == 1
    assert not paths(figure, "dots line-0")
    assert all(mean == [mean[0], 0.5, 0.0, 1.0] for mean in json.loads(figure.find("svg").get("data-lines"))["train"])
