"""The borders between the rooms: what may import what, at module level, and what a command pulls in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "numpy", "rich", "PIL", "matplotlib")
LIGHT = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("", "config", "inspection", "kit")
    for path in (ROOT / "flexvae_cli" / folder).glob("*.py")
    if path.stem not in ("__init__", "__main__")
)
API = sorted(
    f"flexvae_cli.api.{path.stem}" for path in (ROOT / "flexvae_cli/api").glob("*.py") if path.stem != "__init__"
)
COMMANDS = sorted(f"flexvae_cli.commands.{path.stem}" for path in (ROOT / "flexvae_cli/commands").glob("*.py"))


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_module_of_the_light_half_imports_anything_heavy():
    code = """
import importlib, sys
for name in sys.argv[1].split(","):
    importlib.import_module(name)
    loaded = [heavy for heavy in sys.argv[2].split(",") if heavy in sys.modules]
    assert not loaded, f"{name} imports {loaded}"
"""
    names = [*LIGHT, *API, *COMMANDS, "flexvae_layers_core.plugin"]
    # `typer` itself is allowed to import rich; `main` and the commands import typer.
    without_typer = [n for n in names if n not in ("flexvae_cli.main", *COMMANDS)]
    python(code, ",".join(without_typer), ",".join(HEAVY))
    python(code, ",".join(names), ",".join(h for h in HEAVY if h != "rich"))


def test_the_public_package_costs_nothing():
    assert (
        python("import sys, flexvae_cli; print([m for m in ('typer', 'pydantic', 'torch') if m in sys.modules])")
        == "[]"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["layers"],
        ["layers", "C2d"],
        ["plugins"],
        ["config", "schema"],
        ["config", "check", "--config", str(ROOT / "configs/seed.toml")],
        ["config", "explain-loss", "--config", str(ROOT / "configs/seed.toml")],
        ["inspect", str(ROOT / "configs/structures/encoder.json")],
        ["inspect", str(ROOT / "configs/seed.toml"), "--json"],
        ["mirror", str(ROOT / "configs/structures/encoder.json")],
    ],
    ids=" ".join,
)
def test_commands_that_only_look_do_not_import_torch(arguments):
    code = """
import sys
from flexvae_cli.main import run
try:
    run()
except SystemExit as leaving:
    assert not leaving.code, leaving.code
heavy = [m for m in ("torch", "torchvision", "numpy", "PIL", "matplotlib") if m in sys.modules]
assert not heavy, heavy
"""
    python(code, *arguments)


def imports_of(path: Path) -> list[tuple[str, int]]:
    """Every import of a file, wherever it stands, but those for type checkers."""
    found: list[tuple[str, int]] = []

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.dump(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.extend((alias.name, node.lineno) for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            found.append((node.module or "", node.lineno))

    Visitor().visit(ast.parse(path.read_text()))
    return found


def test_plugins_import_the_plugin_interface_alone():
    files = [*(ROOT / "flexvae_layers_core").glob("*.py"), *(ROOT / "plugins").glob("*/flexvae_*/*.py")]
    assert len(files) > 4
    wrong = [
        f"{path.name}:{line} imports {name}"
        for path in files
        for name, line in imports_of(path)
        if name.startswith("flexvae_cli") and name != "flexvae_cli.api"
    ]
    assert not wrong


def test_the_engine_does_not_know_the_terminal():
    wrong = [
        f"{path.name}:{line} imports {name}"
        for path in (ROOT / "flexvae_cli/engine").rglob("*.py")
        for name, line in imports_of(path)
        if name.partition(".")[0] in ("typer", "rich") or name.startswith(("flexvae_cli.ui", "flexvae_cli.commands"))
    ]
    assert not wrong


def test_nothing_we_ship_unpickles_or_evaluates():
    calls = {"eval", "exec", "compile", "__import__"}
    wrong = []
    for path in [*(ROOT / "flexvae_cli").rglob("*.py"), *(ROOT / "flexvae_layers_core").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        wrong += [f"{path.name}:{line} imports {name}" for name, line in imports_of(path) if name in ("pickle", "dill")]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                restricted = path.name == "pickles.py" and "weights_only=True" in map(ast.unparse, node.keywords)
                if name in calls or (name == "torch.load" and not restricted):
                    wrong.append(f"{path.name}:{node.lineno} calls {name}")
    assert not wrong
