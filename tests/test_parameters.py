"""Values of a config's table given to a spec: what fits, and what is said of the rest."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest

from flexvae_cli.api import Ints, Range, Size, WeightFile, layer, loss
from flexvae_cli.codes import bind, parse
from flexvae_cli.parameters import bind_values


@loss("probe")
def probe(
    count: Annotated[int, Range(1, 9)] = 1,
    eps: float = 0.5,
    flag: bool = False,
    word: str = "a",
    kind: Literal["one", "two"] = "one",
    size: Size = 3,
    ints: Ints = (1, 2),
    *,
    weights: WeightFile,
):
    """A probe.

    Args:
        weights: a file that somebody makes.
    """


def bound(**values):
    problems = []
    return bind_values(probe, {"weights": "/x y.safetensors", **values}, "loss.term[0]", problems), problems


@pytest.mark.parametrize(
    "values",
    [
        {"count": 9},
        {"eps": 2},
        {"eps": 1e-30},
        {"eps": -0.25},
        {"flag": True},
        {"word": "abc-1"},
        {"word": "a b"},  # a table can hold what no code can
        {"kind": "two"},
        {"size": 4},
        {"size": [3, 5]},
        {"ints": [8, 5]},
    ],
)
def test_values_arrive_as_they_are(values):
    found, problems = bound(**values)
    assert problems == []
    for name, value in values.items():
        assert found.values[name] == (tuple(value) if isinstance(value, list) else value)
    assert found.values["weights"] == "/x y.safetensors"
    assert found.values.keys() == {"count", "eps", "flag", "word", "kind", "size", "ints", "weights"}


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"count": 1.0}, "loss.term[0].count: probe wants a whole number, from 1 to 9, not 1.0"),
        ({"count": True}, "wants a whole number, from 1 to 9, not True"),
        ({"count": 10}, "wants a whole number, from 1 to 9, not 10"),
        ({"count": [1]}, "wants a whole number, from 1 to 9, not [1]"),
        ({"eps": "0.5"}, "wants a number, not '0.5'"),
        ({"eps": float("inf")}, "wants a number, not 'inf'"),
        ({"flag": 1}, "wants true or false, not 1"),
        ({"flag": "true"}, "wants true or false, not 'true'"),
        ({"word": 3}, "wants a word, not 3"),
        ({"kind": "three"}, "wants one or two, not 'three'"),
        ({"kind": {}}, "wants one or two, not {}"),
        ({"size": [3, "5"]}, "wants a size such as 3 or 3x5, at least 1, not [3, '5']"),
        ({"size": "3x5"}, "wants a size such as 3 or 3x5, at least 1, not '3x5'"),
        ({"size": [0]}, "wants a size such as 3 or 3x5, at least 1, not 0"),
        ({"ints": []}, "wants numbers such as 8.5.5, at least 1, not []"),
        ({"ints": 8}, "wants numbers such as 8.5.5, at least 1, not 8"),
        ({"weights": 3}, "loss.term[0].weights: probe wants a file, not 3"),
        ({"word": "x" * 999}, "wants a word, not"),
        ({"epps": 1}, "loss.term[0].epps: probe has no parameter of that name; did you mean eps?"),
        ({"zzz": 1}, "hint: probe has count, eps, flag, word, kind, size, ints and weights"),
    ],
)
def test_everything_else_is_refused(values, what):
    found, problems = bound(**values)
    assert found is None
    assert what in str(problems[0])
    assert len(str(problems[0])) < 200


def test_all_problems_come_at_once_and_what_is_missing_says_what_it_is():
    problems = []
    assert bind_values(probe, {"count": 0, "nope": 1}, "t", problems) is None
    assert [str(problem) for problem in problems][-1] == "t: probe needs weights: a file that somebody makes."
    assert len(problems) == 3


def test_a_loss_without_parameters_says_so():
    @loss("bare")
    def bare():
        """Bare."""

    problems = []
    assert bind_values(bare, {"eps": 1}, "t", problems) is None
    assert str(problems[0]) == "t.eps: bare has no parameters"


def test_no_code_holds_the_path_of_a_file():
    problems = []
    assert bind(parse("probe_weights=a.safetensors", "", []), probe, "", problems) is None
    assert "is the path of a file, which no code can hold; write a table, [[loss.term]]" in str(problems[0])
    found, _ = bound(count=2)
    assert found.code == "probe_2"


def test_a_file_of_weights_has_one_name():
    with pytest.raises(ValueError, match="a file of weights is the parameter 'weights', not 'path'"):

        @layer("X")
        def x(path: WeightFile):
            """X."""
