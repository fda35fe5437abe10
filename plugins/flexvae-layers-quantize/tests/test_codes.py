"""Every quantizer keeps its contract, as a layer and as a bottleneck, and the README lists it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from flexvae_layers_quantize import plugin

from flexvae_cli.api import LayerSpec
from flexvae_cli.api.testing import check_bottleneck, check_layer

SPECS = {spec.name: spec for spec in plugin.flexvae_layers()}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_quantizer_keeps_its_contract(spec: LayerSpec) -> None:
    check_layer(spec)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_quantizer_is_a_bottleneck(spec: LayerSpec) -> None:
    check_bottleneck(spec.as_bottleneck())


def test_declaring_the_layers_does_not_import_torch() -> None:
    code = (
        "import sys; from flexvae_layers_quantize import plugin as p; p.flexvae_layers(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_readme_lists_every_code() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    rows = [line for line in readme.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{spec.usage}` | {spec.summary} |" for spec in SPECS.values()]
