"""`--exact`, `--memory` and `--tile`: big inputs on small memory."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flexvae_cli import ui
from flexvae_cli.commands._before_torch import before_torch
from flexvae_cli.commands._sizes import size
from flexvae_cli.errors import UsageError

if TYPE_CHECKING:
    from flexvae_cli.engine.model import Model

MEMORY = 512 << 20  # bytes
ExactOption = Annotated[
    bool,
    typer.Option("--exact", help="Run layer by layer in bands, through files: the same result on little memory."),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="With --exact, most memory for tensors, beyond the model.",
        show_default="512MiB",
    ),
]
TileOption = Annotated[
    int | None,
    typer.Option(
        "--tile",
        metavar="N",
        min=1,
        help="Run in overlapping tiles of N pixels: quick, but approximate.",
        show_default="whole images",
    ),
]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of an input is run at a time.

    Attributes:
        memory: with `--exact`, bytes.
        tile: with `--tile`, pixels.
    """

    memory: int | None = None
    tile: int | None = None

    @classmethod
    def of(cls, exact: bool, memory: str | None, tile: int | None, precision: str = "fp32") -> Limits:
        """What the options say.

        Raises:
            UsageError: they exclude each other, or the memory is no size.
        """
        if memory is not None and not exact:
            raise UsageError("--memory bounds what --exact takes", hint="add --exact")
        if exact and tile is not None:
            raise UsageError("--exact and --tile exclude each other", hint="leave one of them out")
        if exact and precision != "fp32":
            raise UsageError(f"--exact computes in fp32, not in {precision}", hint="leave --precision or --exact out")
        if exact:  # huge pages: memory that is taken anew for every band comes faster
            before_torch("THP_MEM_ALLOC_ENABLE", "1")
        return cls(_bytes(memory) if exact else None, tile)

    @property
    def exact(self) -> bool:
        return self.memory is not None

    @property
    def fuse(self) -> Literal["auto", "off"]:
        """With `--exact` the layers are loaded as they are written; `engine.exact` joins what it runs together."""
        return "auto" if self.memory is None else "off"

    def batch_size(self, most: int) -> int:
        """Most images of a batch."""
        return most if self.memory is None and self.tile is None else 1

    def applied(self, model: Model, output: Path, *runs: Literal["encoder", "decoder"]) -> Model:
        """The model within the limits; see `ExactModel` and `TiledModel`.

        Args:
            model: loaded with `fuse`.
            output: where the results go; what is kept for the time being goes to the same disk.
            runs: the parts of the model that the command runs.
        """
        if self.memory is not None:
            from flexvae_cli.engine.exact.model import ExactModel

            folder = next(path for path in (output.absolute(), *output.absolute().parents) if path.is_dir())
            return ExactModel(model, self.memory, folder, decodes="decoder" in runs)
        if self.tile is not None:
            from flexvae_cli.engine.tiles import TiledModel

            tiled = TiledModel(model, self.tile)
            shared = [f"{'x'.join(map(str, tiled.overlap[part]))} of them shared in the {part}" for part in runs]
            side = "x".join(map(str, tiled.side if len({*tiled.side}) > 1 else tiled.side[:1]))
            ui.warn(f"approximate: tiles of {side} pixels, each run by itself, {', '.join(shared)}")
            return tiled
        return model

    def said(self, model: Model) -> dict[str, Any]:
        """What a report says of how the model was run; nothing where there was no limit."""
        from flexvae_cli.engine.exact.model import ExactModel
        from flexvae_cli.engine.tiles import TiledModel

        if isinstance(model, ExactModel):
            fallen = list(model.planner.fallen)
            return {"exact": {"memory": model.memory, "whole": fallen, "process_peak": _process_peak()}}
        if isinstance(model, TiledModel):
            overlap = {part: list(shared) for part, shared in model.overlap.items()}
            return {"approximate": {"tile": model.tile, "overlap": overlap}}
        return {}

    def tell(self, model: Model) -> None:
        """Say which codes ran on the whole tensor, and what the process took."""
        exact = self.said(model).get("exact")
        if exact is None:
            return
        if exact["whole"]:
            ui.say(f"run on the whole tensor, not in bands: {', '.join(exact['whole'])}")
        peak = exact["process_peak"]
        process = "" if peak is None else f"; the process as a whole took {size(peak)}"
        ui.say(f"exact: at most {size(exact['memory'])} of tensors beyond the model{process}")


def _bytes(memory: str | None) -> int:
    if memory is None:
        return MEMORY
    from flexvae_cli.config.settings.values import parse_bytes

    try:
        return int(str(parse_bytes(memory)))
    except ValueError as error:
        raise UsageError(f"--memory {error}, not '{memory}'") from None


def _process_peak() -> int | None:
    """The most memory that this process ever had, in bytes, where the system tells."""
    from flexvae_cli.engine.memory.machine import process_memory

    with contextlib.suppress(OSError):
        return process_memory("VmHWM")
    return None
