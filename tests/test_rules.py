"""Trace rules that are broken: each is told as a problem of its plugin, with the entry, and takes nothing else down."""

from __future__ import annotations

import pytest

from flexvae_cli.api import Step, layer, same
from flexvae_cli.api.trace import local
from flexvae_cli.errors import Problem, UsageError
from flexvae_cli.registry import Registered, Registry
from flexvae_cli.rules import traced
from flexvae_cli.structure import parse_structure
from flexvae_cli.tracing import trace


def missing_key():
    return lambda shape: {}["x"]


def none():
    return lambda shape: None


def a_list():
    return lambda shape: Step(list(shape), 0, 0, local(len(shape) - 1))


def fewer_axes():
    return lambda shape: Step(shape[:-1], 0, 0, local(len(shape) - 1))


def other_reach():
    return lambda shape: Step(shape, 0, 0, local(7))


def a_fraction():
    return lambda shape: Step((shape[0], shape[1] / 2, *shape[2:]), 0, 0, local(len(shape) - 1))


def no_rule():
    return None


def no_rule_at_all():
    raise KeyError("x")


AT_A_SHAPE = {
    missing_key: "KeyError: 'x'",
    none: "it gives a NoneType, not a Step",
    a_list: "it gives Step(shape=[3, 4, 4]",
    fewer_axes: "it gives Step(shape=(3, 4)",
    other_reach: "it gives Step(shape=(3, 4, 4)",
    a_fraction: "it gives Step(shape=(3, 2.0, 4)",
}
BEFORE = {no_rule: "it makes a NoneType, not a rule", no_rule_at_all: "KeyError: 'x'"}


def registry_of(rule) -> Registry:
    specs = [layer("Foo", trace=rule)(lambda: None), layer("Fine", trace=same)(lambda: None)]
    return Registry([Registered(spec, "flexvae-foo", "1.0") for spec in specs])


@pytest.mark.parametrize("rule", AT_A_SHAPE, ids=lambda rule: rule.__name__)
def test_a_rule_that_fails_at_a_shape_is_a_problem_of_its_entry(rule):
    items = parse_structure(["Fine", "Foo"], registry_of(rule), "net.json").expanded()
    problems: list[Problem] = []
    assert not trace(items, (3, 4, 4), problems).complete
    (problem,) = problems
    assert problem.where == "net.json[1]"
    # no installed plugin brings this spec, so its module is named
    assert problem.what.startswith(f"Foo: the trace rule of Foo ({__name__}) fails: {AT_A_SHAPE[rule]}")


@pytest.mark.parametrize("rule", BEFORE, ids=lambda rule: rule.__name__)
def test_a_rule_that_cannot_be_made_is_told_with_everything_else_that_is_wrong(rule):
    with pytest.raises(UsageError) as caught:
        parse_structure(["Foo", "Fine_3"], registry_of(rule), "net.json")
    first, second = caught.value.problems
    # what it raised is told with file and line; what it made instead of a rule has none
    where = f" ({__file__}:{rule.__code__.co_firstlineno + 1})" if rule is no_rule_at_all else ""
    told = f"the trace rule of Foo ({__name__}) fails: {BEFORE[rule]}{where}"
    assert (first.where, first.what) == ("net.json[0]", told)
    assert second.where == "net.json[1]"


def test_a_rule_that_is_sound_is_followed():
    (item,) = parse_structure(["Fine"], registry_of(none), "net.json").expanded()
    step = traced(item.bound, (3, 4, 4))
    assert step is not None
    assert step.shape == (3, 4, 4)
