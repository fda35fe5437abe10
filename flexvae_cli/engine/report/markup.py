"""Pieces of HTML that the sections are made of; texts are escaped here, content is HTML already."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape


def section(title: str, *content: str) -> str:
    """A headed section; empty where it has no content."""
    inner = "".join(content)
    return f'<section><h2 id="{_anchor(title)}">{escape(title)}</h2>{inner}</section>' if inner else ""


def navigation(titles: Iterable[str]) -> str:
    """Links to the sections."""
    return "<nav>" + "".join(f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title in titles) + "</nav>"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: int = 0) -> str:
    """A table whose last `numbers` columns are aligned right."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    content = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table class="right-{numbers}">{content}</table></div>'


def folded(title: str, content: str, opened: bool = False) -> str:
    """Something that is shown on demand."""
    return f"<details{' open' * opened}><summary>{escape(title)}</summary>{content}</details>"


def image(data: bytes, kind: str, text: str) -> str:
    """An image that the page holds itself; `kind` is `png` or `svg+xml`, `text` stands for it where it is not seen."""
    return f'<img alt="{escape(text)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
