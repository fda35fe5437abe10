"""All that can be wrong with a plugin, installed at once: the tool works, and names each culprit and its line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from distributions import GOOD, HEAD, Folder, line_of
from distributions import flexvae as command
from PIL import Image

from flexvae_cli import faults, plugins
from flexvae_cli.errors import Exit

SINE = GOOD.format(code="Sine")
HOOK = "@hookimpl"
FAULTS: dict[str, tuple[str | None, str, str]] = {
    # distribution: its module, what is told, and what the line has that is named
    "imports-nothing": (
        "x = 1\nimport no_such_module\n",
        "ModuleNotFoundError: No module named 'no_such_module'",
        "no_s",
    ),
    "syntax": ("x = 1\ny = (\n", "import fails: SyntaxError: '(' was never closed", "y = ("),
    "exits": ("import sys\nsys.exit(3)\n", "import fails: SystemExit: 3", "sys.exit"),
    "argument": (SINE.replace("_layers()", "_layers(registry)"), "hooks take no argument", HOOK),
    "typo": (SINE.replace("flexvae_layers", "flexvae_layer"), "did you mean flexvae_layers?", HOOK),
    "raises": (SINE.replace("return [", "raise OSError('no') #"), "flexvae_layers() fails: OSError: no", "raise OSE"),
    "none": (SINE.replace("return [factory]", "return None"), "flexvae_layers() returns NoneType", HOOK),
    "wrong": (SINE.replace("return [factory]", "return [print]"), "returns a builtin_function_or_method", HOOK),
    "thief": (GOOD.format(code="C2d"), "the layer 'C2d' belongs to flexvae and cannot be replaced", "@layer"),
    "unspeakable": (GOOD.format(code="A_B"), "want 1 to 32 letters and digits, a letter first", "@layer"),
    "newer": (SINE.replace("API = 1", "API = 2"), "is written for FLEXVAE_API 2; this FlexVAE has 1", "FLEXVAE_API"),
    "unstated": (SINE.replace("FLEXVAE_API = 1", ""), "states no FLEXVAE_API; this FlexVAE has 1", ""),
    "cuda": ("import torch\ntorch.zeros(1, device='cuda:99')\n", "import fails: ", "cuda:99"),
    "deleted": (None, "No module named 'plugin_of_deleted'; pip install what brings", ""),
}
SOUND = {
    "prints": "print('noise')\n" + GOOD.format(code="Prints"),
    "slow": "import time\ntime.sleep(1.1)\n" + GOOD.format(code="Slow"),
    "one": GOOD.format(code="Both"),
    "two": GOOD.format(code="Both"),
}


@pytest.fixture
def all_of_them(folder) -> Folder:
    for number, (name, (source, _, _)) in enumerate(FAULTS.items()):
        folder.add(name, source, f"0.{number}")
    for name, source in SOUND.items():
        folder.add(name, source)
    return folder


def place_of(folder: Folder, name: str) -> str:
    source, _, text = FAULTS[name]
    return "(" + f"{folder.path}/plugin_of_{name.replace('-', '_')}.py:{line_of(source, text)})" if source else ""


def test_the_tool_works_and_every_culprit_is_named(all_of_them):
    done = command(all_of_them, "plugins", "--json", "--timings")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "noise" in done.stderr
    assert "slow (slow 1.2) takes 1." in done.stderr
    found = {plugin["distribution"]: plugin for plugin in json.loads(done.stdout)["plugins"]}
    for number, (name, (_, words, _)) in enumerate(FAULTS.items()):
        plugin = found[name]
        assert (plugin["version"], plugin["state"]) == (f"0.{number}", "failed")
        (problem,) = plugin["problems"]
        assert words in problem
        assert place_of(all_of_them, name) in problem
    assert {found[name]["state"] for name in ("flexvae", *SOUND)} == {"ok"}


def test_a_net_of_sound_layers_is_inspected_and_strictness_ends_with_7(all_of_them, tmp_path):
    without = {"FLEXVAE_NO_PLUGINS": "slow,cuda"}
    (tmp_path / "net.json").write_text('["C2d_3_4_1", "Prints"]')
    done = command(all_of_them, "inspect", str(tmp_path / "net.json"), "--json", **without)
    assert done.returncode == 0, done.stderr
    assert "Prints" in done.stdout
    (tmp_path / "net.json").write_text('["C2d_3_4_1", "Both"]')
    clash = command(all_of_them, "inspect", str(tmp_path / "net.json"), **without)
    assert clash.returncode == Exit.USAGE
    assert "the layer 'Both' is claimed by 'one' and 'two'" in clash.stderr
    strict = command(all_of_them, "--strict-plugins", "layers", **without)
    assert strict.returncode == Exit.PLUGIN
    for number, name in enumerate(FAULTS):
        assert (f"error: plugin {name} ({name} 0.{number}): " in strict.stderr) == (name != "cuda")


FACTORIES = '''
@layer("Raises", trace=same)
def raises():
    """A layer."""
    raise RuntimeError("no kernel")


@layer("Refuses", trace=same)
def refuses():
    """A layer."""
    raise ValueError("takes more than that")


@layer("Thing", trace=same)
def thing():
    """A layer."""
    return 3


@layer("Halves", trace=same)
def halves():
    """A layer."""
    from torch import nn

    return nn.AvgPool2d(2)


@layer("Hidden", trace=same, meta=False)
def hidden():
    """A layer."""
    from torch import nn

    class Hidden(nn.Module):
        def forward(self, x):
            raise KeyError("in the forward pass")

    return Hidden()


@hookimpl
def flexvae_layers():
    return [raises, refuses, thing, halves, hidden]
'''
TOLD = {
    "Raises": "e.json[1]: Raises (flexvae-zoo 1.2) cannot be built: RuntimeError: no kernel ({file}:{no kernel})",
    "Refuses": "e.json[1]: Refuses (flexvae-zoo 1.2) cannot be built: takes more than that",
    "Thing": "e.json[1]: Thing (flexvae-zoo 1.2) makes a int, not a torch module",
    "Halves": "e.json[1]: Halves (flexvae-zoo 1.2) gives 8x1x1 and has 0 parameters; its trace rule says 8x2x2 and 0 "
    'parameters ({file}:{"Halves"})',
    "Hidden": "unexpected KeyError in the plugin flexvae-zoo 1.2, {file}:{in the forward}: 'in the forward pass'",
}


@pytest.fixture
def project(folder, tmp_path, monkeypatch) -> Path:
    """A config whose encoder has a layer of a plugin as its second entry."""
    folder.add("flexvae-zoo", HEAD + FACTORIES)
    zoo = folder.load()
    monkeypatch.setattr(plugins, "installed", lambda: zoo)
    points = [plugin.distribution for plugin in zoo.found]
    assert points == ["flexvae", "flexvae", "flexvae-zoo"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for index in range(2):
        Image.effect_noise((10, 9), 20 * index + 1).convert("RGB").save(tmp_path / f"photos/{index}.png")
    (tmp_path / "d.json").write_text(json.dumps(["UpS_4", "C2d_4_3_3_1_1"]))
    (tmp_path / "flexvae.toml").write_text(
        'model = { encoder = "e.json", decoder = "d.json" }\n'
        'data = { source = "photos", input = "3x8x8", validation = 0, workers = 0, resize = "none" }\n'
        'train = { run_dir = "run", max_steps = 1, batch_size = 1, device = "cpu" }\n'
    )
    return tmp_path


@pytest.mark.parametrize("code", TOLD)
def test_a_factory_s_fault_is_told_with_its_entry_its_plugin_and_the_cause(project, flexvae, code):
    (project / "e.json").write_text(json.dumps(["C2d_3_8_4_4", code]))
    done = flexvae("train")
    wanted, _, rest = TOLD[code].partition("{file}")
    if rest:
        text = rest[rest.index("{") + 1 : rest.index("}")]
        rest = rest.replace(f"{{{text}}}", str(line_of(HEAD + FACTORIES, text)))
        wanted += f"{project / 'plugin_of_flexvae_zoo.py'}{rest}"
    assert f"error: {wanted}" in done.stderr
    assert done.exit_code == (Exit.UNEXPECTED if code == "Hidden" else Exit.USAGE)


def test_a_folder_whose_name_begins_as_ours_does_is_not_ours():
    file = f"{Path(faults.__file__).parent}_zoo{os.sep}blocks.py"
    with pytest.raises(ZeroDivisionError) as raised:
        exec(compile("1 / 0", file, "exec"), {"__name__": "zoo"})
    assert faults.fault(raised.value) == f"ZeroDivisionError: division by zero ({file}:1)"
