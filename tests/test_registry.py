"""Kind and name to a spec: what is found, what is claimed twice, what is unknown."""

from __future__ import annotations

import pytest

from flexvae_cli.api import layer, loss, same
from flexvae_cli.errors import Problem, UsageError
from flexvae_cli.registry import Registered, Registry, known_elsewhere


def entry(name: str, distribution: str, kind=layer) -> Registered:
    spec = kind(name, trace=same)(lambda: None) if kind is layer else kind(name)(lambda: None)
    return Registered(spec, distribution, "1.0")


CORE = entry("C2d", "flexvae")
CLASH = [entry("Snake", "zoo"), entry("Snake", "audio")]


def test_a_spec_is_found_by_kind_and_name():
    other = entry("C2d", "flexvae", loss)
    registry = Registry([CORE, other])
    assert registry.find("layer", "C2d") is CORE
    assert registry.find("loss", "C2d") is other
    assert isinstance(registry.find("bottleneck", "C2d"), Problem)


def test_names_are_sorted_without_regard_to_case():
    registry = Registry([entry(name, "flexvae") for name in ("b", "C", "A", "a")])
    assert registry.names("layer") == ["A", "a", "b", "C"]
    assert [e.spec.name for e in registry.all("layer")] == ["A", "a", "b", "C"]
    assert registry.names("loss") == []


def test_the_core_wins_whatever_the_order():
    for entries in ([CORE, entry("C2d", "thief")], [entry("C2d", "thief"), CORE]):
        assert Registry(entries).find("layer", "C2d") is CORE
        assert Registry(entries, {"C2d": "thief"}).find("layer", "C2d") is CORE


def test_a_clash_is_a_problem_only_for_the_name_concerned():
    registry = Registry([CORE, *CLASH])
    assert registry.find("layer", "C2d") is CORE
    problem = registry.find("layer", "Snake")
    assert isinstance(problem, Problem)
    assert problem.what == "the layer 'Snake' is claimed by 'audio' and 'zoo'"
    assert problem.hint.endswith('[plugins] prefer = { Snake = "audio" }')
    assert len(registry.all("layer")) == 3


def test_a_preference_settles_a_clash_and_leaves_the_first_registry_alone():
    registry = Registry(CLASH)
    assert registry.preferring({"Snake": "zoo"}).find("layer", "Snake") is CLASH[0]
    assert registry.preferring({"Snake": "zoo"}).preferring({"Snake": "audio"}).find("layer", "Snake") is CLASH[1]
    assert isinstance(registry.find("layer", "Snake"), Problem)


def test_every_wrong_preference_is_told():
    with pytest.raises(UsageError) as caught:
        Registry(CLASH).preferring({"Snake": "pets", "Sine": "audio"})
    first, second = caught.value.problems
    assert first.what == "plugins.prefer: 'pets' does not bring the code 'Snake'; 'audio' or 'zoo' does"
    assert second.what == "plugins.prefer: 'audio' does not bring the code 'Sine'; no plugin does"


@pytest.mark.parametrize("name", ["c2d", "C2"])
def test_an_unknown_name_with_the_nearest(name):
    problem = Registry([CORE]).find("layer", name)
    assert isinstance(problem, Problem)
    assert problem.what.startswith(f"unknown layer '{name}'; did you mean 'C2d'")
    assert "pip install" not in problem.hint  # what is nearest is there


def test_nothing_to_suggest_from():
    problem = Registry([]).find("bottleneck", "KL")
    assert isinstance(problem, Problem)
    assert (problem.what, problem.hint) == ("unknown bottleneck 'KL'", "")


def test_a_quantizer_that_is_not_installed_is_told_as_a_bottleneck_too():
    problem = Registry([]).find("bottleneck", "VQ")
    assert isinstance(problem, Problem)
    assert (problem.what, problem.hint) == (
        "unknown bottleneck 'VQ'",
        "'VQ' comes with a plugin: pip install flexvae-layers-quantize",
    )


def test_an_unknown_name_that_is_near_to_nothing_points_to_the_list():
    problem = Registry([CORE]).find("layer", "Qqqqqqqq")
    assert isinstance(problem, Problem)
    assert (problem.what, problem.hint) == ("unknown layer 'Qqqqqqqq'", "see them all with: flexvae layers")


def test_an_unknown_bottleneck_or_loss_lists_what_there_is():
    problem = Registry([entry("mse", "flexvae", loss), entry("l1", "flexvae", loss)]).find("loss", "perceptual")
    assert isinstance(problem, Problem)
    assert problem.hint == "there are 'l1' and 'mse'"


def test_a_code_of_a_published_plugin_says_what_to_install(monkeypatch):
    monkeypatch.setattr("flexvae_cli.registry.known_elsewhere", lambda: {"Snake": "flexvae-audio"})
    problem = Registry([CORE]).find("layer", "Snake")
    assert isinstance(problem, Problem)
    assert problem.hint == "'Snake' comes with a plugin: pip install flexvae-audio"
    near = Registry([CORE]).find("layer", "Snak")
    assert isinstance(near, Problem)
    assert near.what == "unknown layer 'Snak'; did you mean 'Snake'?"


def test_the_list_of_published_plugins_names_distributions():
    assert all(name.startswith("flexvae") for name in known_elsewhere().values())


def test_a_model_s_registry_holds_its_plugins_and_the_core_alone():
    registry = Registry([CORE, *CLASH, entry("Sine", "pets")]).only({"zoo": "1.0"}, {})
    assert registry.find("layer", "Snake") is CLASH[0]
    assert registry.find("layer", "C2d") is CORE
    assert registry.distributions == {"flexvae", "zoo"}
    problem = registry.find("layer", "Sine")
    assert isinstance(problem, Problem)
    assert problem.what == "the layer 'Sine' comes with none of the plugins that the model was made with (zoo 1.0)"


def test_a_clash_within_a_model_is_settled_by_what_it_records():
    recorded = {"zoo": "1.0", "audio": "0.9"}
    assert Registry(CLASH).only(recorded, {"Snake": "audio"}).find("layer", "Snake") is CLASH[1]
    problem = Registry(CLASH).only(recorded, {}).find("layer", "Snake")
    assert isinstance(problem, Problem)
    assert problem.hint.endswith("pip install audio==0.9 zoo==1.0")
