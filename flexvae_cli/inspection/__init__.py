"""What a structure, a config, a run or a model is made of: as data, as JSON, and as a picture."""

from __future__ import annotations

from flexvae_cli.inspection.inspecting import inspect_config, inspect_target, read_shape
from flexvae_cli.inspection.inspection import Inspection, Line, Note, Part, short

__all__ = [
    "Inspection",
    "Line",
    "Note",
    "Part",
    "inspect_config",
    "inspect_target",
    "read_shape",
    "short",
]
