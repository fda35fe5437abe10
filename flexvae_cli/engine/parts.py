"""What training carries from step to step beside the weights, as named tensors: it goes into every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flexvae_cli.errors import ModelError, Problem

if TYPE_CHECKING:
    from torch import Tensor


class Part(Protocol):
    """Anything with a state that a resumed run must have back."""

    def tensors(self) -> dict[str, Tensor]:
        """The state by name, on any device; a part without one has nothing to say."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The way back.

        Args:
            tensors: what `tensors` gave, on the host.

        Raises:
            ValueError: it does not fit; the text says why.
        """


def collected(parts: Mapping[str, Part]) -> dict[str, Tensor]:
    """All tensors of all parts as `part.name`; no part's name has a dot."""
    return {f"{part}.{name}": value for part, each in parts.items() for name, value in each.tensors().items()}


def restore_parts(parts: Mapping[str, Part], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give every part its own back.

    Raises:
        ModelError: tensors of no part, or that a part refuses; `path` is the file that they come from.
    """
    split: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    unknown = [key for key in tensors if key.partition(".")[0] not in parts]
    problems = (
        [Problem(f"has tensors that this run has no use for, such as {unknown[0]}", str(path))] if unknown else []
    )
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        if part in split:
            split[part][name] = value
    for part, each in parts.items():
        try:
            each.restore(split[part])
        except ValueError as error:
            problems.append(Problem(f"the state of the {part} does not fit: {error}", str(path)))
    if problems:
        raise ModelError(*problems)
