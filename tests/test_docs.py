"""Docs are code: what is generated is fresh, what is quoted runs, what is linked exists."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from flexvae_cli.plugins import installed
from flexvae_cli.structure import parse_structure

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "plugins").glob("*/*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def test_the_reference_of_the_command_line_is_fresh():
    """Every command's help, word for word; `make docs` writes it anew."""
    command = [sys.executable, "-m", "typer", "flexvae_cli.main", "utils", "docs", "--name", "flexvae"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == (ROOT / "docs/cli.md").read_text().strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()) + re.findall(r'src="([^"]+)"', page.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """What a link into a page can lead to: its headings, in lower case, without punctuation, joined by hyphens."""
    headings = re.findall(r"^#{1,6} +(.+?) *$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    names: Counter[str] = Counter()
    found = set()
    for heading in headings:
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).replace(" ", "-")
        found.add(f"{slug}-{names[slug]}" if names[slug] else slug)
        names[slug] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_into_pages_lead_to_a_heading(page):
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text()):
        there = page.parent / target if target else page
        assert anchor in anchors(there), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_structures_and_configs_in_the_pages_are_real(page):
    for block in blocks(page, "json"):
        document = json.loads(block)
        if isinstance(document, list) and document and isinstance(document[0], str):
            parse_structure(document, installed().registry, page.name).expanded()
    for block in blocks(page, "toml"):
        tomllib.loads(block)


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "cli.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_in_the_pages_is_one_that_there_is(page):
    """Subcommands, options and the number of arguments; nothing is run."""
    from typer.main import get_command

    from flexvae_cli.main import app

    for line in re.findall(r"^ {4}(?:\$ )?flexvae (.+?)(?: +#.*)?$", page.read_text(), re.M):
        words, command, name = shlex.split(line), get_command(app), "flexvae"
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            name, *words = words
            assert name in command.commands, line
            command = command.commands[name]
        command.make_context(name, words)


def test_the_readme_names_the_two_commands_and_every_subcommand():
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text
    from flexvae_cli.main import COMMANDS

    for name in [*COMMANDS, "config", "plugins"]:
        assert f"flexvae {name}" in text or f"`{name}`" in text, name


def test_the_readme_claims_what_the_benchmark_wrote():
    readme, measured = (ROOT / "README.md").read_text(), (ROOT / "docs/benchmarks.md").read_text()
    claims = {r"Mean PSNR ([0-9.]+) dB": "{:.1f} dB mean PSNR", r"([0-9.]+) dB at half of": "gives {:.1f} dB"}
    for pattern, said in claims.items():
        found = re.search(pattern, measured)
        assert found, pattern
        assert said.format(float(found[1])) in readme


def test_nothing_tells_where_or_how_it_was_made():
    """No absolute path of a machine in anything that is shipped."""
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".json", ".txt", "") and path.is_file():
            text = path.read_text(errors="ignore")
            assert not re.search(r"/(home|root|work)/[a-z]+/", text.replace("/root/FashionMNIST", "")), name
