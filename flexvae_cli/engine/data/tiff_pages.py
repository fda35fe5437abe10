"""The pages of a TIFF, followed before a decoder follows them: each names the next, and damage sends it in circles."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from flexvae_cli.api.readers import BadFile

MOST_PAGES = 65_536


class _Kind(NamedTuple):
    """How many bytes the numbers of a TIFF take: of a place in the file, of how many tags there are, and of a tag."""

    place: int
    entries: int
    tag: int


KINDS = {42: _Kind(4, 2, 12), 43: _Kind(8, 8, 20)}  # TIFF 6.0, and BigTIFF


def require_pages(path: Path) -> None:
    """Refuse a TIFF whose pages have no end; what else is wrong with it is left to its decoder.

    Raises:
        BadFile: a page comes twice, or there are more than `MOST_PAGES`.
    """
    with path.open("rb") as file:
        order: Literal["little", "big"] = "big" if file.read(2) == b"MM" else "little"

        def number(at: int, size: int) -> int:
            """A number of the file; 0 where it ends before."""
            file.seek(at)
            data = file.read(size)
            return int.from_bytes(data, order) if len(data) == size else 0

        kind = KINDS.get(number(2, 2))
        if kind is None:
            return
        seen: set[int] = set()
        page = number(kind.place, kind.place)
        while page:
            if page in seen:
                raise BadFile(path, "is damaged (its pages go round in circles)")
            if len(seen) == MOST_PAGES:
                raise BadFile(path, f"has more than {MOST_PAGES:,} pages")
            seen.add(page)
            page = number(page + kind.entries + number(page, kind.entries) * kind.tag, kind.place)
