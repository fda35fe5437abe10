"""How paths are shown."""

from __future__ import annotations

import os
from pathlib import Path


def shown(path: str | Path) -> str:
    """A path as a person would write it from here: relative where it lies below the working directory."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return str(path)
    return str(path) if relative.startswith("..") else relative
