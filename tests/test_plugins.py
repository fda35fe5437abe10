"""Plugins are loaded one by one, chosen by the environment, and each problem is named with what to mend."""

from __future__ import annotations

import sys

import pytest
from distributions import GOOD, flexvae, line_of

from flexvae_cli import plugins
from flexvae_cli.errors import Exit, PluginError, Problem, UsageError
from flexvae_cli.registry import Registered


def test_a_good_plugin_brings_its_layers(folder):
    plugin = folder.one("good", GOOD.format(code="Sine"), version="3.1")
    assert (plugin.state, plugin.version, plugin.hooks) == ("ok", "3.1", ("flexvae_layers",))
    found = folder.load().registry.find("layer", "Sine")
    assert isinstance(found, Registered)
    assert (found.distribution, found.version) == ("good", "3.1")


RAISES_AT_IMPORT = {
    "import-error": (
        "x = 1\nimport no_such_module_here\n",
        "ModuleNotFoundError: No module named 'no_such_module_here'",
        2,
    ),
    "from-import": ("from flexvae_cli.api import no_such_name\n", "ImportError: cannot import name 'no_such_name'", 1),
    "syntax": ("x = 1\ny = (\n", "SyntaxError: '(' was never closed", 2),
    "exits": ("import sys\n\nsys.exit(3)\n", "SystemExit: 3", 3),
    "raises": ("raise RuntimeError('no\\ndevice')\n", "RuntimeError: no", 1),
    "silent": ("raise KeyError\n", "KeyError", 1),
}


@pytest.mark.parametrize("name", RAISES_AT_IMPORT)
def test_an_exception_at_import_is_told_with_file_and_line(folder, name):
    source, words, line = RAISES_AT_IMPORT[name]
    plugin = folder.one(name, source)
    (problem,) = plugin.problems
    assert plugin.state == "failed"
    assert problem.startswith(f"import fails: {words}")
    assert f"plugin_of_{name.replace('-', '_')}.py:{line})" in problem
    assert "\n" not in problem


def test_a_missing_dependency_says_what_to_install(folder):
    (problem,) = folder.one("needs", "import no_such_dependency.part\n").problems
    assert "pip install what brings 'no_such_dependency', or uninstall the plugin" in problem


def test_an_entry_point_to_a_deleted_module(folder):
    (problem,) = folder.one("deleted", None).problems
    assert "No module named 'plugin_of_deleted'" in problem
    assert "uninstall the plugin" in problem


def test_a_print_at_import_and_in_a_hook_does_not_reach_stdout(folder, capsys):
    source = "print('hello from import')\n" + GOOD.format(code="Sine") + "    print()\n"
    assert folder.one("prints", source.replace("    return", "    print('hello from hook')\n    return")).state == "ok"
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello from import" in err
    assert "hello from hook" in err


def test_a_hook_with_an_argument(folder):
    source = GOOD.format(code="Sine").replace("flexvae_layers()", "flexvae_layers(registry)")
    (problem,) = folder.one("argument", source).problems
    assert "hooks take no argument" in problem
    assert problem.endswith(f"plugin_of_argument.py:{line_of(source, '@hookimpl')})")
    assert "registry" in problem


def test_a_misspelt_hook_with_the_nearest_name(folder):
    source = GOOD.format(code="Sine").replace("flexvae_layers", "flexvae_layer")
    (problem,) = folder.one("misspelt", source).problems
    assert problem.startswith("there is no hook flexvae_layer; did you mean flexvae_layers? (")
    assert problem.endswith(f"plugin_of_misspelt.py:{line_of(source, '@hookimpl')})")


def test_importing_a_package_of_ours_is_no_misspelt_hook(folder):
    assert (
        folder.one("imports", "import flexvae_cli\nimport flexvae_layers_core\n" + GOOD.format(code="Sine")).state
        == "ok"
    )


def test_a_hook_that_raises_keeps_the_other_hooks(folder):
    source = (
        GOOD.format(code="Sine")
        + """
@hookimpl
def flexvae_bottlenecks():
    raise ValueError("no codebook")
"""
    )
    plugin = folder.one("half", source)
    assert plugin.state == "partly"
    assert [spec.name for spec in plugin.specs] == ["Sine"]
    (problem,) = plugin.problems
    assert problem.startswith("flexvae_bottlenecks() fails: ValueError: no codebook")
    assert f"plugin_of_half.py:{line_of(source, 'no codebook')})" in problem


WANTS = "it wants what @layer declares"
RETURNS = {
    "None": "flexvae_layers() returns NoneType; it wants a list of specs",
    "factory": "flexvae_layers() returns LayerSpec; it wants a list of specs",
    "[print]": "flexvae_layers() returns a builtin_function_or_method; " + WANTS,
    "[bottleneck('B', trace=same)(lambda: 0)]": "flexvae_layers() returns a bottleneck B; " + WANTS,
    "[factory, factory]": "flexvae_layers() returns 'Sine' twice",
}


@pytest.mark.parametrize("returned", RETURNS)
def test_what_a_hook_returns_is_checked(folder, returned):
    source = GOOD.format(code="Sine").replace("return [factory]", f"return {returned}")
    (problem,) = folder.one("wrong", source).problems
    assert problem.startswith(f"{RETURNS[returned]} (")
    assert problem.endswith(f"plugin_of_wrong.py:{line_of(source, '@hookimpl')})")


def test_nothing_from_a_hook_is_told_beside_other_problems(folder):
    source = GOOD.format(code="Sine").replace("return [factory]", "return None") + "\ndef flexvae_los(): ...\n"
    assert len(folder.one("two", source).problems) == 2


@pytest.mark.parametrize("code", ["1x", "A_B", "Größe", "C" * 40, "", "a b"])
def test_a_bad_abbreviation_names_the_plugins_line(folder, code):
    source = GOOD.format(code=code)
    (problem,) = folder.one("abbreviation", source).problems
    assert repr(code) in problem
    assert "1 to 32 letters and digits, a letter first" in problem
    assert f"plugin_of_abbreviation.py:{line_of(source, '@layer')})" in problem


def test_a_bad_abbreviation_past_the_decorator(folder):
    source = GOOD.format(code="Sine").replace(
        "return [factory]", "import dataclasses\n    return [dataclasses.replace(factory, name='A_B')]"
    )
    (problem,) = folder.one("past", source).problems
    assert "'A_B'" in problem


@pytest.mark.parametrize(
    ("line", "words"), [("", "states no FLEXVAE_API"), ("FLEXVAE_API = 99", "is written for FLEXVAE_API 99")]
)
def test_another_version_of_the_api(folder, line, words):
    plugin = folder.one("version", GOOD.format(code="Sine").replace("FLEXVAE_API = 1", line))
    (problem,) = plugin.problems
    assert plugin.state == "failed"
    assert problem.startswith(f"{words}; this FlexVAE has 1")
    assert "plugin_of_version.py:" in problem


def test_no_hook_at_all(folder):
    (problem,) = folder.one("bare", "FLEXVAE_API = 1\n").problems
    assert problem.startswith("implements no hook")


def test_an_entry_point_to_something_that_is_no_module(folder):
    source = "class Thing:\n    __slots__ = ()\n    FLEXVAE_API = 1\n\nthing = Thing()\n"
    plugin = folder.one("thing", source, value="plugin_of_thing:thing")
    assert plugin.state == "failed"
    assert plugin.problems[0].startswith("cannot be registered: TypeError")


def test_the_leftovers_of_a_broken_installation(folder):
    folder.add("leftover", GOOD.format(code="Sine"))
    (folder.path / "leftover-1.2.dist-info" / "METADATA").write_text("")
    plugin = next(p for p in folder.load().found if p.distribution != "flexvae")
    assert (plugin.distribution, plugin.version, plugin.state) == ("unknown", "unknown", "ok")


def test_a_core_code_cannot_be_replaced(folder):
    source = GOOD.format(code="C2d")
    (problem,) = folder.one("thief", source).problems
    assert problem.startswith("the layer 'C2d' belongs to flexvae and cannot be replaced (")
    assert problem.endswith(f"plugin_of_thief.py:{line_of(source, '@layer')})")
    found = folder.load().registry.find("layer", "C2d")
    assert isinstance(found, Registered)
    assert found.distribution == "flexvae"


def test_two_plugins_claim_a_code(folder):
    folder.add("one", GOOD.format(code="Snake"))
    folder.add("two", GOOD.format(code="Snake"))
    loaded = folder.load()
    assert all(plugin.state == "ok" for plugin in loaded.found)
    clash = loaded.registry.find("layer", "Snake")
    assert isinstance(clash, Problem)
    assert clash.what == "the layer 'Snake' is claimed by 'one' and 'two'"
    assert 'prefer = { Snake = "one" }' in clash.hint
    chosen = loaded.registry.preferring({"Snake": "two"}).find("layer", "Snake")
    assert isinstance(chosen, Registered)
    assert chosen.distribution == "two"
    with pytest.raises(UsageError, match="'three' does not bring the code 'Snake'"):
        loaded.registry.preferring({"Snake": "three"})


@pytest.mark.parametrize(
    ("environment", "loaded"),
    [
        ({}, {"one", "two"}),
        ({"FLEXVAE_PLUGINS": "two"}, {"two"}),
        ({"FLEXVAE_PLUGINS": " one , two "}, {"one", "two"}),
        ({"FLEXVAE_NO_PLUGINS": "one"}, {"two"}),
        ({"FLEXVAE_NO_PLUGINS": "all"}, set()),
        ({"FLEXVAE_PLUGINS": "one,two", "FLEXVAE_NO_PLUGINS": "two"}, {"one"}),
        ({"FLEXVAE_PLUGINS": ""}, {"one", "two"}),
    ],
)
def test_the_environment_chooses_plugins_and_never_the_core(folder, environment, loaded):
    folder.add("one", GOOD.format(code="One"))
    folder.add("two", GOOD.format(code="Two"))
    found = folder.load(environment)
    assert {p.name for p in found.found if not p.skipped} == loaded | {"core", "builtin"}
    assert {p.state for p in found.found if p.skipped} <= {"skipped"}
    assert isinstance(found.registry.find("layer", "C2d"), Registered)
    assert isinstance(found.registry.find("layer", "One"), Registered) == ("one" in loaded)


def test_a_plugin_left_out_is_not_imported(folder):
    module = folder.add("heavy", GOOD.format(code="Heavy"))
    folder.load({"FLEXVAE_NO_PLUGINS": "heavy"})
    assert module not in sys.modules


def test_strictness_names_every_plugin_with_a_problem(folder):
    folder.add("good", GOOD.format(code="Sine"))
    folder.load().require_sound()
    folder.add("bare", "FLEXVAE_API = 1\n", version="0.5")
    folder.add("broken", "import no_such_module_here\n")
    with pytest.raises(PluginError) as caught:
        folder.load().require_sound()
    assert caught.value.code == Exit.PLUGIN
    assert [p.where for p in caught.value.problems] == ["plugin bare (bare 0.5)", "plugin broken (broken 1.2)"]


def test_the_order_does_not_depend_on_the_path(folder):
    for name in ("zebra", "alpha", "mid"):
        folder.add(name, GOOD.format(code=name.title()))
    assert [p.name for p in folder.load().found] == ["builtin", "core", "alpha", "mid", "zebra"]


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"FLEXVAE_PLUGINS": "one"}, []),
        ({"FLEXVAE_NO_PLUGINS": "all"}, []),
        (
            {"FLEXVAE_PLUGINS": "one,onne"},
            ["FLEXVAE_PLUGINS: names 'onne', which is not installed; did you mean 'one'?"],
        ),
        ({"FLEXVAE_NO_PLUGINS": "zork"}, ["FLEXVAE_NO_PLUGINS: names 'zork', which is not installed"]),
        ({"FLEXVAE_PLUGINS": "all"}, ["FLEXVAE_PLUGINS: names 'all', which is not installed"]),
    ],
)
def test_a_plugin_that_the_environment_names_in_vain(folder, environment, told):
    folder.add("one", GOOD.format(code="One"))
    loaded = folder.load(environment)
    assert [str(problem) for problem in loaded.problems] == told
    if told:
        with pytest.raises(PluginError, match="which is not installed"):
            loaded.require_sound()
    else:
        loaded.require_sound()


def test_a_faulty_trace_rule_is_told_with_its_plugin(folder, tmp_path):
    source = GOOD.format(code="Foo").replace("trace=same", "trace=lambda: lambda shape: {}['x']")
    folder.add("flexvae-foo", source, version="1.0")
    (tmp_path / "net.json").write_text('["C2d_3_3_1", "Foo"]')
    done = flexvae(folder, "inspect", str(tmp_path / "net.json"))
    assert done.returncode == Exit.USAGE
    assert "net.json[1]: Foo: the trace rule of Foo (flexvae-foo 1.0) fails: KeyError: 'x' (" in done.stderr
    assert f"plugin_of_flexvae_foo.py:{line_of(source, 'trace=')})" in done.stderr
    assert "unexpected" not in done.stderr


def test_a_model_is_never_built_of_another_plugin_s_layer(folder, make_model, tmp_path, monkeypatch):
    source = GOOD.format(code="Snake").replace('"""A layer."""', "from torch import nn; return nn.Identity()")
    folder.add("zoo", source, version="1.2")
    zoo = folder.load()
    monkeypatch.setattr(plugins, "installed", lambda: zoo)
    run = make_model(tmp_path / "run", encoder=["Snake", "C2d_3_4_4_4"], decoder=["C2d_2_3_1", "UpS_4"])
    folder.add("audio", source)
    both = flexvae(folder, "inspect", str(run))  # the clash is none: the model says whose layer it is
    assert both.returncode == 0, both.stderr
    assert "zoo 1.2" in both.stdout
    without = flexvae(folder, "inspect", str(run), FLEXVAE_NO_PLUGINS="zoo")
    assert without.returncode == Exit.MODEL
    assert "the model was made with zoo 1.2, which is not installed" in without.stderr
