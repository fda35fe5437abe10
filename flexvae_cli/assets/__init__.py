"""What ships inside the package: photographs, and which plugins bring which codes."""

from __future__ import annotations

BUILTIN_SOURCES = {"builtin:scenery": "scenery/train", "builtin:scenery/val": "scenery/val"}
"""What a config may name as a source -> the folder below this one."""
