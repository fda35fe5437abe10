"""The list of codes that published plugins bring is the plugins' own."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from flexvae_cli.registry import known_elsewhere

ROOT = Path(__file__).parents[1]


def test_known_plugins_are_what_the_plugin_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "plugins/flexvae-layers-extra"))
    plugin = importlib.import_module("flexvae_layers_extra.plugin")
    codes = sorted(spec.name for spec in plugin.flexvae_layers())
    written = json.loads((ROOT / "flexvae_cli/assets/known_plugins.json").read_text("utf-8"))
    assert written == {"flexvae-layers-extra": codes}
    assert known_elsewhere() == dict.fromkeys(codes, "flexvae-layers-extra")
