"""The grammar of one code."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexvae_cli.api import Count, Ints, Size, layer
from flexvae_cli.codes import MOST_CHARACTERS, bind, canonical, parse
from flexvae_cli.plugins import installed
from flexvae_cli.registry import Registered
from flexvae_layers_core.plugin import conv2d, max_pool


@layer("Many")
def many(a: Count, sizes: Size = 2, *, levels: Ints = (8, 5), ratio: float = 0.5, on: bool = False, word: str = "x"):
    """A layer with a parameter of every kind."""


SPECS = {"C2d": conv2d, "MaxP": max_pool, "Many": many}


def bound(text: str):
    problems = []
    code = parse(text, "f", problems)
    result = bind(code, SPECS[code.name], "f", problems) if code else None
    return result, [p.what for p in problems], problems


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("C2d_3_128_3_1_1", "C2d_3_128_3_1_1"),
        ("C2d_4_4_1_1_0", "C2d_4_4_1"),
        ("C2d_3_8_3_padding=1", "C2d_3_8_3_1_1"),
        ("C2d_3_8_kernel-size=3x5", "C2d_3_8_3x5"),
        ("C2d_3_8_3_bias=false_groups=1", "C2d_3_8_3_bias=false"),
        ("C2d_3_8_3_padding-mode=reflect", "C2d_3_8_3_padding-mode=reflect"),
        ("MaxP_2_padding=1", "MaxP_2_padding=1"),
        ("MaxP_2_2_1", "MaxP_2_2_1"),
        ("Many_1_levels=7.7.7_ratio=1e-05_on=true_word=a.b-c", "Many_1_levels=7.7.7_ratio=1e-05_on=true_word=a.b-c"),
        ("Many_1_2_ratio=.50", "Many_1"),
    ],
)
def test_a_meaning_has_one_canonical_form(text, form):
    result, wrong, _ = bound(text)
    assert not wrong
    assert result.code == form
    assert bound(form)[0].values == result.values


@pytest.mark.parametrize(
    ("text", "what", "underlined"),
    [
        ("", "an empty code", ""),
        ("2*", "a count without a layer behind it", ""),
        ("0*MaxP_2", "a layer cannot be repeated 0 times", "0"),
        ("4097*MaxP_2", "a layer cannot be repeated 4097 times", "4097"),
        ("x*MaxP_2", "'x' in front of '*' is not a count", "x*"),
        ("2*2*MaxP_2", "a name is made of letters and digits, at most 32, and begins with a letter", "2*MaxP"),
        ("-1*MaxP_2", "'-1' in front of '*' is not a count", "-1*"),
        (" MaxP_2", "a code has no spaces around it", " MaxP"),
        ("MaxP__2", "an empty argument", "_"),
        ("MaxP_2_", "an empty argument", "_"),
        ("MaxP_²", "the character '²' cannot stand in a value", "²"),
        ("MaxP_2_=3", "an option without a name", "="),
        ("MaxP_2_Stride=3", "'Stride' is no option name", "Stride="),
        ("MaxP_padding=1_2", "the value '2' stands behind an option; values come first", "2"),
        ("C2d_128_128_kernel-sise=3", "C2d has no option 'kernel-sise'; did you mean 'kernel-size'?", "kernel-sise"),
        ("C2d_3_8_3_kernel-size=3", "C2d is given 'kernel-size' twice", "kernel-size"),
        ("C2d_3_8_3_1_1_1", "C2d takes 5 values; '1' is one too many", "1"),
        ("C2d_3", "C2d needs out-channels, kernel-size", ""),
        ("C2d_3_8_3_bias=yes", "C2d bias wants true or false, not 'yes'", "yes"),
        ("C2d_3_8_0", "C2d kernel-size wants a size such as 3 or 3x5, at least 1, not 0", "0"),
        ("C2d_3_8_3_1_-1", "C2d padding wants a size such as 3 or 3x5, at least 0, not -1", "-1"),
        ("C2d_3_8_3.5", "C2d kernel-size wants a size such as 3 or 3x5, at least 1, not '3.5'", "3.5"),
        (
            "C2d_3_8_3_padding-mode=mirror",
            "C2d padding-mode wants zeros or reflect or replicate or circular, not 'mirror'",
            "mirror",
        ),
        (
            "C2d_3_8_99999999999",
            "C2d kernel-size wants a size such as 3 or 3x5, at least 1, not '99999999999'",
            "9" * 11,
        ),
        ("Many_1_ratio=nan", "Many ratio wants a number, not 'nan'", "nan"),
        ("Many_1_levels=8.x", "Many levels wants numbers such as 8.5.5, at least 1, not '8.x'", "8.x"),
    ],
)
def test_what_is_wrong_is_said_and_underlined(text, what, underlined):
    _, wrong, problems = bound(text)
    assert what in wrong
    start, end = problems[wrong.index(what)].span
    assert text[start:end] == underlined


def test_all_problems_of_a_code_come_at_once():
    _, wrong, _ = bound("C2d_x_y_3_bias=1")
    assert len(wrong) == 3


def test_a_message_shows_the_source_the_carets_and_the_usage():
    _, _, problems = bound("C2d_128_128_3_kernel-sise=3")
    lines = str(problems[0]).splitlines()
    assert lines[0] == "f: C2d has no option 'kernel-sise'; did you mean 'kernel-size'?"
    assert lines[1] == "  C2d_128_128_3_kernel-sise=3"
    assert lines[2] == "                ^^^^^^^^^^^"
    assert lines[3].startswith("usage: C2d_in-channels_out-channels_kernel-size_[stride=1]_[padding=0]_")


def test_a_code_is_short():
    problems = []
    assert parse("C2d" + "_1" * MOST_CHARACTERS, "f", problems) is None
    assert "the most is 512" in problems[0].what


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.integers(1, 99), st.integers(1, 99), st.integers(1, 9)),
    st.fixed_dictionaries(
        {},
        optional={
            "stride": st.integers(1, 9) | st.tuples(st.integers(1, 9), st.integers(1, 9)),
            "padding": st.integers(0, 9),
            "dilation": st.integers(1, 4),
            "bias": st.booleans(),
            "padding_mode": st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
        },
    ),
)
def test_canonical_form_round_trips(positionals, options):
    values = {p.name: p.default for p in conv2d.params}
    values |= dict(zip(("in_channels", "out_channels", "kernel_size"), positionals, strict=True)) | options
    text = canonical(conv2d, values)
    again, wrong, _ = bound(text)
    assert not wrong
    assert dict(again.values) == values
    assert again.code == text


ODD = [*"*_=-.x0129aZ \t\n\0é٣²😀\\\"'[]{}", "__", "**", "9" * 20, "nan", "inf", "1e999", "\u202e", "\ud800"]


def test_any_text_is_a_code_or_a_problem_with_a_place(fuzz_factor):
    """300,000 mutations of real codes: a code, or problems that can be shown; nothing else is ever raised."""
    draw = random.Random(0)
    seeds = [
        "C2d_3_128_3_1_1",
        "2*VAERB_256_256",
        "MaxP_2_padding=1",
        "GN_32_64_eps=1e-5",
        "C2d_3_8_3x5_padding-mode=reflect",
    ]
    registry = installed().registry
    sound = 0
    for number in range(300_000 * fuzz_factor):
        text = draw.choice(seeds)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(text) + 1)
            text = text[:at] + draw.choice(ODD) + text[at + draw.randint(0, 2) :]
        problems: list = []
        code = parse(text, "f", problems)
        assert (code is None) == bool(problems), text
        found = registry.find("layer", code.name) if code is not None else None
        result = bind(code, found.spec, "f", problems) if isinstance(found, Registered) else None
        if result is not None:
            sound += 1
            again, wrong, _ = rebound(result.code, registry)
            assert not wrong
            assert again.values == result.values
        elif number % 100 == 0:
            assert all(p.where == "f" and str(p) for p in problems)
    assert sound > 1000


def rebound(text: str, registry):
    problems: list = []
    code = parse(text, "f", problems)
    return bind(code, registry.find("layer", code.name).spec, "f", problems), problems, code


@pytest.mark.parametrize("text", ["9" * 1_000_000, "C2d" + "_1" * 500_000, "*" * 1_000_000, "é" * 1_000_000])
def test_a_megabyte_is_refused_without_being_worked_through(text):
    problems: list = []
    assert parse(text, "f", problems) is None
    assert len(str(problems[0])) < 400
