"""The page as a whole: one file that opens from disk and asks nothing of any network."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from importlib import resources
from string import Template
from typing import Any

from flexvae_cli import __version__
from flexvae_cli.engine.report import sections
from flexvae_cli.engine.report.facts import Facts
from flexvae_cli.engine.report.markup import navigation, section
from flexvae_cli.engine.report.pictures import pictures

GENERATOR = '<meta name="generator" content="flexvae '


@dataclass(frozen=True)
class Extras:
    """What the facts of a run do not hold, or why it could not be had.

    Attributes:
        document: the net, as `inspection.document` has it.
        drawing: the net as SVG.
        latents: what `latents.measured` says.
    """

    document: dict[str, Any] | None = None
    drawing: bytes | None = None
    structure_problem: str = ""
    latents: dict[str, Any] | None = None
    latents_problem: str = ""


def page(facts: Facts, extras: Extras) -> str:
    """The whole report as HTML."""
    content = {
        "Curves": sections.charts(facts),
        "Previews": pictures(facts),
        "Latents": sections.latents(extras.latents, extras.latents_problem),
        "Structure": sections.structure(extras.document, extras.drawing, extras.structure_problem),
        "Config": sections.config(facts),
        "Left out": sections.troubles(facts),
        "Environment": sections.environment(facts),
    }
    shown = {title: inner for title, inner in content.items() if inner}
    style, script = _text("page.css"), _text("page.js")
    return Template(_text("page.html")).substitute(
        title=escape(facts.name),
        generator=f'{GENERATOR}{escape(__version__)}">',
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}",
        style=style,
        script=script,
        header=sections.header(facts),
        navigation=navigation(shown),
        body="".join(section(title, inner) for title, inner in shown.items()),
        version=escape(__version__),
    )


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """How a policy names the one script, or style, that may run."""
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
