"""The list of codes that published plugins bring is the plugins' own."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from flexvae_cli.registry import known_elsewhere

ROOT = Path(__file__).parents[1]


def test_known_plugins_are_what_the_plugins_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    brought = {}
    for folder in sorted((ROOT / "plugins").iterdir()):
        monkeypatch.syspath_prepend(str(folder))
        plugin = importlib.import_module(f"{folder.name.replace('-', '_')}.plugin")
        brought[folder.name] = sorted(spec.name for spec in plugin.flexvae_layers())
    written = json.loads((ROOT / "flexvae_cli/assets/known_plugins.json").read_text("utf-8"))
    assert written == brought
    assert known_elsewhere() == {code: name for name, codes in brought.items() for code in codes}
